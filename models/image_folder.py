"""Labelled images in a folder or a zip, inspected before anything is made of them.

The command line and HTTP uploads both go through here, so they refuse the same input with the same words.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeVar

from models.cores import usable_cores
from models.errors import ImageTooLarge, InvalidData, InvalidImage
from models.image_files import FolderFiles, ZipFiles
from models.preprocess import ImageLimits, load_pixels

Split = Literal["train", "val", "test"]
Progress = Callable[[int, int], None]  # images done, images in all
Result = TypeVar("Result")

SPLIT_FOLDERS: Mapping[str, Split] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
JUNK = frozenset({"__macosx", "thumbs.db", "desktop.ini"})  # left by file managers, as is all that begins with a dot
MAX_LABEL_LENGTH = 100
CHECK_SIZE = 8  # pixels; small, so that JPEG files are decoded at their coarsest scale
THREADED_BYTES = 16 * 2**10  # measured: decoding smaller files, threads only pass the GIL to and fro (1.5 times slower)
EXAMPLES = 5  # named in one message
LAYOUT = "give one folder per class, or train/ and test/ (and val/) with one folder per class in each"


@dataclass(frozen=True, slots=True)
class DataLimits:
    """What one data set may be at most."""

    max_images: int = 2_000_000
    max_total_bytes: int = 64 * 2**30  # of all images, unpacked
    max_expansion: int = 200  # how many times its own size a zip may unpack to
    image: ImageLimits = ImageLimits()


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One labelled image. `name` is its path below `train/` and the like or below the class folders' parent."""

    name: str
    label: int
    split: Split | None  # None: the layout has no splits


class ImageFolder:
    """An open folder or zip of labelled images; a context manager. `read` may be called from several threads."""

    def __init__(
        self,
        files: FolderFiles | ZipFiles,
        top: str,
        *,
        labels: tuple[str, ...],
        entries: tuple[ImageEntry, ...],
        ignored: tuple[str, ...],
        limits: DataLimits,
    ) -> None:
        self.labels = labels  # in natural order: class 10 follows class 9
        self.entries = entries  # sorted by name
        self.ignored = ignored  # files that are no images, or lie outside of the class folders
        self.limits = limits
        self._files = files
        self._top = top

    def read(self, entry: ImageEntry) -> bytes:
        """Return an image file's bytes.

        Raises:
            ImageTooLarge: more bytes than the limit.
            InvalidImage: gone, or damaged within the zip.
        """
        return self._files.read(self._top + entry.name, self.limits.image.max_bytes)

    def map(
        self,
        work: Callable[[ImageEntry], Result],
        entries: Sequence[ImageEntry],
        progress: Progress | None = None,
    ) -> list[Result]:
        """Return `work` of each entry, in order; on all cores where the files are large enough for that to pay."""
        size = sum(self._files.sizes[self._top + entry.name] for entry in entries)
        workers = usable_cores() if size > THREADED_BYTES * len(entries) else 1
        with ThreadPoolExecutor(workers) as pool:
            results: list[Result] = []
            for result in pool.map(work, entries) if workers > 1 else map(work, entries):
                results.append(result)
                if progress is not None:
                    progress(len(results), len(entries))
        return results

    def close(self) -> None:
        self._files.close()

    def __enter__(self) -> "ImageFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_image_folder(path: Path, limits: DataLimits = DataLimits(), *, shown_as: str | None = None) -> ImageFolder:
    """Open labelled images: one folder per class, or `train/`, `test/` and `val/` with one folder per class in each.

    A folder that wraps all this is seen through. Images are known by their suffix and not decoded here:
    `find_unreadable` does that.

    Args:
        path: a folder or a zip.
        limits: what is allowed.
        shown_as: what messages call it; None for its path.

    Raises:
        InvalidData: no such data, a hostile or damaged zip, over a limit, or classes that cannot make a task.
    """
    shown = repr(str(path)) if shown_as is None else shown_as
    files = _open_files(path, limits, shown)
    try:
        return _arrange(files, limits, shown)
    except BaseException:
        files.close()
        raise


def find_unreadable(folder: ImageFolder, progress: Progress | None = None) -> dict[str, str]:
    """Decode every image and return what is wrong with those that cannot be used, by name."""

    def problem(entry: ImageEntry) -> str | None:
        try:
            load_pixels(folder.read(entry), CHECK_SIZE, folder.limits.image)
        except (InvalidImage, ImageTooLarge) as error:
            return str(error)
        return None

    problems = folder.map(problem, folder.entries, progress)
    return {entry.name: text for entry, text in zip(folder.entries, problems, strict=True) if text is not None}


