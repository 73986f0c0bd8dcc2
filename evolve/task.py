"""A task: labelled images, split into what is trained on, what is selected on and what is only reported.

Images are decoded once per image size and kept in memory-mapped files, so candidates of many sizes and
several worker processes share them.
"""

import hashlib
import inspect
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from evolve.sequences import MIN_PAIRS, in_order, is_sequence
from models import preprocess
from models.errors import ImageTooLarge, InvalidConfig, InvalidData, InvalidImage
from models.files import written_beside
from models.image_folder import (
    BESIDE_FROM,
    DataLimits,
    ImageEntry,
    ImageFolder,
    Progress,
    look_at_images,
    open_image_folder,
    unreadable,
)
from models.inspection import image_digests, require_choice
from models.labelled_table import Split
from models.names import TaskName

TEST_FRACTION = 0.2  # of a data set without splits
# Selecting among many candidates on few images overfits (on 125: 6 to 9 points between validation and
# test), so a small data set gives up a larger part: 500 images where a quarter of it is as many.
VAL_IMAGES = 500
VAL_FRACTION_MIN, VAL_FRACTION_MAX = 0.1, 0.25
EXAMPLES = 3  # of ignored files, named in one note
IMBALANCE = 10  # largest class over smallest, from which on a person is told


@dataclass(frozen=True, slots=True, eq=False)
class LabelledImages:
    """Images of one split with their labels, in a fixed order; decoded when asked for. Can be pickled."""

    names: tuple[str, ...]
    labels: Int64[np.ndarray, " images"]
    digests: tuple[str, ...]  # sha256 of each file
    source: Path
    limits: DataLimits
    cache_folder: Path

    def __len__(self) -> int:
        return len(self.names)

    def pixels(
        self, image_size: int, progress: Progress | None = None
    ) -> UInt8[np.ndarray, "images image_size image_size 3"]:
        """Return all images as `models.preprocess.load_pixels` gives them: read-only, mapped from the cache's file.

        Raises:
            InvalidData: the images have changed since the task was loaded, or cannot be decoded.
        """
        path = self.cache_folder / f"{self._cache_key(image_size)}.npy"
        shape = (len(self), image_size, image_size, 3)
        cached = _open_cached(path, shape)
        if cached is None:
            self._decode(path, shape, progress)
            cached = _open_cached(path, shape)
        assert cached is not None, f"{path} was written just now"
        return cached

    def has_pixels(self, image_size: int) -> bool:
        """Whether the images need not be decoded any more at this size."""
        return (self.cache_folder / f"{self._cache_key(image_size)}.npy").exists()

    def keep_pixels(self, pixels: UInt8[np.ndarray, "images image_size image_size 3"]) -> None:
        """Take what `pixels` returned on another machine instead of decoding the images."""
        path = self.cache_folder / f"{self._cache_key(pixels.shape[1])}.npy"
        with written_beside(path) as temporary:
            with temporary.open("r+b") as file:
                np.save(file, pixels)
            os.replace(temporary, path)

    def _cache_key(self, image_size: int) -> str:
        """Return a digest of all that decides about the pixels, the decoder included."""
        return hashlib.sha256("\n".join([*self.digests, str(image_size), _decoder()]).encode()).hexdigest()

    def _decode(self, path: Path, shape: tuple[int, ...], progress: Progress | None) -> None:
        with written_beside(path) as temporary:
            array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            _reserve(temporary)
            self._decode_into(array, progress)
            array.flush()
            os.replace(temporary, path)

    def _decode_into(self, array: np.ndarray, progress: Progress | None) -> None:
        problems: dict[str, str] = {}
        position = {name: index for index, name in enumerate(self.names)}

        def decode(entry: ImageEntry) -> None:
            try:
                data = folder.read(entry)
                if hashlib.sha256(data).hexdigest() != self.digests[position[entry.name]]:
                    raise InvalidImage("changed since the task was loaded")
                array[position[entry.name]] = preprocess.load_pixels(data, array.shape[1], self.limits.image)
            except (InvalidImage, ImageTooLarge) as error:
                problems[entry.name] = str(error)

        with open_image_folder(self.source, self.limits, to_judge=True) as folder:
            shown = folder.shown_as
            entries = [entry for entry in folder.entries if entry.name in position]
            folder.map(decode, entries, progress)
        problems |= dict.fromkeys(position.keys() - {e.name for e in entries}, "gone since the task was loaded")
        if problems:
            raise unreadable(problems, len(self), shown)


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What evolution gets: `train` to train on, `val` to select on, `test` (None: none given) to report on."""

    name: TaskName
    labels: tuple[str, ...]
    train: LabelledImages
    val: LabelledImages
    test: LabelledImages | None
    digest: str  # of the data and of how it is split
    skipped: Mapping[str, str]  # unreadable images that were left out, with the reason
    ignored: tuple[str, ...]  # files that are no images, or lie outside of the class folders
    hidden: tuple[str, ...]  # files that file managers and tools leave, or whose names begin with a dot
    nested: tuple[str, ...]  # images in folders within a class folder: of that class
    contradictory: tuple[str, ...]  # images that lie, byte for byte, in more than one class
    in_runs: bool  # split in runs of names, since neighbours are near copies of each other

    @property
    def num_classes(self) -> int:
        return len(self.labels)

    def describe(self) -> "TaskSummary":
        splits: list[tuple[Split, LabelledImages | None]] = [
            ("train", self.train),
            ("val", self.val),
            ("test", self.test),
        ]
        counts = {
            split: tuple(np.bincount(images.labels, minlength=self.num_classes).tolist())
            for split, images in splits
            if images is not None
        }
        learnt = {*self.train.digests, *self.val.digests}
        return TaskSummary(
            self.labels,
            counts,
            num_repeated=sum(digest in learnt for digest in self.test.digests) if self.test else 0,
            num_skipped=len(self.skipped),
            num_ignored=len(self.ignored),
            num_hidden=len(self.hidden),
            ignored_examples=self.ignored[:EXAMPLES],
            hidden_examples=self.hidden[:EXAMPLES],
            num_nested=len(self.nested),
            num_contradictory=len(self.contradictory),
            in_runs=self.in_runs,
        )


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """A task in numbers. `counts` has the number of images of each class, in the order of `labels`."""

    labels: tuple[str, ...]
    counts: Mapping[Split, tuple[int, ...]]
    num_repeated: int  # test images with an identical twin in train or val
    num_skipped: int
    num_ignored: int
    num_hidden: int
    ignored_examples: tuple[str, ...]
    hidden_examples: tuple[str, ...]
    num_nested: int
    num_contradictory: int
    in_runs: bool  # see `Task`

    @property
    def imbalance(self) -> float:
        """Training images of the largest class over those of the smallest."""
        return max(self.counts["train"]) / min(self.counts["train"])

    def missing(self, split: Split) -> tuple[str, ...]:
        """Return the classes without an image in `split`."""
        return tuple(label for label, count in zip(self.labels, self.counts[split], strict=True) if count == 0)

    def warnings(self) -> tuple[str, ...]:
        """Return what a person should know before trusting the measured quality."""
        notes = [
            f"{len(self.missing(split))} of {len(self.labels)} classes have no image in {split}, "
            f"such as {self.missing(split)[0]!r}"
            for split in self.counts
            if self.missing(split)
        ]
        if self.imbalance >= IMBALANCE:
            notes.append(f"the largest class has {self.imbalance:.0f} times the training images of the smallest")
        if self.num_repeated:
            notes.append(f"{self.num_repeated:,} test images are also among those trained or selected on")
        if self.num_skipped:
            notes.append(f"{self.num_skipped:,} unreadable images were skipped")
        if self.num_ignored:
            notes.append(
                f"{self.num_ignored:,} files were ignored: no images, or outside of the class folders"
                f"{_such_as(self.ignored_examples)}"
            )
        if self.num_hidden:
            notes.append(
                f"{self.num_hidden:,} hidden files were ignored: left by file managers or tools, or with names that "
                f"begin with a dot{_such_as(self.hidden_examples)}"
            )
        if self.num_nested:
            notes.append(
                f"{self.num_nested:,} images lie in folders within a class folder, and are taken for that class: "
                "if those are classes of their own, move them up"
            )
        if self.num_contradictory:
            notes.append(
                f"{self.num_contradictory:,} images lie in more than one class, the same byte for byte: no answer can "
                "be right for all of them"
            )
        if self.in_runs:
            notes.append(
                "images that follow each other by name are nearly the same, like frames of a film: what is held out "
                "is a run of each class, not single images"
            )
        return tuple(notes)


def load_task(
    name: TaskName,
    path: Path,
    *,
    seed: int,
    cache_folder: Path,
    val_fraction: float | None = None,
    limits: DataLimits = DataLimits(),
    skip_unreadable: bool | None = None,
    progress: Progress | None = None,
) -> Task:
    """Load labelled images and split them where their layout does not.

    Which images go to which split depends on `seed` and the images' content only, not on names or on the
    order on disk: a renamed, zipped or somewhat larger copy of the data is split (nearly) the same way, and
    identical images stay together. Each class keeps an image to train on; val, then test, get one of each
    class that has enough. Only where neighbours by name are near copies of each other (`evolve.sequences`)
    names decide: a run of each class is held out.

    Args:
        name: of the task.
        path: see `open_image_folder`.
        seed: of the split.
        cache_folder: for decoded images; made if need be, may be deleted at any time.
        val_fraction: part of the training images that becomes val where the layout has none; None for 500
            images, but at least a tenth and at most a quarter.
        limits: what is allowed.
        skip_unreadable: leave out images that cannot be decoded, instead of refusing the data; None where who asks
            has no such choice: the refusal does not offer it.
        progress: called with images done and images in all, while images are checked.

    Raises:
        InvalidData: the data cannot make a task.
        InvalidConfig: `val_fraction` is not between 0 and 1.
    """
    if val_fraction is not None and not 0 < val_fraction < 1:
        raise InvalidConfig(f"val_fraction is {val_fraction}; it must lie between 0 and 1: try 0.2, or leave it out")
    with open_image_folder(path, limits) as folder:
        digests, problems = _looked_at(folder, cache_folder, progress)
        labels, ignored, hidden, shown = folder.labels, folder.ignored, folder.hidden, folder.shown_as
        nested = frozenset(folder.nested) - problems.keys()
        if problems and not skip_unreadable:
            raise unreadable(problems, len(digests), shown, can_skip=skip_unreadable is not None)
        kept = {entry: digest for entry, digest in digests.items() if entry.name not in problems}
        in_runs = _is_sequence(folder, {entry: kept[entry] for entry in _to_split(kept)}, cache_folder)
    _check_classes(kept, labels, shown)
    require_choice(kept, shown)
    splits = _split(kept, seed, val_fraction, in_runs=in_runs)

    def images(split: Split) -> LabelledImages:
        return LabelledImages(
            tuple(entry.name for entry in splits[split]),
            np.array([entry.label for entry in splits[split]], dtype=np.int64),
            tuple(kept[entry] for entry in splits[split]),
            path.absolute(),
            limits,
            cache_folder.absolute(),
        )

    return Task(
        name,
        labels,
        train=images("train"),
        val=images("val"),
        test=images("test") if splits["test"] else None,
        digest=_task_digest(labels, splits, kept),
        skipped=problems,
        ignored=ignored,
        hidden=hidden,
        nested=tuple(entry.name for entry in kept if entry.name in nested),
        contradictory=_contradictory(kept),
        in_runs=in_runs,
    )


def _such_as(names: Sequence[str]) -> str:
    return f", such as {', '.join(ascii(name) if not name.isprintable() else repr(name) for name in names)}"


def _contradictory(digests: Mapping[ImageEntry, str]) -> tuple[str, ...]:
    labels: dict[str, set[int]] = defaultdict(set)
    for entry, digest in digests.items():
        labels[digest].add(entry.label)
    return tuple(entry.name for entry, digest in digests.items() if len(labels[digest]) > 1)


def has_test_part(path: Path, *, limits: DataLimits = DataLimits()) -> bool:
    """Whether the layout of labelled images sets some of them apart to be judged on."""
    with open_image_folder(path, limits, to_judge=True) as folder:
        return any(entry.split == "test" for entry in folder.entries)


def load_images(
    path: Path, labels: Sequence[str], *, cache_folder: Path, limits: DataLimits = DataLimits()
) -> LabelledImages:
    """Return images to be judged, labelled by a route's classes: the test part, or all where there are no parts.

    Classes may be missing, as many as all but one; images must all be readable.

    Raises:
        InvalidData: no such images, or a class that is not among `labels`.
    """
    with open_image_folder(path, limits, to_judge=True) as folder:
        entries = [entry for entry in folder.entries if entry.split == "test"] or list(folder.entries)
        unknown = sorted({folder.labels[entry.label] for entry in entries} - set(labels))
        if unknown:
            raise InvalidData(
                f"{folder.shown_as} has the class {unknown[0]!r}, which the route does not know; its classes are "
                f"{', '.join(labels[:20])}: rename or remove it, or evolve the task with these images"
            )
        known = {label: index for index, label in enumerate(labels)}
        index = [known.get(label) for label in folder.labels]  # None: only outside of what is judged
        digest_of = image_digests(folder)
    return LabelledImages(
        tuple(entry.name for entry in entries),
        np.array([index[entry.label] for entry in entries], dtype=np.int64),
        tuple(digest_of[entry] for entry in entries),
        path.absolute(),
        limits,
        cache_folder.absolute(),
    )


def _looked_at(
    folder: ImageFolder, cache_folder: Path, progress: Progress | None
) -> tuple[dict[ImageEntry, str], dict[str, str]]:
    """Return the images' digests and problems. What was found is remembered: the same bytes are decoded once."""
    path = cache_folder / f"{_digest_of([folder.shown_as, str(folder.limits.image), _decoder()])}.looks.json"
    try:
        known = {str(digest): problem and str(problem) for digest, problem in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, AttributeError):  # not there yet, or damaged: look again
        known = {}
    digests, problems = look_at_images(folder, progress, known=known, beside_from=BESIDE_FROM)
    looks = {digest: problems.get(entry.name) for entry, digest in digests.items()}
    if looks != known:
        _remember(path, looks)
    return digests, problems


