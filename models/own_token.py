"""The own user's token: a secret in a file that only one user of this machine can read.

Whoever can read the file may do with a server without API keys what its user may. An address would not do as
the proof: behind a proxy, and for a page of another site in a browser, every request comes from this machine.
One token serves all servers of a user.
"""

import os
import re
import secrets
import stat
from pathlib import Path

from models.errors import InvalidConfig

FILE = "token"
TOKEN = re.compile(r"mu2net_own_[\w-]{43}")
MOST_BYTES = 256


def default_folder() -> Path:
    return Path.home() / ".cache" / "mu2net"


def own_token(folder: Path) -> str:
    """Return the token that is kept in `folder`, made if there is none; the folder is made for this user alone.

    Raises:
        InvalidConfig: the file cannot be read or written, other users can read it, or it holds something else.
    """
    try:
        for _ in range(2):
            found = find_own_token(folder)
            if found is not None:
                return found
            _make(folder)
        raise InvalidConfig(f"{folder / FILE} comes and goes: is another program deleting it?")
    except OSError as error:
        raise InvalidConfig(
            f"the token of this machine's user cannot be kept in {folder} ({error.strerror}): make that folder "
            "writable, or set MU2NET_CACHE to one that is"
        ) from error


def find_own_token(folder: Path) -> str | None:
    """Return the token that is kept in `folder`, None if there is none.

    Raises:
        InvalidConfig: other users can read the file, or it holds something else.
        OSError: it cannot be read.
    """
    path = folder / FILE
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise InvalidConfig(
                f"{path} is not a secret of this user: it belongs to user {status.st_uid} and has mode "
                f"{stat.S_IMODE(status.st_mode):04o}, not to {os.geteuid()} with 0600: delete it, and the next start "
                "of a server makes a new one"
            )
        text = file.read(MOST_BYTES).decode(errors="replace").strip()
    if not TOKEN.fullmatch(text):
        raise InvalidConfig(f"{path} holds no token: delete it, and the next start of a server makes a new one")
    return text


def _make(folder: Path) -> None:
    """Write a new token, unless another process is faster; it appears whole."""
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = folder / f".new-{secrets.token_hex(8)}"
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w") as file:
            os.fchmod(descriptor, 0o600)
            file.write(f"mu2net_own_{secrets.token_urlsafe(32)}\n")
            file.flush()
            os.fsync(descriptor)
        os.link(temporary, folder / FILE)  # unlike a rename, a link never replaces
    except FileExistsError:
        pass
    finally:
        temporary.unlink(missing_ok=True)
