"""API keys: one record in the store, `keys.json`, that holds hashes only.

In the store, because that is the one place that every worker and every machine serving it reads anyway: a key
made or revoked by `mu2net keys` counts everywhere within seconds, without a restart. A key is 256 random
bits, so one round of SHA-256 hides it as well as a slow hash would, which is for passwords.
"""

import hashlib
import hmac
import logging
import re
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from models.errors import InvalidConfig, InvalidInput, Mu2NetError, NotFound, NotReady, UnknownKey
from models.files import ATTEMPTS, Files, change_file
from models.key_list import KEYS_FILE, Key, KeyList, Manages, decoded_keys, find_keys
from models.records import encode
from models.store import is_url, now, open_files

ALL_TASKS = "all"  # in a key: every task that is not private
TOKEN = re.compile(r"mu2net_([0-9a-f]{8})_([\w-]{43})")
NOBODY = "0" * 64  # what an unknown key's hash is compared with, so that it takes as long as a known one's
FIRST_LOOK_S = 3.0  # that a start waits for the keys

log = logging.getLogger("mu2net.keys")
audit = logging.getLogger("mu2net.audit")


def new_key(name: str, *, classify: tuple[str, ...], manages: tuple[Manages, ...], rate: str | None) -> tuple[Key, str]:
    """Return a new key's record and the key itself, which is kept nowhere."""
    key_id = secrets.token_hex(4)
    token = f"mu2net_{key_id}_{secrets.token_urlsafe(32)}"
    return Key(key_id, name, _digest(token), classify, manages, rate, created_at=now()), token


def key_files(store: str, place: str | None) -> Files:
    """Return the place of `keys.json`: the store, or a folder or URL that who publishes cannot write.

    Raises:
        InvalidConfig: the folder is not there.
    """
    if place is None:
        return open_files(store)[0]
    folder = place.removesuffix(f"/{KEYS_FILE}")
    if not is_url(folder) and not Path(folder).is_dir():
        raise InvalidConfig(f"there is no folder {folder!r} for {KEYS_FILE} (MU2NET_KEYS): make it, or name another")
    return open_files(folder)[0]


def add_key(files: Files, key: Key) -> None:
    _change(files, lambda found: replace(found, keys=(*found.keys, key)))


def revoke_key(files: Files, name: str) -> Key:
    """Revoke the key with this id or, if only one in use has it, this name; return it.

    Raises:
        UnknownKey: none has, or several have.
    """
    revoked: list[Key] = []

    def change(found: KeyList) -> KeyList:
        key = replace(_find(found, name), revoked_at=now())
        revoked[:] = [key]
        return replace(found, keys=tuple(key if other.id == key.id else other for other in found.keys))

    _change(files, change)
    return revoked[0]


def _find(found: KeyList, name: str) -> Key:
    in_use = [key for key in found.keys if key.revoked_at is None]
    named = [key for key in in_use if key.id == name] or [key for key in in_use if key.name == name]
    if len(named) == 1:
        return named[0]
    if named:
        raise UnknownKey(f"several keys are called {name!r}: name one by its id, {', '.join(key.id for key in named)}")
    known = ", ".join(f"{key.id} ({key.name})" for key in in_use) or "none"
    raise UnknownKey(f"no key in use has the id or name {name!r}; keys in use: {known}")


def _change(files: Files, change: Callable[[KeyList], KeyList]) -> None:
    def changed(data: bytes | None) -> bytes:
        return encode(change(KeyList() if data is None else decoded_keys(data)))

    with files.lock():
        is_done = change_file(files, KEYS_FILE, changed)
    if not is_done:
        raise InvalidInput(f"{files.shown(KEYS_FILE)} was changed by others {ATTEMPTS} times meanwhile: try again")


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class KeyRing:
    """The store's keys as this process knows them, read again by its own thread all the while."""

    def __init__(self, open_files: Callable[[], Files], *, poll_interval_s: float, is_demanded: bool = False) -> None:
        self._open_files = open_files
        self._is_demanded = is_demanded  # whether a missing file is an error instead of a server without keys
        self._files: Files | None = None
        self._poll_interval_s = poll_interval_s
        self._keys: Mapping[str, Key] | None = None  # by id; None until they could be read
        self._is_shut = False  # whether the store has a list of keys, be it empty
        self._trouble = ""
        self._stopped = threading.Event()
        self._looked = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="keys", daemon=True)

    def start(self) -> None:
        """Start reading; return when the keys are known, or after a moment if the store does not answer."""
        self._thread.start()
        self._looked.wait(FIRST_LOOK_S)

    def stop(self) -> None:
        self._stopped.set()

    @property
    def are_known(self) -> bool:
        """Tell whether there is any key, revoked ones included, as far as the store could be read."""
        return bool(self._keys)

    @property
    def is_required(self) -> bool:
        """Tell whether requests need a key: from the first one made, whether or not it was revoked since.

        So they do where the store's list of keys is there and empty, as in a copy of a store that has keys.

        Raises:
            NotReady: the keys could not be read yet; nobody is let in on a guess.
        """
        if self._keys is None:
            raise NotReady("not ready: the store's keys could not be read yet; the server's log says why")
        return self._is_shut

    def holder(self, token: str) -> Key | None:
        """Return the key in use that `token` is, in a time that does not tell how close it came."""
        parts = TOKEN.fullmatch(token)
        key = (self._keys or {}).get(parts[1]) if parts else None
        is_right = hmac.compare_digest(_digest(token), NOBODY if key is None else key.sha256)
        return key if is_right and key is not None and key.revoked_at is None else None

    def _watch(self) -> None:
        self._look()
        self._looked.set()
        while not self._stopped.wait(self._poll_interval_s):
            self._look()

    def _look(self) -> None:
        """Read the keys; where that fails those known stay in force, and the log says so once."""
        try:
            if self._files is None:
                self._files = self._open_files()
            found = find_keys(self._files)
            if found is None and self._is_demanded:
                raise NotFound(
                    f"there is no {self._files.shown(KEYS_FILE)}, and MU2NET_KEYS names it: make a first key with "
                    "'mu2net keys create --keys'"
                )
            keys = {key.id: key for key in found.keys} if found else {}
            _tell_changes(self._keys, keys)
            self._is_shut = found is not None
            self._keys = keys
            self._trouble = ""
        except (Mu2NetError, OSError) as error:
            if str(error) != self._trouble:
                log.error("the keys cannot be read, those read before stay in force: %s", error)
            self._trouble = str(error)


def _tell_changes(before: Mapping[str, Key] | None, now: Mapping[str, Key]) -> None:
    """Write a line of the audit for each key that was made or revoked since the last look."""
    if before is None:
        return
    for key in now.values():
        known = before.get(key.id)
        what = "key made" if known is None else "key revoked" if known.revoked_at != key.revoked_at else None
        if what is not None:
            about = {"key": key.id, "key_name": key.name, "classify": key.classify, "manages": key.manages}
            audit.info(what, extra=about)
    for key_id in before.keys() - now.keys():
        audit.warning("key gone", extra={"key": key_id})