def _is_sequence(folder: ImageFolder, digests: Mapping[ImageEntry, str], cache_folder: Path) -> bool:
    """Return whether the images are like their neighbours by name, remembered in the cache as well."""
    if len(digests) < MIN_PAIRS:
        return False
    lines = [f"{entry.name} {digest}" for entry, digest in digests.items()]
    path = cache_folder / f"{_digest_of([*lines, str(folder.limits.image), _decoder()])}.sequence.json"
    try:
        return bool(json.loads(path.read_bytes()))
    except (OSError, ValueError):
        found = is_sequence(folder, list({digest: entry for entry, digest in digests.items()}.values()))
    _remember(path, found)
    return found


def _decoder() -> str:
    """Return what decides, besides its bytes, how an image is decoded and whether it can be."""
    return f"{preprocess.decoder_version()} {inspect.getsource(preprocess)}"


def _remember(path: Path, found: object) -> None:
    with written_beside(path) as temporary:
        temporary.write_text(json.dumps(found))
        os.replace(temporary, path)


def _check_classes(kept: Mapping[ImageEntry, str], labels: Sequence[str], shown: str) -> None:
    present = {entry.label for entry in kept if entry.split in {"train", None}}
    bare = [label for index, label in enumerate(labels) if index not in present]
    if bare:
        raise InvalidData(f"{shown}: no image to train on of the class {bare[0]!r} can be read: add some")


