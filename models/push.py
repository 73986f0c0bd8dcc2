"""Push: a release copied to another store, only the missing objects. From staging to production, and for backup."""

from dataclasses import dataclass
from pathlib import Path

from models.collect import release_objects
from models.errors import InvalidConfig, StoreNotFound
from models.files import Files
from models.key_list import KEYS_FILE, KeyList, find_keys
from models.records import encode
from models.release import Release
from models.signatures import Signer, add_signatures, fitting_signatures, signed_content
from models.store import ObjectSuffix, Store


@dataclass(frozen=True, slots=True)
class Pushed:
    """`is_new` is false where the other store's newest state had the very same routes already."""

    release: Release  # as the other store has it
    is_new: bool
    copied: int  # objects
    copied_bytes: int
    present: int  # objects that were there already
    is_held: bool  # a person holds another release there, so this one is pending
    needs_keys: bool = False  # the source has API keys, and the other store has none
    is_shut: bool = False  # servers of the other store refuse every request until a key is made for it


def push(
    source: Store,
    target: str | Path,
    number: int | None = None,
    *,
    cache: Path | None = None,
    signer: Signer | None = None,
) -> Pushed:
    """Copy a release to the store at `target`, which is made if there is none, and make it the active one there.

    It keeps its number if that is higher than all there, else it gets the next. Each object is checked
    against its digest on the way. A hold on the other store is respected. Signatures go along if the number stays;
    with `signer` the release is signed anew there. API keys stay where they are: they are secrets of the store that
    they were made for. Of a store with keys, a new copy lets nobody in until it has keys of its own; a store that was
    there before is left as open as its operator has it.

    Raises:
        InvalidConfig: the other store grew from another root.
        StoreError: a file is missing or damaged; the other store's releases are as they were.
    """
    release = source.release(number)
    copy = _Copy(source, release)
    try:
        found = Store.open(target, cache=cache)
    except StoreNotFound:
        made = Store.begin(target, copy.first, cache=cache)
        copy.sign(made, release, signer)
        return copy.result(made, release, is_new=True)
    if found.release().root != release.root:
        raise InvalidConfig(
            f"{target} grew from another root than {source.files.shown()}: push to a store made from this one"
        )
    copy.objects(found)
    newest = found.newest()
    if (newest.tasks, newest.precisions) == (release.tasks, release.precisions):
        copy.sign(found, newest, signer)
        return copy.result(found, newest, is_new=False)
    found.signer = copy.signatures if signer is None else signer
    reason = f"pushed: release {release.number} ({release.reason})"
    published = found.publish(
        lambda _: release.tasks, reason=reason, at_least=release.number, precisions=release.precisions
    )
    return copy.result(found, published, is_new=True)


class _Copy:
    """One release on its way to one store."""

    def __init__(self, source: Store, release: Release) -> None:
        self._source = source
        self._release = release
        self._copied = self._bytes = self._present = 0

    def first(self, target: Store) -> Release:
        if self._source.files.exists(KEYS_FILE) and not target.files.exists(KEYS_FILE):
            target.files.create(KEYS_FILE, encode(KeyList()))  # before the store can be opened
        self.objects(target)
        return self._release

    def objects(self, target: Store) -> None:
        """Copy what is missing, route records last."""
        needed = release_objects(self._source, self._release)
        present = {info.name for info in target.files.infos("objects")}
        self._present = len(needed & present)
        for name in sorted(needed & present):
            target.files.touch(name)
        for name in sorted(needed - present, key=lambda name: (name.endswith(".json"), name)):
            digest, suffix = name.removeprefix("objects/").split(".")
            data = self._source.read_object(digest, _suffix(suffix), needed_by=f"release {self._release.number}")
            target.put_object(data, _suffix(suffix))
            self._copied += 1
            self._bytes += len(data)

    def sign(self, target: Store, release: Release, signer: Signer | None) -> None:
        with target.files.lock():
            self.signatures(target.files, release)
            if signer is not None:
                signer(target.files, release)

    def signatures(self, files: Files, release: Release) -> None:
        """Copy the signatures that also fit the release there: it has the same number, root and routes."""
        if signed_content(release) == signed_content(self._release):
            made = fitting_signatures(self._source.files, self._release)
            if made:
                add_signatures(files, release.number, made)

    def result(self, target: Store, release: Release, *, is_new: bool) -> Pushed:
        found = find_keys(target.files)
        return Pushed(
            release,
            is_new,
            self._copied,
            self._bytes,
            self._present,
            target.current().is_held,
            needs_keys=self._source.files.exists(KEYS_FILE) and not (found and found.keys),
            is_shut=found is not None and not found.keys,
        )


def _suffix(text: str) -> ObjectSuffix:
    for suffix in ("safetensors", "onnx", "json"):
        if text == suffix:
            return suffix
    raise AssertionError(f"objects never end in {text!r}")