def unreadable(problems: Mapping[str, str], total: int, shown_as: str) -> InvalidData:
    """Return the error for images that cannot be used, naming the first five."""
    listed = "".join(f"\n  {name}: {problems[name]}" for name in sorted(problems)[:EXAMPLES])
    return InvalidData(
        f"{shown_as}: {len(problems):,} of {total:,} images cannot be used; repair or remove them, "
        f"or have them skipped (--skip-unreadable):{listed}{_rest(len(problems), separator=chr(10) + '  ')}"
    )


def _open_files(path: Path, limits: DataLimits, shown: str) -> FolderFiles | ZipFiles:
    if path.is_dir():
        return FolderFiles(path, shown)
    if not path.exists():
        raise InvalidData(f"there is no {shown}: check the path; {LAYOUT}")
    if not path.is_file() or not (path.suffix.lower() == ".zip" or _begins_like_zip(path)):
        raise InvalidData(f"{shown} is neither a folder nor a zip: {LAYOUT}, as a folder or a .zip of it")
    return ZipFiles(path, shown, max_members=2 * limits.max_images, max_expansion=limits.max_expansion)


def _begins_like_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


@dataclass(frozen=True, slots=True)
class _Found:
    """An image in a class folder. `name` is below the top folder."""

    name: str
    folder: str  # the class folder's own name
    split: Split | None


def _arrange(files: FolderFiles | ZipFiles, limits: DataLimits, shown: str) -> ImageFolder:
    names = [name for name in files.sizes if not _is_junk(name)]
    images = [name for name in names if name.lower().endswith(SUFFIXES)]
    if not images:
        others = f"; it has {len(names):,} other files such as {min(names)!r}" if names else ""
        raise InvalidData(f"{shown} has no images ({', '.join(SUFFIXES)}){others}: {LAYOUT}")
    folders = {name for name in files.folders if not _is_junk(name)}
    top = _top(images, folders)
    images = [name.removeprefix(top) for name in images if name.startswith(top)]
    folders = {name.removeprefix(top) for name in folders if name.startswith(top)}
    splits = _splits(images, folders, shown)
    found = [image for image in (_locate(name, splits) for name in sorted(images)) if image is not None]
    class_folders = {
        (split, name.removeprefix(prefix))
        for prefix, split in splits.items()
        for name in folders
        if name.startswith(prefix) and "/" not in name.removeprefix(prefix)
    }
    labels = _labels(found, class_folders, shown)
    _check_limits([files.sizes[top + image.name] for image in found], limits, shown)
    index = {_normal(label): number for number, label in enumerate(labels)}
    used = {top + image.name for image in found}
    return ImageFolder(
        files,
        top,
        labels=labels,
        entries=tuple(ImageEntry(image.name, index[_normal(image.folder)], image.split) for image in found),
        ignored=tuple(sorted(name for name in names if name not in used)),
        limits=limits,
    )


def _is_junk(name: str) -> bool:
    return any(part.startswith(".") or part.lower() in JUNK for part in name.split("/"))


def _top(images: Sequence[str], folders: set[str]) -> str:
    """Return the prefix of the folder that holds the split or class folders: "" or, where folders wrap it, theirs."""
    top = ""
    while True:
        children = _children(folders, top)
        has_images = any("/" not in name.removeprefix(top) for name in images if name.startswith(top))
        if len(children) != 1 or has_images:
            return top
        (child,) = children
        if child.lower() in SPLIT_FOLDERS or not _children(folders, f"{top}{child}/"):
            return top
        top = f"{top}{child}/"


def _children(folders: set[str], prefix: str) -> set[str]:
    below = (name.removeprefix(prefix) for name in folders if name.startswith(prefix))
    return {name for name in below if "/" not in name}


