"""Labelled images in a folder or a zip, inspected before anything is made of them.

The command line and HTTP uploads both go through here, so they refuse the same input with the same words.
"""

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from models.cores import usable_cores
from models.errors import ImageTooLarge, InvalidData, InvalidImage
from models.image_files import FolderFiles, ZipFiles
from models.labelled_table import LabelledTable, Split, TableFiles, is_table, read_table
from models.looking import NOTHING_KNOWN, Look, look_at, look_beside
from models.preprocess import CONTAINER_BRANDS, ImageLimits

Progress = Callable[[int, int], None]  # images done, images in all
Result = TypeVar("Result")

SPLIT_FOLDERS: Mapping[str, Split] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "training": "train",
    "dev": "val",
    "testing": "test",
}
# what people add to a part's name: train_set, test-images, ValData
PART_WORDS = "set|sets|data|dataset|image|images|img|imgs|split|part|folder|files|samples"
PART = re.compile(
    rf"(?:(?:{PART_WORDS})[ _.-]+)*({'|'.join(sorted(SPLIT_FOLDERS, key=len, reverse=True))})"
    rf"(?:[ _.-]*(?:{PART_WORDS}))*"
)
WORD = re.compile(r"[a-z]+")
SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".heic", ".heif", ".hif", ".avif"),
)
SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")  # of files whose name has no suffix
# left by file managers and tools; of other folders that begin with a dot, one with images may be meant as a class
JUNK_FILES = frozenset({"thumbs.db", "desktop.ini"})
JUNK_FOLDERS = frozenset(
    [
        "__macosx",
        ".git",
        ".svn",
        ".hg",
        ".dvc",
        ".cache",
        ".thumbnails",
        ".ipynb_checkpoints",
        ".appledouble",
        ".trash",
        ".trashes",
        ".trash-1000",
        ".spotlight-v100",
        ".fseventsd",
        ".documentrevisions-v100",
        ".temporaryitems",
        ".idea",
        ".vscode",
        ".venv",
        ".huggingface",
        ".dolt",
        ".@__thumb",
        ".picasaoriginals",
        ".comments",
        ".xvpics",
    ]
)
JOINERS = "\u200c\u200d"  # ZERO WIDTH (NON-)JOINER: Persian, Sinhala and others are spelt with them
MAX_LABEL_LENGTH = 100
BESIDE_FROM = 10_000  # images: to start processes costs as much as to decode some thousand small ones
THREADED_BYTES = 16 * 2**10  # measured: decoding smaller files, threads only pass the GIL to and fro (1.5 times slower)
EXAMPLES = 5  # named in one message
LAYOUT = "give one folder per class, or train/ and test/ (and val/) with one folder per class in each"
TABLE_LAYOUT = "give each image a row with its class"


