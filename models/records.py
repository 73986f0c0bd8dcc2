"""Records as JSON: routes, releases and the pointer, written one way only and checked when read.

Each carries the sha256 of the rest of itself, because releases and the pointer are not named by a digest:
a flipped bit in a number or a name would be a valid record of something else.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from models.errors import DamagedObject, UnsupportedFormat
from models.recently_used import RecentlyUsed

SEAL = "sha256"
FORMAT_VERSIONS = (1, 2)  # of the records in a store: 2 where a record has one of `ADDED_FIELDS`
ADDED_FIELDS = ("variants", "precisions")  # left out while empty, so that records without keep format 1 and digest

Record = TypeVar("Record")

# kept by type: making one takes some 10 ms, and a release may have hundreds of routes
_adapter: Callable[[type], Any] = cache(TypeAdapter)


def encode(record: object) -> bytes:
    """Return the record as JSON with sorted keys: equal records give equal bytes, hence equal digests."""
    plain = _adapter(type(record)).dump_python(record, mode="json")
    plain = {name: value for name, value in plain.items() if value or name not in ADDED_FIELDS}
    return _text({**plain, SEAL: _seal(plain)}) + b"\n"


def _text(plain: Mapping[str, object]) -> bytes:
    return json.dumps(plain, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def _seal(plain: Mapping[str, object]) -> str:
    return hashlib.sha256(_text(plain)).hexdigest()


def decode(kind: type[Record], data: bytes, name: str) -> Record:
    """Return the record of type `kind` that `data` holds.

    Args:
        kind: a frozen dataclass with `format_version`.
        data: the file's bytes.
        name: the file, for error messages.

    Raises:
        UnsupportedFormat: written by a newer version of this software.
        DamagedObject: not such a record.
    """
    try:
        plain = json.loads(data)
        version = plain["format_version"]
        seal = plain.pop(SEAL, None)
        is_sealed = seal == _seal(plain)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedObject(f"{name} is damaged: not a JSON record with a format_version; restore it") from error
    if version not in FORMAT_VERSIONS:
        raise UnsupportedFormat(
            f"{name} has format_version {version!r}; this version reads {' and '.join(map(str, FORMAT_VERSIONS))}: "
            "upgrade mu2net"
        )
    if not is_sealed:
        raise DamagedObject(f"{name} is damaged: its content is not what its sha256 says; restore it from a copy")
    try:
        return _adapter(kind).validate_json(data)  # type: ignore[no-any-return]  # of type `kind`
    except ValidationError as error:
        raise DamagedObject(f"{name} is damaged: {_first_problem(error)}; restore it from a copy") from error


class DecodedRecords:
    """Records that were decoded before, by the sha256 of their bytes. Safe in several threads.

    Records are immutable, and equal bytes are the same record, so a kept one may be given to everybody. What was
    used longest ago goes first once the encoded records together are larger than `max_bytes`.
    """

    def __init__(self, max_bytes: int = 16 * 2**20) -> None:
        self._kept: RecentlyUsed[object] = RecentlyUsed(max_bytes)

    def decode(self, kind: type[Record], data: bytes, name: str) -> Record:
        """Return what `decode` returns and raise what it raises, without decoding the same bytes again."""
        key = (kind, hashlib.sha256(data).hexdigest())
        record = cast("Record | None", self._kept.get(key))
        if record is None:
            record = decode(kind, data, name)
            self._kept.keep(key, record, len(data))
        return record


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, problem['loc'])) or 'record'}: {problem['msg']}"
