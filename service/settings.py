"""What an operator can set, as `MU2NET_*` in the environment: the only file that reads the environment.

An unknown `MU2NET_` name is refused, since a misspelt limit that is silently ignored is no limit.
"""

import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from models.errors import InvalidConfig
from models.family import PARENT_VARIABLE
from models.inspection import MEMORY_LIMIT
from models.own_token import default_folder
from models.preprocess import ImageLimits
from models.store import is_url
from service.addresses import parse_networks
from service.door import DoorLimits
from service.rate_limit import RATE

PREFIX = "MU2NET_"
SHARES = 3  # of such one client may hold one, see service/places.py
# What Kubernetes sets in every pod for a Service whose name begins with mu2net: name and value as its documentation
# has them, so that a setting of the same form, such as MU2NET_PORT=3000, stays unknown.
_ADDRESS = r"[0-9a-fA-F.:]+"
_PROTOCOL = r"(?:TCP|UDP|SCTP)"
_SERVICE_VARIABLES = [
    (re.compile(rf"{PREFIX}(?:[A-Z0-9_]+_)?{name}"), re.compile(value))
    for name, value in {
        "SERVICE_HOST": _ADDRESS,
        "SERVICE_PORT(?:_[A-Z0-9_]+)?": r"\d+",
        rf"PORT(?:_\d+_{_PROTOCOL})?": rf"{_PROTOCOL.lower()}://\[?{_ADDRESS}\]?:\d+",
        rf"PORT_\d+_{_PROTOCOL}_PROTO": _PROTOCOL.lower(),
        rf"PORT_\d+_{_PROTOCOL}_PORT": r"\d+",
        rf"PORT_\d+_{_PROTOCOL}_ADDR": _ADDRESS,
    }.items()
]