@dataclass(frozen=True, slots=True)
class DataLimits:
    """What one data set may be at most."""

    max_images: int = 2_000_000
    max_total_bytes: int = 64 * 2**30  # of all images, unpacked
    max_expansion: int = 200  # how many times its own size a zip may unpack to
    max_threads: int | None = None  # that decode, each with an image in memory; None: one a core
    image: ImageLimits = ImageLimits()

    @property
    def workers(self) -> int:
        """How many images are decoded at once."""
        return min(usable_cores(), self.max_threads or usable_cores())


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One labelled image. `name` is its path below the top folder, or what a table calls it: `1.jpg (line 2)`."""

    name: str
    label: int
    split: Split | None  # None: the layout has no splits


class ImageFolder:
    """Open labelled images of a folder, zip or table; a context manager. `read` may be called from several threads."""

    def __init__(
        self,
        files: FolderFiles | ZipFiles | TableFiles,
        top: str,
        *,
        shown_as: str,
        labels: tuple[str, ...],
        entries: tuple[ImageEntry, ...],
        ignored: tuple[str, ...],
        hidden: tuple[str, ...],
        nested: tuple[str, ...],
        limits: DataLimits,
    ) -> None:
        self.shown_as = shown_as  # what messages call it
        self.labels = labels  # in natural order: class 10 follows class 9
        self.entries = entries  # sorted by name
        self.ignored = ignored  # files that are no images, or lie outside of the class folders
        self.hidden = hidden  # what file managers and tools leave, and all else whose name begins with a dot
        self.nested = nested  # images in folders within a class folder
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

    def paths(self) -> list[str] | None:
        """Return where the image files lie, in the order of `entries`; None if they are within another file."""
        if isinstance(self._files, ZipFiles):
            return None
        return [self._files.path(f"{self._top}{entry.name}") for entry in self.entries]

    def map(
        self,
        work: Callable[[ImageEntry], Result],
        entries: Sequence[ImageEntry],
        progress: Progress | None = None,
    ) -> list[Result]:
        """Return `work` of each entry, in order; on all cores where the files are large enough for that to pay."""
        size = sum(self._files.sizes[self._top + entry.name] for entry in entries)
        workers = self.limits.workers if size > THREADED_BYTES * len(entries) else 1
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


def open_image_folder(
    path: Path, limits: DataLimits = DataLimits(), *, shown_as: str | None = None, to_judge: bool = False
) -> ImageFolder:
    """Open labelled images: one folder per class, or `train/`, `test/` and `val/` with one folder per class in each.

    The parts may also lie within each class folder, and have other common names: see `part_of`. A folder that wraps
    all this is seen through. Images are known by their suffix, those without one by their first bytes. They are not
    decoded here: `find_unreadable` does that. A link to an image that is not there counts as an unreadable image.

    Args:
        path: a folder, a zip, or a list of `models.labelled_table`.
        limits: what is allowed.
        shown_as: what messages call it; None for its path.
        to_judge: the images are not to be learnt from: one class or a test part alone will do.

    Raises:
        InvalidData: no such data, a hostile or damaged zip, over a limit, or classes that cannot make a task.
    """
    if is_table(path):
        return _arrange_table(read_table(path), limits, to_judge=to_judge)
    shown = repr(str(path)) if shown_as is None else shown_as
    files = _open_files(path, limits, shown)
    try:
        return _arrange(files, limits, shown, to_judge=to_judge)
    except BaseException:
        files.close()
        raise


def find_unreadable(folder: ImageFolder, progress: Progress | None = None) -> dict[str, str]:
    """Decode every image and return what is wrong with those that cannot be used, by name."""
    return look_at_images(folder, progress)[1]


def look_at_images(
    folder: ImageFolder,
    progress: Progress | None = None,
    *,
    known: Mapping[str, str | None] = NOTHING_KNOWN,
    beside_from: int | None = None,
) -> tuple[dict[ImageEntry, str], dict[str, str]]:
    """Read every image once and decode it.

    Args:
        folder: open.
        progress: called with images done and images in all.
        known: by the sha256 of files that were decoded before: what is wrong with them, or None.
        beside_from: from how many images on they are decoded in processes beside this one; None: never.

    Returns:
        The sha256 of each image file, or of why it cannot be read; and what is wrong with those that cannot be
        used, by name.
    """

    def look(entry: ImageEntry) -> Look:
        try:
            data = folder.read(entry)
        except (InvalidImage, ImageTooLarge) as error:
            return digest_of_problem(error), str(error)
        return look_at(data, folder.limits.image, known)

    paths = folder.paths() if beside_from is not None and len(folder.entries) >= beside_from else None
    if paths is None:
        looks = folder.map(look, folder.entries, progress)
    else:
        looks = []
        beside = look_beside(paths, folder.limits.image, known, folder.limits.workers)
        for entry, found in zip(folder.entries, beside, strict=True):
            looks.append(look(entry) if found is None else found)
            if progress is not None:
                progress(len(looks), len(paths))
    seen = dict(zip(folder.entries, looks, strict=True))
    digests = {entry: digest for entry, (digest, _) in seen.items()}
    return digests, {entry.name: problem for entry, (_, problem) in seen.items() if problem is not None}


def digest_of_problem(error: Exception) -> str:
    """Return what stands in for the digest of a file that cannot be read."""
    return hashlib.sha256(f"unreadable: {error}".encode(errors="surrogateescape")).hexdigest()


def unreadable(problems: Mapping[str, str], total: int, shown_as: str, *, can_skip: bool = False) -> InvalidData:
    """Return the error for images that cannot be used, naming the first five.

    Args:
        problems: what is wrong, by the image's name.
        total: images in all.
        shown_as: what messages call the data.
        can_skip: whether who asked has an option to have them skipped.
    """
    listed = "".join(f"\n  {name}: {problems[name]}" for name in sorted(problems, key=natural_order)[:EXAMPLES])
    remedy = "repair or remove them, or have them skipped (--skip-unreadable)" if can_skip else "repair or remove them"
    return InvalidData(
        f"{shown_as}: {len(problems):,} of {total:,} images cannot be used; {remedy}:{listed}"
        f"{_rest(len(problems), separator=chr(10) + '  ')}"
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


def part_of(name: str) -> Split | None:
    """Return the part that a folder's name stands for, such as `Training`, `valid`, `test_set`; None if it is none."""
    found = PART.fullmatch(name.strip().lower())
    return None if found is None else SPLIT_FOLDERS[found.group(1)]


