"""What killed writers leave behind: found by its name and age, and deleted by whoever runs next.

Apart from `models.uploads`, which needs the queue's database: the process that proves a release must start quickly.
"""

import tempfile
from contextlib import suppress
from pathlib import Path

from models.files import abandoned, remove

UNDER_WAY_S = 3600.0  # after which an upload without a job is nobody's, nor what a writer left behind
FORM_PREFIX = "mu2net-upload-"  # of folders for temporary files that hold the images of one request


def drop_leftovers(folder: Path, *, older_than_s: float = UNDER_WAY_S) -> int:
    """Delete what killed writers left below `folder`, a store's or a cache, and of requests; return the bytes.

    Much of it is images: an upload's copy, what was unpacked or decoded of it.
    """
    found = abandoned(folder, older_than_s=older_than_s)
    with suppress(OSError):  # there is no folder for temporary files at all
        temporary = Path(tempfile.gettempdir())
        found += abandoned(temporary, older_than_s=older_than_s, prefixes=[FORM_PREFIX], is_deep=False)
    for path, _, _ in found:
        with suppress(OSError):  # it may only be read, or is another user's
            remove(path)
    return sum(size for _, size, _ in found)
