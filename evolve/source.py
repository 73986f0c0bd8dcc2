"""Where labelled images come from besides folders and zips: CSV manifests, parquet files, the Hugging Face hub.

Each becomes an image folder in the cache, with the very bytes of its images, so that all sources go through
the same inspection, splits and refusals.
"""

import csv
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import InvalidData
from models.files import make_folder, private, written_beside
from models.image_folder import SPLIT_FOLDERS, SUFFIXES

HUB_PREFIX = "hub:"
SIGNATURES = {b"\x89PNG": ".png", b"\xff\xd8": ".jpg", b"RIFF": ".webp", b"GIF8": ".gif", b"BM": ".bmp"}
LABEL_COLUMNS = ("label", "labels", "class")
PATH_COLUMNS = ("path", "file", "file_name", "image")
EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a table hold image and class; None: found by their type or name."""

    image: str | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image of a source that is no folder. `split` is empty where the source has no splits."""

    data: bytes
    label: str
    split: str


def as_image_folder(data: str, cache_folder: Path, columns: Columns = Columns()) -> Path:
    """Return a folder or zip with the labelled images of a source.

    Args:
        data: a folder or zip, which is returned as it is; a CSV manifest (columns `path`, `label` and perhaps
            `split`; paths relative to it); a parquet file or a folder of them; or `hub:owner/name`, perhaps with
            `:configuration`.
        cache_folder: where tables are unpacked, once.
        columns: of a table.

    Raises:
        InvalidData: no such source, no such columns, or no network; the message says what to do.
    """
    if data.startswith(HUB_PREFIX):
        name = data.removeprefix(HUB_PREFIX)
        return _unpacked(f"{data} {columns}", _hub_images(name, columns, cache_folder), cache_folder)
    path = Path(data)
    if path.suffix.lower() == ".csv" and path.is_file():
        return _unpacked(f"{_stamp([path])} {columns}", _manifest_images(path, columns), cache_folder)
    parquet = _parquet_files(path)
    if parquet:
        return _unpacked(f"{_stamp(parquet)} {columns}", _parquet_images(path, columns, cache_folder), cache_folder)
    return path


def _parquet_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() == ".parquet" else []
    found = sorted(path.rglob("*.parquet")) if path.is_dir() else []
    return [] if found and _has_class_folders(path) else found


def _has_class_folders(path: Path) -> bool:
    """Whether images lie in several folders: then those are the data, and a table among them is a file like others."""
    holders: set[Path] = set()
    for file in path.rglob("*"):
        if file.suffix.lower() in SUFFIXES and file.parent != path:
            holders.add(file.parent)
            if len(holders) > 1:
                return True
    return False