def _arrange(files: FolderFiles | ZipFiles, limits: DataLimits, shown: str, *, to_judge: bool) -> ImageFolder:
    hidden = _hidden([*files.sizes, *files.special])
    names = [name for name in files.sizes if name not in hidden]
    images = [name for name in names if _is_image(name, files)]
    _check_dead_links(files.dead_links.keys() - set(images), files, shown)
    if not images:
        others = f"; it has {len(names):,} other files such as {min(names)!r}" if names else ""
        raise InvalidData(f"{shown} has no images ({', '.join(SUFFIXES)}){others}: {LAYOUT}")
    folders = {name for name in files.folders if not _is_hidden_folder(name)}
    top = _top(images, folders)
    images = [name.removeprefix(top) for name in images if name.startswith(top)]
    folders = {name.removeprefix(top) for name in folders if name.startswith(top)}
    parts_within = _has_parts_within(images, folders, shown)
    splits: dict[str, Split | None] = {"": None} if parts_within else _splits(images, folders, shown, to_judge=to_judge)
    _check_hidden(files, {f"{top}{prefix}" for prefix in splits}, shown)
    found = [image for image in (_locate(name, splits) for name in sorted(images)) if image is not None]
    class_folders = {
        (split, name.removeprefix(prefix))
        for prefix, split in splits.items()
        for name in folders
        if name.startswith(prefix) and "/" not in name.removeprefix(prefix)
    }
    if parts_within:
        found = [_Found(image.name, image.folder, part_of(image.name.split("/")[1])) for image in found]
        class_folders = {("train", name) for _, name in class_folders}
        if not to_judge and not any(image.split == "train" for image in found):
            raise InvalidData(f"{shown} has parts within its class folders, but no images in 'train': {LAYOUT}")
    words = _Words(shown, "class folder", LAYOUT, {})
    labels = _labels(found, class_folders, words, to_judge=to_judge)
    _check_limits([files.sizes[top + image.name] for image in found], limits, shown)
    index = _index(labels, {image.folder for image in found})
    used = {top + image.name for image in found}
    return ImageFolder(
        files,
        top,
        shown_as=shown,
        labels=labels,
        entries=tuple(ImageEntry(image.name, index[image.folder], image.split) for image in found),
        ignored=tuple(
            sorted(
                [*(name for name in names if name not in used), *(name for name in files.special if name not in hidden)]
            )
        ),
        hidden=tuple(sorted(hidden)),
        nested=tuple(image.name for image in found if image.name.count("/") > (1 if image.split is None else 2)),
        limits=limits,
    )