def _splits(images: Sequence[str], folders: set[str], shown: str) -> dict[str, Split | None]:
    """Return the prefixes below which the class folders lie, each with its split."""
    children = {name.split("/")[0] for name in images if "/" in name}
    named = {child: SPLIT_FOLDERS[child.lower()] for child in sorted(children) if child.lower() in SPLIT_FOLDERS}
    if not named or not any(_children(folders, f"{child}/") for child in named):
        if named and len(named) == len(children):
            raise InvalidData(f"{shown} has images directly in {_list(named)}, without their classes: {LAYOUT}")
        return {"": None}  # a class may well be called "train"
    others = children - named.keys()
    if others:
        raise InvalidData(f"{shown} has {_list(others)} beside {_list(named)}: {LAYOUT}")
    if len(set(named.values())) < len(named):
        raise InvalidData(f"{shown} has more than one folder of a split among {_list(named)}: merge them")
    if "train" not in named.values():
        raise InvalidData(f"{shown} has {_list(named)} but no images in 'train': {LAYOUT}")
    for child in named:
        if not any(name.startswith(f"{child}/") and name.count("/") > 1 for name in images):
            raise InvalidData(
                f"{shown} has images directly in {child!r}, without their classes: put each into its class's folder"
            )
    return {f"{child}/": split for child, split in named.items()}


def _locate(name: str, splits: Mapping[str, Split | None]) -> _Found | None:
    for prefix, split in splits.items():
        folder, slash, _ = name.removeprefix(prefix).partition("/")
        if name.startswith(prefix) and slash:
            return _Found(name, folder, split)
    return None


def _labels(found: Sequence[_Found], class_folders: set[tuple[Split | None, str]], shown: str) -> tuple[str, ...]:
    """Return the classes' names in natural order; InvalidData if they cannot make a task."""
    names = {name for _, name in class_folders}
    _check_names(names, shown)
    filled = {(image.split, image.folder) for image in found}
    to_learn = {name for split, name in filled if split in {"train", None}}
    if not found:
        raise InvalidData(f"{shown} has no images in class folders: {LAYOUT}")
    empty = {name for split, name in class_folders - filled if split in {"train", None}}
    if empty:
        raise InvalidData(f"{shown} has no images of the class {_list(empty)}: add some, or remove the folder")
    for split in ("val", "test"):
        unlearnt = {name for where, name in filled if where == split} - to_learn
        if unlearnt:
            raise InvalidData(
                f"{shown} has the class {_list(unlearnt)} in {split} but not in train: add it to train, "
                f"or remove it from {split}"
            )
    if len(to_learn) < 2:
        raise InvalidData(f"{shown} has the one class {_list(to_learn)}; at least two are needed: {LAYOUT}")
    return tuple(sorted((_label(name) for name in to_learn), key=natural_order))


def _check_names(names: set[str], shown: str) -> None:
    alike: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        label = _label(name)
        if not label.isprintable() or not label or len(label) > MAX_LABEL_LENGTH:
            raise InvalidData(
                f"{shown} has a class folder {name[:MAX_LABEL_LENGTH]!r}; a class's name has 1 to {MAX_LABEL_LENGTH} "
                "printable characters: rename it"
            )
        alike[_normal(name)].append(name)
    for group in alike.values():
        if len(group) > 1:
            listed = " and ".join(ascii(name) for name in group)  # else the same letters might be printed twice
            raise InvalidData(
                f"{shown} has the class folders {listed}, which differ only in case, spaces or the form of their "
                "letters: merge or rename them"
            )


def _check_limits(sizes: Sequence[int], limits: DataLimits, shown: str) -> None:
    if len(sizes) > limits.max_images:
        raise InvalidData(
            f"{shown} has {len(sizes):,} images; at most {limits.max_images:,} are allowed: leave some out"
        )
    if sum(sizes) > limits.max_total_bytes:
        raise InvalidData(
            f"{shown} has images of {sum(sizes):,} bytes in all; at most {limits.max_total_bytes:,} are allowed: "
            "scale them down or leave some out"
        )


def _label(folder: str) -> str:
    return " ".join(unicodedata.normalize("NFC", folder).split())


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", _label(name).casefold())


def natural_order(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    """Order by the numbers in a name as numbers, before letters: 2, 10, a."""
    parts = re.findall(r"\d+|\D+", name)
    return [(False, int(part), "") if part.isdecimal() else (True, 0, part.casefold()) for part in parts], name


def _list(names: set[str] | Mapping[str, object]) -> str:
    listed = ", ".join(repr(name) for name in islice(sorted(names), EXAMPLES))
    return listed + _rest(len(names), separator=", ")


def _rest(total: int, *, separator: str) -> str:
    return f"{separator}and {total - EXAMPLES:,} more" if total > EXAMPLES else ""