class Settings(BaseSettings):
    """Read with `load_settings`. Each field is set by `MU2NET_` and its name in capitals."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True)

    store: str = Field(description="the store to serve from: a folder, or a URL such as s3://...")
    cache: Path | None = Field(None, description="folder for packed weights and copies of a remote store")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes CUDA where it is usable")
    engine_threads: int = Field(0, ge=0, le=1024, description="threads of arithmetic; 0 takes every usable core")
    decode_threads: int = Field(2, ge=1, le=256, description="threads that decode small images")
    decode_processes: int = Field(2, ge=1, le=256, description="processes that decode the others, at most at once")
    decode_timeout_s: float = Field(
        10.0, ge=0.01, le=3600, description="seconds of processor time that decoding one of these may take"
    )
    poll_interval_s: float = Field(1.0, ge=0.05, le=3600, description="seconds between looks for a new release")
    timeout_s: float = Field(30.0, gt=0, le=3600, description="seconds after which a waiting request is given up")
    upload_timeout_s: float = Field(60.0, gt=0, le=3600, description="seconds that a classify request's body may take")
    min_body_bytes_per_s: int = Field(16 * 2**10, ge=1, description="least mean rate of a body, uploads of tasks too")
    upload_grace_s: float = Field(5.0, gt=0, le=3600, description="seconds of a body before its rate is judged")
    max_requests: int = Field(512, ge=1, description="requests under way at once; the others are told to try again")
    max_bodies: int = Field(1024, ge=1, description="request bodies being received at once, beside max_requests")
    max_body_bytes_under_way: int = Field(
        192 * 2**20, ge=1, description="bytes of request bodies in memory, of all requests under way"
    )
    max_streams: int = Field(256, ge=1, description="event streams open at once")
    max_uploads: int = Field(32, ge=1, description="uploads of labelled images under way at once")
    max_upload_bytes_under_way: int = Field(
        8 * 2**30, ge=1, description="bytes of uploads on this machine's disk, until their jobs are queued"
    )
    trusted_proxies: str = Field(
        "", description="addresses or CIDR ranges, separated by commas, whose requests have no limit by address"
    )
    resident_releases: int = Field(2, ge=1, le=100, description="releases in memory: the live one and those before it")
    bind_address: str = Field("", description="IP address that the server binds, set by 'mu2net serve'")
    parent: int | None = Field(None, ge=1, description="process whose end ends this one, set by what starts it")
    hosts: str = Field(
        "",
        pattern=r"^\s*([\w.-]+|\[[0-9a-fA-F:.]+\])(\s*,\s*([\w.-]+|\[[0-9a-fA-F:.]+\]))*\s*$|^$",
        description="names, separated by commas, that a server without keys on a loopback address may be called by, "
        "beside localhost and loopback addresses: those of a proxy before it",
    )
    cors_origins: str = Field(
        "",
        pattern=r"^\s*$|^\s*https?://[^\s,/*]+(\s*,\s*https?://[^\s,/*]+)*\s*$",
        description="origins, such as https://app.example.com, separated by commas, whose pages may ask this server",
    )
    max_connections: int = Field(4096, ge=1, description="connections open at once")
    max_connections_per_address: int = Field(
        256, ge=1, description="connections of one IP address, or one IPv6 /64; trusted proxies have no such limit"
    )
    max_head_bytes: int = Field(64 * 2**10, ge=1024, description="bytes of a request's line and headers")
    head_timeout_s: float = Field(10.0, gt=0, le=3600, description="seconds that a request's line and headers may take")
    keep_alive_s: float = Field(5.0, ge=0, le=3600, description="seconds after which an idle connection is closed")
    drain_s: float = Field(
        5.0, ge=0, le=3600, description="seconds after SIGTERM in which new requests are still answered, not ready"
    )
    log_requests: bool = Field(False, description="log a line for each request; failures of the server always are")
    traces: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="where traces go by OTLP/HTTP, such as http://collector:4318/v1/traces; unset: nowhere",
    )
    key_rate: str | None = Field(
        None, pattern=RATE, description="requests of one API key, such as 100/minute; unset: no limit"
    )
    max_image_bytes: int = Field(20 * 2**20, ge=1, description="bytes of one encoded image")
    max_image_pixels: int = Field(50_000_000, ge=1, description="width times height of one image")
    max_request_bytes: int = Field(64 * 2**20, ge=1, description="bytes of one request's body")
    max_request_images: int = Field(64, ge=1, description="images in one request")
    max_request_pixels: int = Field(
        800_000_000, ge=1, description="pixels of the images in one request: 64 photos of 12 megapixels fit"
    )
    max_pixels_under_way: int = Field(
        2_400_000_000, ge=1, description="pixels of large images accepted and not yet answered, of all requests"
    )
    max_json_bytes: int = Field(
        4 * 2**20, ge=2**10, description="bytes of JSON in one request; binary data behind it do not count"
    )
    max_upload_bytes: int = Field(2 * 2**30, ge=1, description="bytes of one zip of labelled images")
    max_inspections: int = Field(2, ge=1, le=64, description="uploads whose images are looked at at once")
    max_inspection_bytes: int = Field(
        MEMORY_LIMIT, ge=2**29, description="bytes of memory that looking at one upload's images may take"
    )
    queue: str | None = Field(
        None, description="SQLAlchemy URL of the jobs' database; default: a SQLite file in the store's folder"
    )
    max_jobs_per_key: int = Field(
        100, ge=1, description="unfinished jobs of one key; jobs without a key count together"
    )
    max_budget_s: float = Field(86_400.0, gt=0, le=604_800, description="longest budget of one job")
    max_budget_per_key_s: float = Field(259_200.0, gt=0, description="budgets of one key's unfinished jobs together")
    max_bytes_per_key: int = Field(32 * 2**30, ge=1, description="kept uploads of one key's jobs together")
    max_queue_images: int = Field(1024, ge=1, description="images accepted and not yet answered, of all requests")
    proof_timeout_s: float = Field(
        300.0, gt=0, le=86400, description="seconds that each new route may take to be proven"
    )
    proof_memory_bytes: int = Field(
        2 * 2**30, ge=2**26, description="memory of that proof, beside three times what the new weights take"
    )
    engine_stall_s: float = Field(
        60.0, gt=0, le=3600, description="seconds without an answer of the engine after which /readyz says 503"
    )
    trust: str | None = Field(
        None, description="public keys, with commas between: files or base64; only releases signed by one are served"
    )
    sign: Path | None = Field(None, description="private key that signs the releases which this server publishes")
    keys: str | None = Field(
        None,
        description="folder or URL of keys.json, where publishers cannot write; default: the store",
    )
    max_batch_rows: int = Field(64, ge=1, description="pairs of image and task that run together")
    max_batch_s: float = Field(0.1, gt=0, le=60, description="seconds that a batch of several images may take")

    @cached_property
    def allowed_hosts(self) -> frozenset[str]:
        return _listed(self.hosts)

    @cached_property
    def allowed_origins(self) -> frozenset[str]:
        return _listed(self.cors_origins)

    @property
    def door_limits(self) -> DoorLimits:
        return DoorLimits(
            max_connections=self.max_connections,
            max_connections_per_address=self.max_connections_per_address,
            max_head_bytes=self.max_head_bytes,
            head_timeout_s=self.head_timeout_s,
            keep_alive_s=self.keep_alive_s,
        )

    @property
    def token_folder(self) -> Path:
        """Where the token of this machine's user is kept, see `models.own_token`."""
        return default_folder() if self.cache is None else self.cache

    @property
    def image_limits(self) -> ImageLimits:
        return ImageLimits(max_bytes=self.max_image_bytes, max_pixels=self.max_image_pixels)