def _arrange_table(table: LabelledTable, limits: DataLimits, *, to_judge: bool) -> ImageFolder:
    found = [_Found(image.name, image.label, image.split) for image in table.images]
    where: dict[str, str] = {}
    for image in table.images:
        where.setdefault(image.label, f" {image.where}")
    parts: set[str] = {image.split for image in found if image.split is not None}
    if parts and "train" not in parts and not to_judge:
        raise InvalidData(
            f"{table.shown_as} has {_list(parts)} but no images in 'train': mark rows as train, or leave splits out"
        )
    words = _Words(table.shown_as, "class", TABLE_LAYOUT, where)
    labels = _labels(found, {(image.split, image.folder) for image in found}, words, to_judge=to_judge)
    files = TableFiles(table)
    _check_limits([files.sizes[image.name] for image in found], limits, table.shown_as)
    index = _index(labels, {image.folder for image in found})
    return ImageFolder(
        files,
        "",
        shown_as=table.shown_as,
        labels=labels,
        entries=tuple(
            ImageEntry(image.name, index[image.folder], image.split)
            for image in sorted(found, key=lambda image: image.name)
        ),
        ignored=(),
        hidden=(),
        nested=(),
        limits=limits,
    )


def _hidden(names: Iterable[str]) -> set[str]:
    """Return the files that are hidden, or lie in hidden folders."""
    of_folder: dict[str, bool] = {}  # many files lie in few folders

    def in_hidden(folder: str) -> bool:
        if folder not in of_folder:
            of_folder[folder] = bool(folder) and _is_hidden_folder(folder)
        return of_folder[folder]

    hidden = set()
    for name in names:
        folder, _, last = name.rpartition("/")
        if last.startswith(".") or last.lower() in JUNK_FILES or in_hidden(folder):
            hidden.add(name)
    return hidden


def _is_hidden_folder(name: str) -> bool:
    return any(part.startswith(".") or part.lower() in JUNK_FOLDERS for part in name.split("/"))


def _is_image(name: str, files: FolderFiles | ZipFiles) -> bool:
    last = name.rpartition("/")[2]
    if "." in last:
        return last.lower().endswith(SUFFIXES)
    head = files.head(name)
    return (
        head.startswith(SIGNATURES)
        or (head.startswith(b"RIFF") and head[8:12] == b"WEBP")
        or (head[4:8] == b"ftyp" and head[8:12] in CONTAINER_BRANDS)
    )


def _check_dead_links(names: Set[str], files: FolderFiles | ZipFiles, shown: str) -> None:
    """Refuse links that may have stood for a class: one to an image is refused with the unreadable images."""
    dead = {name for name in names if "." not in name.rpartition("/")[2]}
    if dead:
        first = min(dead)
        raise InvalidData(
            f"{shown} has the link {_list(dead)} to what is not there ({files.dead_links[first]!r}): bring back its "
            "target, for example by mounting or fetching it, or remove the link"
        )


def _check_hidden(files: FolderFiles | ZipFiles, parents: set[str], shown: str) -> None:
    """Refuse a folder with images that begins with a dot, where a class folder would lie: it may be meant as one."""
    meant: set[str] = set()
    for name in files.sizes:
        if "/." not in f"/{name}" or not name.lower().endswith(SUFFIXES):
            continue
        for parent in parents:
            folder, slash, below = name.removeprefix(parent).partition("/")
            if (
                slash
                and name.startswith(parent)
                and folder.startswith(".")
                and folder.lower() not in JUNK_FOLDERS
                and not _hidden([below])
            ):
                meant.add(folder)
    if meant:
        raise InvalidData(
            f"{shown} has images in {_list(meant)}, which begins with a dot and so is no class: rename it if it is "
            "one, else remove it"
        )


def _top(images: Sequence[str], folders: set[str]) -> str:
    """Return the prefix of the folder that holds the split or class folders: "" or, where folders wrap it, theirs."""
    top = ""
    while True:
        children = _children(folders, top)
        has_images = any("/" not in name.removeprefix(top) for name in images if name.startswith(top))
        if len(children) != 1 or has_images:
            return top
        (child,) = children
        if part_of(child) or not _children(folders, f"{top}{child}/"):
            return top
        top = f"{top}{child}/"