def _stamp(files: Sequence[Path]) -> str:
    return " ".join(f"{file.absolute()} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)


def _unpacked(key: str, images: Iterator[SourceImage], cache_folder: Path) -> Path:
    """Write images below train/, test/ and val/, or directly in class folders; nothing if that was done before."""
    target = cache_folder / "sources" / hashlib.sha256(key.encode()).hexdigest()[:32]
    if target.exists():
        return target
    with written_beside(target, is_folder=True) as temporary:
        for number, image in enumerate(images):
            folder = temporary / image.split / _folder_name(image.label)
            make_folder(folder)
            with open(folder / f"{number:07d}{_suffix(image.data)}", "xb", opener=private) as file:
                file.write(image.data)
        if not any(temporary.iterdir()):
            raise InvalidData("the table has no rows: give one with at least two classes of images")
        os.replace(temporary, target)
    return target


def _folder_name(label: str) -> str:
    name = label.replace("/", "-").replace("\\", "-").strip()
    return f"_{name}" if name.startswith(".") else name


def _suffix(data: bytes) -> str:
    return next((suffix for start, suffix in SIGNATURES.items() if data.startswith(start)), ".tiff")


def _split(name: str, shown: str) -> str:
    known = SPLIT_FOLDERS.get(name.strip().lower())
    if known is None:
        raise InvalidData(f"{shown} has the split {name!r}; use one of {', '.join(SPLIT_FOLDERS)}, or leave splits out")
    return known


# CSV


def _manifest_images(path: Path, columns: Columns) -> Iterator[SourceImage]:
    shown = repr(str(path))
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        header = reader.fieldnames or []
        image = _column(columns.image, header, PATH_COLUMNS, shown, "image paths", "--image-column")
        label = _column(columns.label, header, LABEL_COLUMNS, shown, "classes", "--label-column")
        for number, row in enumerate(reader, start=2):
            if not row[image] or not row[label]:
                raise InvalidData(f"{shown}, line {number}: {image} and {label} must both be given")
            try:
                data = (path.parent / row[image]).read_bytes()
            except OSError as error:
                raise InvalidData(
                    f"{shown}, line {number}: {row[image]!r} cannot be read ({error.strerror}); paths are relative "
                    "to the manifest"
                ) from error
            yield SourceImage(data, row[label], _split(row["split"], shown) if row.get("split") else "")


def _column(wanted: str | None, header: Sequence[str], usual: Sequence[str], shown: str, what: str, option: str) -> str:
    found = [name for name in header if name == wanted or (wanted is None and name.lower() in usual)]
    if len(found) != 1:
        asked = f"no column {wanted!r}" if wanted else f"{'no' if not found else 'more than one'} column for {what}"
        raise InvalidData(f"{shown} has {asked}; its columns are {', '.join(header)}: name one by {option}")
    return found[0]


# tables that Hugging Face datasets reads


def _parquet_images(path: Path, columns: Columns, cache_folder: Path) -> Iterator[SourceImage]:
    import datasets

    cache = str(cache_folder / "datasets")
    if path.is_file():
        # one file has no splits, whatever datasets calls it
        whole = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=cache)
        return _rows(whole, "", columns, repr(str(path)))
    return _table_images(datasets.load_dataset(str(path), cache_dir=cache), columns, repr(str(path)))


def _hub_images(name: str, columns: Columns, cache_folder: Path) -> Iterator[SourceImage]:
    import datasets

    repository, _, configuration = name.partition(":")
    try:
        tables = datasets.load_dataset(repository, configuration or None, cache_dir=str(cache_folder / "datasets"))
    except Exception as error:  # its errors have no common base: no network, no such name, a script, a bad file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidData(
            f"the hub's {repository!r} cannot be loaded ({reason}): where there is a network, run 'hf download "
            f"--repo-type dataset {repository} --local-dir FOLDER', bring FOLDER here and give it as --data, or as "
            "TASK's folder below --data-root"
        ) from error
    yield from _table_images(tables, columns, f"the hub's {repository!r}")


def _table_images(tables: Any, columns: Columns, shown: str) -> Iterator[SourceImage]:
    """Yield the images of a `datasets.DatasetDict`."""
    for split, rows in tables.items():
        yield from _rows(rows, _split(str(split), shown) if len(tables) > 1 else "", columns, shown)


def _rows(rows: Any, split: str, columns: Columns, shown: str) -> Iterator[SourceImage]:
    import datasets

    features = rows.features
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    image = _column(columns.image, list(features), images or PATH_COLUMNS, shown, "images", "--image-column")
    label = _column(columns.label, list(features), labels or LABEL_COLUMNS, shown, "classes", "--label-column")
    rows = rows.select_columns([image, label]).cast_column(image, datasets.Image(decode=False))
    for row in rows:
        data = row[image]["bytes"]
        if data is None:
            data = Path(row[image]["path"]).read_bytes()
        yield SourceImage(data, _label_name(features[label], row[label]), split)


def _label_name(kind: Any, value: object) -> str:
    return str(kind.int2str(value)) if hasattr(kind, "int2str") else str(value)