def _to_split(entries: Iterable[ImageEntry]) -> list[ImageEntry]:
    """Return the images that the layout leaves to be split: none where it has both val and test, or val and train."""
    splits = {entry.split for entry in entries}
    return [entry for entry in entries if entry.split is None or (entry.split == "train" and "val" not in splits)]


def _split(
    digests: Mapping[ImageEntry, str], seed: int, val_fraction: float | None, *, in_runs: bool
) -> dict[Split, tuple[ImageEntry, ...]]:
    given: dict[Split | None, list[ImageEntry]] = defaultdict(list)
    for entry in digests:
        given[entry.split].append(entry)
    test, train = given["test"], given["train"]
    if given[None]:
        test, train = _take(given[None], digests, f"test {seed}", TEST_FRACTION, keep=2, in_runs=in_runs)
    val = given["val"]
    if not val:
        fraction = default_val_fraction(len(train)) if val_fraction is None else val_fraction
        val, train = _take(train, digests, f"val {seed}", fraction, keep=1, in_runs=in_runs)
    return {"train": _ordered(train), "val": _ordered(val), "test": _ordered(test)}


def default_val_fraction(num_images: int) -> float:
    """Return the part of `num_images` training images to select on."""
    return min(VAL_FRACTION_MAX, max(VAL_FRACTION_MIN, VAL_IMAGES / num_images))