def _children(folders: set[str], prefix: str) -> set[str]:
    below = (name.removeprefix(prefix) for name in folders if name.startswith(prefix))
    return {name for name in below if "/" not in name}


def _has_parts_within(images: Sequence[str], folders: set[str], shown: str) -> bool:
    """Whether each class folder holds parts, as in `cat/train/`, `cat/test/`; InvalidData if only some do."""
    below = [name.split("/") for name in images if "/" in name]
    if any(part_of(folder) for folder in {parts[0] for parts in below}):
        return False
    within = {parts[1]: part_of(parts[1]) for parts in below if len(parts) > 2}
    named = {name: split for name, split in within.items() if split is not None}
    if not named:
        return False
    of_class: dict[str, set[Split]] = defaultdict(set)
    for parts in below:
        split = named.get(parts[1]) if len(parts) > 2 else None
        if split is None:
            raise InvalidData(
                f"{shown} has {_list(set(named))} within class folders, and other images beside them such as "
                f"{'/'.join(parts)!r}: put all images of a class into its parts, or none"
            )
        of_class[parts[0]].add(split)
    for split in set(named.values()):
        same = sorted(name for name, its in named.items() if its == split)
        mixed = [f for f in of_class if sum(f"{f}/{name}" in folders for name in same) > 1]
        if mixed:
            raise InvalidData(f"{shown} has more than one folder of a split in {min(mixed)!r}: merge them")
    return True


def _splits(images: Sequence[str], folders: set[str], shown: str, *, to_judge: bool) -> dict[str, Split | None]:
    """Return the prefixes below which the class folders lie, each with its split."""
    children = {name.split("/")[0] for name in images if "/" in name}
    named = {child: split for child in sorted(children) if (split := part_of(child)) is not None}
    if not named or not any(_children(folders, f"{child}/") for child in named):
        if named and len(named) == len(children):
            raise InvalidData(f"{shown} has images directly in {_list(named)}, without their classes: {LAYOUT}")
        _check_unknown_parts(images, children, shown)
        return {"": None}  # a class may well be called "train"
    others = children - named.keys()
    if others:
        raise InvalidData(f"{shown} has {_list(others)} beside {_list(named)}: {LAYOUT}")
    if len(set(named.values())) < len(named):
        raise InvalidData(f"{shown} has more than one folder of a split among {_list(named)}: merge them")
    if "train" not in named.values() and not to_judge:
        raise InvalidData(f"{shown} has {_list(named)} but no images in 'train': {LAYOUT}")
    for child in named:
        if not any(name.startswith(f"{child}/") and name.count("/") > 1 for name in images):
            raise InvalidData(
                f"{shown} has images directly in {child!r}, without their classes: put each into its class's folder"
            )
    return {f"{child}/": split for child, split in named.items()}


def _check_unknown_parts(images: Sequence[str], children: set[str], shown: str) -> None:
    """Refuse folders that hold folders and look like parts by name, such as `seg_train`: they are no classes."""
    flat = {name.split("/")[0] for name in images if name.count("/") == 1}
    alike = {child for child in children - flat if SPLIT_FOLDERS.keys() & set(WORD.findall(child.lower()))}
    if len(alike) > 1:
        raise InvalidData(
            f"{shown} has {_list(alike)}, which look like parts of the data and not like classes: rename them to "
            f"'train', 'val' and 'test'; {LAYOUT}"
        )


def _locate(name: str, splits: Mapping[str, Split | None]) -> _Found | None:
    for prefix, split in splits.items():
        folder, slash, _ = name.removeprefix(prefix).partition("/")
        if name.startswith(prefix) and slash:
            return _Found(name, folder, split)
    return None


