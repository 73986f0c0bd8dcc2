"""The API keys of a store as a record, `keys.json`: hashes only. What they open is decided in service/.

From the moment the record is there, servers of the store need a key, be the list empty: so it is in a copy of
a store with keys, which are secrets of the store that they were made for.
"""

from dataclasses import dataclass, field
from typing import Literal

from models.files import Files
from models.records import decode

KEYS_FILE = "keys.json"

Manages = Literal["tasks", "releases"]


@dataclass(frozen=True, slots=True)
class Key:
    """What a key's holder may do. The key itself is known to its holder alone."""

    id: str
    name: str
    sha256: str = field(repr=False)
    classify: tuple[str, ...]  # names of tasks; `all` for every task that is not private
    manages: tuple[Manages, ...]
    rate: str | None  # as '100/minute'; None for the server's MU2NET_KEY_RATE
    created_at: str  # UTC, ISO 8601
    revoked_at: str | None = None


@dataclass(frozen=True, slots=True)
class KeyList:
    """Every key there ever was: revoked ones stay, so that revoking the last does not open the server."""

    keys: tuple[Key, ...] = ()
    format_version: int = 1


def find_keys(files: Files) -> KeyList | None:
    """Return the keys of a store, None where it has no list of them.

    Raises:
        StoreError: the file is damaged, or the store cannot be reached.
    """
    try:
        return decoded_keys(files.read(KEYS_FILE))
    except FileNotFoundError:
        return None


def decoded_keys(data: bytes) -> KeyList:
    return decode(KeyList, data, KEYS_FILE)