def load_settings(store: str | None = None) -> Settings:
    """Return the settings of this process's environment; `store`, if given, goes before `MU2NET_STORE`.

    Raises:
        InvalidConfig: an unknown `MU2NET_` name, a value out of range, or no store.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(
        name
        for name, value in os.environ.items()
        if name.startswith(PREFIX) and name not in known and not is_of_kubernetes(name, value)
    )
    if unknown:
        raise InvalidConfig(f"unknown setting {', '.join(unknown)}; known settings: {', '.join(sorted(known))}")
    try:
        found = Settings(**({} if store is None else {"store": store}))  # type: ignore[arg-type]
    except ValidationError as error:
        raise InvalidConfig("; ".join(_problems(error))) from error
    parse_networks(found.trusted_proxies)
    _require_room_for_one(found)
    return found


def _require_room_for_one(settings: Settings) -> None:
    """Refuse limits under which the largest request or image that is allowed could never be answered."""
    for one, in_all in (
        ("max_request_bytes", "max_body_bytes_under_way"),
        ("max_upload_bytes", "max_upload_bytes_under_way"),
        ("max_request_pixels", "max_pixels_under_way"),
    ):
        largest, total = getattr(settings, one), getattr(settings, in_all)
        if SHARES * largest > total:
            raise InvalidConfig(
                f"setting {PREFIX}{in_all.upper()} = {total} leaves one client 1/{SHARES}, too little for "
                f"a request of {PREFIX}{one.upper()} = {largest}: raise the first or lower the second"
            )
    if settings.max_image_pixels > settings.max_request_pixels:
        raise InvalidConfig(
            f"setting {PREFIX}MAX_REQUEST_PIXELS = {settings.max_request_pixels} is too little for one image of "
            f"{PREFIX}MAX_IMAGE_PIXELS = {settings.max_image_pixels}: raise the first or lower the second"
        )


def _listed(text: str) -> frozenset[str]:
    """Return names that are separated by commas, in lower case."""
    return frozenset(name for name in (part.strip().lower() for part in text.split(",")) if name)


def is_of_kubernetes(name: str, value: str) -> bool:
    """Whether Kubernetes sets this variable for a Service, so that it is no setting."""
    return any(names.fullmatch(name) and values.fullmatch(value) for names, values in _SERVICE_VARIABLES)


def _problems(error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors(include_url=False):
        field = str(problem["loc"][0])
        meaning = Settings.model_fields[field].description
        given = "is not set" if problem["type"] == "missing" else f"= {problem['input']!r}: {problem['msg']}"
        lines.append(f"setting {PREFIX}{field.upper()} {given} ({meaning})")
    return lines


def server_environment(
    settings: Settings, *, store: str, bind_address: str, bentoml_home: Path, trust: str | None = None
) -> Mapping[str, str]:
    """Return this process's environment with what a server process started from it needs.

    Places are absolute there, since BentoML starts the server in another folder. `bentoml_home` is left alone where
    it is set already.
    """
    from models.jobs import absolute_queue  # SQLAlchemy: the client imports this file, too, and has no use for it

    own = {"MU2NET_STORE": store, "MU2NET_BIND_ADDRESS": bind_address, "BENTOML_DO_NOT_TRACK": "True"}
    own |= {} if trust is None else {"MU2NET_TRUST": trust}
    for name, place in (("CACHE", settings.cache), ("SIGN", settings.sign), ("KEYS", settings.keys)):
        if place is not None:
            own[f"{PREFIX}{name}"] = absolute_place(place)
    if settings.queue is not None:
        own[f"{PREFIX}QUEUE"] = absolute_queue(settings.queue)
    return {"BENTOML_HOME": str(bentoml_home)} | os.environ | own


def absolute_place(place: str | Path) -> str:
    """Return a folder or file by its absolute path, a URL as it is."""
    return str(place) if is_url(place) else str(Path(place).absolute())


def become_parent() -> None:
    """Have the processes that this one starts from now on end with it, see `Settings.parent`."""
    os.environ[PARENT_VARIABLE] = str(os.getpid())


def token_folder() -> Path:
    """Return where this process's user has the token, whatever else the environment says: for clients."""
    cache = os.environ.get(f"{PREFIX}CACHE")
    return default_folder() if cache is None else Path(cache)


def traces_endpoint() -> str | None:
    """Return `MU2NET_TRACES` before anything is checked: BentoML wants it while service/api.py is imported."""
    return os.environ.get("MU2NET_TRACES")


def metrics_folder() -> str | None:
    """Return where BentoML has its workers share their metrics, None in a process that BentoML did not start."""
    return os.environ.get("PROMETHEUS_MULTIPROC_DIR")