@dataclass(frozen=True, slots=True)
class _Words:
    """How messages speak of classes: of folders, or of a table's rows."""

    shown: str
    noun: str
    layout: str
    where: Mapping[str, str]  # by class: where it stands first, in brackets

    def named(self, name: str) -> str:
        return f"{name[:MAX_LABEL_LENGTH]!r}{self.where.get(name, '')}"


def _labels(
    found: Sequence[_Found], class_folders: set[tuple[Split | None, str]], words: _Words, *, to_judge: bool
) -> tuple[str, ...]:
    """Return the classes' names in natural order; InvalidData if they cannot make a task, or be judged."""
    names = {name for _, name in class_folders}
    _check_names(names, words)
    if not found:
        raise InvalidData(f"{words.shown} has no images in class folders: {words.layout}")
    filled = {(image.split, image.folder) for image in found}
    if to_judge:
        return _in_order({name for _, name in filled})
    to_learn = {name for split, name in filled if split in {"train", None}}
    empty = {name for split, name in class_folders - filled if split in {"train", None}}
    if empty:
        raise InvalidData(f"{words.shown} has no images of the class {_list(empty)}: add some, or remove the folder")
    for split in ("val", "test"):
        unlearnt = {name for where, name in filled if where == split} - to_learn
        if unlearnt:
            raise InvalidData(
                f"{words.shown} has the class {_list(unlearnt)} in {split} but not in train: add it to train, "
                f"or remove it from {split}"
            )
    if len(to_learn) < 2:
        raise InvalidData(f"{words.shown} has the one class {_list(to_learn)}; at least two are needed: {words.layout}")
    return _in_order(to_learn)


def _index(labels: Sequence[str], names: set[str]) -> dict[str, int]:
    """Return the number of the class of each name."""
    number = {_normal(label): index for index, label in enumerate(labels)}
    return {name: number[_normal(name)] for name in names}


def _in_order(names: set[str]) -> tuple[str, ...]:
    return tuple(sorted({_label(name) for name in names}, key=natural_order))


def _check_names(names: set[str], words: _Words) -> None:
    alike: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        label = _label(name)
        if not _is_printable(label) or not label or len(label) > MAX_LABEL_LENGTH:
            raise InvalidData(
                f"{words.shown} has a {words.noun} {words.named(name)}; a class's name has 1 to {MAX_LABEL_LENGTH} "
                "printable characters: rename it"
            )
        alike[_normal(name)].append(name)
    for group in alike.values():
        if len(group) > 1:
            # in ASCII, else the same letters might be printed twice
            listed = " and ".join(f"{name!a}{words.where.get(name, '')}" for name in group)
            raise InvalidData(
                f"{words.shown} has the {words.noun}{'es' if words.noun.endswith('s') else 's'} {listed}, which differ "
                "only in case, spaces or the form of their letters: merge or rename them"
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


def _is_printable(label: str) -> bool:
    """Whether a label has only what can be seen, and joiners between letters or signs."""
    is_joined = all(
        0 < place < len(label) - 1 and not {label[place - 1], label[place + 1]} & {" ", *JOINERS}
        for place, letter in enumerate(label)
        if letter in JOINERS
    )
    return is_joined and _without_joiners(label).isprintable()


def _without_joiners(text: str) -> str:
    return text.translate(dict.fromkeys(map(ord, JOINERS)))


def _normal(name: str) -> str:
    """Return what two names have in common that look the same, or nearly."""
    return unicodedata.normalize("NFC", _without_joiners(_label(name)).casefold())


def natural_order(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    """Order by the numbers in a name as numbers, before letters: 2, 10, a."""
    parts = re.findall(r"\d+|\D+", name)
    return [(False, int(part), "") if part.isdecimal() else (True, 0, part.casefold()) for part in parts], name


def _list(names: set[str] | Mapping[str, object]) -> str:
    listed = ", ".join(repr(name) for name in islice(sorted(names), EXAMPLES))
    return listed + _rest(len(names), separator=", ")


def _rest(total: int, *, separator: str) -> str:
    return f"{separator}and {total - EXAMPLES:,} more" if total > EXAMPLES else ""
