"""A disk that takes nothing: one translation of what the system and SQLite say into errors of this project.

The message names the place by what it is for. Its path is for those who operate the server: `path` has it.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.errors import StorageFull, StorageReadOnly

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
STORE, TEMPORARY, CACHE = "the store's folder", "the folder for temporary files", "the cache folder"
NO_TEMPORARY = "No usable temporary directory"  # Python's words where not one byte could be written to any of them


@contextmanager
def writing(place: str, path: str | Path = "", *, is_full_only: bool = False) -> Iterator[None]:
    """Say of a block that writes to `place`, at `path`, what keeps it from doing so.

    Args:
        place: what messages call it.
        path: where it is.
        is_full_only: the block reads elsewhere as well, where it may lack rights.

    Raises:
        StorageFull: there is no space left, or a quota is used up.
        StorageReadOnly: this process may not write there.
    """
    try:
        yield
    except OSError as error:
        refused = storage_error(error, place, path)
        if refused is None or (is_full_only and not isinstance(refused, StorageFull)):
            raise
        raise refused from error


def storage_error(error: OSError, place: str, path: str | Path = "") -> StorageFull | StorageReadOnly | None:
    """Return what an error of the system means for `place`, None if it is of another kind."""
    if error.errno in FULL or _is_cut_short(error):
        return storage_full(place, path)
    if error.errno in READ_ONLY or NO_TEMPORARY in str(error):
        return StorageReadOnly(
            f"{place} cannot be written to ({error.strerror or error}): whoever operates this must mount it writable "
            "or give this process the right to write there",
            path=str(path or error.filename or ""),
        )
    return None


def storage_full(place: str, path: str | Path = "") -> StorageFull:
    return StorageFull(
        f"{place} is full: whoever operates this must free space there or raise its quota; then try again",
        path=str(path),
    )


def _is_cut_short(error: OSError) -> bool:
    """Whether NumPy wrote less than it was given, which it tells without a number."""
    return error.errno is None and " requested and " in str(error) and str(error).endswith(" written")