def _take(
    entries: Sequence[ImageEntry],
    digests: Mapping[ImageEntry, str],
    salt: str,
    fraction: float,
    *,
    keep: int,
    in_runs: bool,
) -> tuple[list[ImageEntry], list[ImageEntry]]:
    """Return `fraction` of each class (at least one, where `keep` different images remain) and the rest."""
    taken: list[ImageEntry] = []
    for members in in_order(entries):
        twins: dict[str, list[ImageEntry]] = defaultdict(list)
        for entry in members:
            twins[digests[entry]].append(entry)
        count = min(max(1, round(fraction * len(twins))), max(0, len(twins) - keep))
        hashes = {digest: hashlib.sha256(f"{salt} {digest}".encode()).digest() for digest in twins}
        if in_runs:
            order = list(twins)  # by name; the run begins where the smallest hash is, or as near as it fits
            start = min(order.index(min(order, key=lambda digest: hashes[digest])), len(order) - count)
            order = order[start:]
        else:
            order = sorted(twins, key=lambda digest: hashes[digest])
        taken += [entry for digest in order[:count] for entry in twins[digest]]
    chosen = set(taken)
    return taken, [entry for entry in entries if entry not in chosen]


def _ordered(entries: Sequence[ImageEntry]) -> tuple[ImageEntry, ...]:
    return tuple(sorted(entries, key=lambda entry: entry.name))


def _task_digest(
    labels: Sequence[str], splits: Mapping[Split, Sequence[ImageEntry]], digests: Mapping[ImageEntry, str]
) -> str:
    return _digest_of(
        [
            *labels,
            *(f"{split} {entry.label} {digests[entry]}" for split, entries in splits.items() for entry in entries),
        ]
    )


def _digest_of(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _reserve(path: Path) -> None:
    """Give a sparse file its space now: a full disk is then an OSError here, and not a bus error when writing."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _open_cached(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):  # not there yet, or damaged: decode again
        return None
    return array if isinstance(array, np.ndarray) and array.shape == shape and array.dtype == np.uint8 else None
