"""What an operator can set, as `MU2NET_*` in the environment: the only file that reads the environment.

An unknown `MU2NET_` name is refused, since a misspelt limit that is silently ignored is no limit.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from models.errors import InvalidConfig
from models.inspection import MEMORY_LIMIT
from models.preprocess import ImageLimits
from service.rate_limit import RATE

PREFIX = "MU2NET_"


class Settings(BaseSettings):
    """Read with `load_settings`. Each field is set by `MU2NET_` and its name in capitals."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True)

    store: str = Field(description="the store to serve from: a folder, or a URL such as s3://...")
    cache: Path | None = Field(None, description="folder for packed weights and copies of a remote store")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes CUDA where it is usable")
    engine_threads: int = Field(0, ge=0, le=1024, description="threads of arithmetic; 0 takes every usable core")
    decode_threads: int = Field(2, ge=1, le=256, description="threads that decode images")
    poll_interval_s: float = Field(1.0, ge=0.05, le=3600, description="seconds between looks for a new release")
    timeout_s: float = Field(30.0, gt=0, le=3600, description="seconds after which a waiting request is given up")
    upload_timeout_s: float = Field(60.0, gt=0, le=3600, description="seconds that a classify request's body may take")
    max_requests: int = Field(256, ge=1, description="requests under way at once; the others are told to try again")
    resident_releases: int = Field(2, ge=1, le=100, description="releases in memory: the live one and those before it")
    bind_address: str = Field("", description="IP address that the server binds, set by 'mu2net serve'")
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
    max_upload_bytes: int = Field(2 * 2**30, ge=1, description="bytes of one zip of labelled images")
    max_inspections: int = Field(2, ge=1, le=64, description="uploads whose images are looked at at once")
    max_inspection_bytes: int = Field(
        MEMORY_LIMIT, ge=2**29, description="bytes of memory that looking at one upload's images may take"
    )
    queue: str | None = Field(
        None, description="SQLAlchemy URL of the jobs' database; default: a SQLite file in the store's folder"
    )
    max_queue_images: int = Field(1024, ge=1, description="images accepted and not yet answered, of all requests")
    max_batch_rows: int = Field(64, ge=1, description="pairs of image and task that run together")
    max_batch_s: float = Field(0.1, gt=0, le=60, description="seconds that a batch of several images may take")

    @property
    def image_limits(self) -> ImageLimits:
        return ImageLimits(max_bytes=self.max_image_bytes, max_pixels=self.max_image_pixels)


def load_settings(store: str | None = None) -> Settings:
    """Return the settings of this process's environment; `store`, if given, goes before `MU2NET_STORE`.

    Raises:
        InvalidConfig: an unknown `MU2NET_` name, a value out of range, or no store.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
    if unknown:
        raise InvalidConfig(f"unknown setting {', '.join(unknown)}; known settings: {', '.join(sorted(known))}")
    try:
        return Settings(**({} if store is None else {"store": store}))  # type: ignore[arg-type]
    except ValidationError as error:
        raise InvalidConfig("; ".join(_problems(error))) from error


def _problems(error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors(include_url=False):
        field = str(problem["loc"][0])
        meaning = Settings.model_fields[field].description
        given = "is not set" if problem["type"] == "missing" else f"= {problem['input']!r}: {problem['msg']}"
        lines.append(f"setting {PREFIX}{field.upper()} {given} ({meaning})")
    return lines


def server_environment(*, store: str, bind_address: str, bentoml_home: Path) -> Mapping[str, str]:
    """Return this process's environment with what a server process started from it needs.

    `bentoml_home` is left alone where it is set already.
    """
    own = {"MU2NET_STORE": store, "MU2NET_BIND_ADDRESS": bind_address, "BENTOML_DO_NOT_TRACK": "True"}
    return {"BENTOML_HOME": str(bentoml_home)} | os.environ | own


def traces_endpoint() -> str | None:
    """Return `MU2NET_TRACES` before anything is checked: BentoML wants it while service/api.py is imported."""
    return os.environ.get("MU2NET_TRACES")


def metrics_folder() -> str | None:
    """Return where BentoML has its workers share their metrics, None in a process that BentoML did not start."""
    return os.environ.get("PROMETHEUS_MULTIPROC_DIR")
