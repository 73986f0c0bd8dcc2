"""Where labelled images come from besides folders and zips: CSV manifests, parquet files, the Hugging Face hub.

Each becomes a list of images (`models.labelled_table`), so that all sources go through the same inspection, splits
and refusals, in which an image is called what its author calls it.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from evolve.columns import Columns
from evolve.manifest import SUFFIXES as CSV_SUFFIXES
from evolve.manifest import manifest_images
from evolve.parquet import SUFFIX as PARQUET_SUFFIX
from evolve.parquet import hub_images, parquet_images
from models.errors import InvalidData
from models.image_folder import SUFFIXES
from models.labelled_table import ListedImage, write_table

HUB_PREFIX = "hub:"
SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods")


def as_image_folder(data: str, cache_folder: Path, columns: Columns = Columns()) -> Path:
    """Return what `models.image_folder.open_image_folder` opens: a folder, a zip or a list of images.

    The list is written anew each time, so it is always that of the data as it is now. Images of a CSV stay where they
    are; those of parquet and the hub are unpacked into the cache, once for each state of their file.

    Args:
        data: a folder or zip, which is returned as it is; a CSV manifest (columns `path`, `label` and perhaps
            `split`; paths relative to it); a parquet file or a folder of them; or `hub:owner/name`, perhaps with
            `:configuration`.
        cache_folder: for lists and unpacked images.
        columns: of a table.

    Raises:
        InvalidData: no such source, no such columns, or no network; the message says what to do.
    """
    lists = cache_folder / "sources"
    if data.startswith(HUB_PREFIX):
        name = data.removeprefix(HUB_PREFIX)
        shown = f"the hub's {name.partition(':')[0]!r}"
        found = hub_images(name, columns, cache_folder)
        return write_table(lists, _at_least_one(found, shown), shown_as=shown, relative_to=cache_folder)
    path, shown = Path(data), repr(data)
    kind = path.suffix.lower() if path.is_file() else ""
    if kind in SPREADSHEETS:
        raise InvalidData(f"{shown} is a spreadsheet: save it as 'CSV UTF-8' and give that")
    if kind in CSV_SUFFIXES:
        found = manifest_images(path, columns)
        return write_table(lists, _at_least_one(found, shown), shown_as=shown, relative_to=path.parent.absolute())
    tables = [path] if kind == PARQUET_SUFFIX else _tables_in(path)
    if tables:
        found = parquet_images(tables, path, columns, lists)
        folder = path if path.is_dir() else path.parent
        return write_table(lists, _at_least_one(found, shown), shown_as=shown, relative_to=folder.absolute())
    return path


def _at_least_one(images: Iterator[ListedImage], shown: str) -> Iterator[ListedImage]:
    first = next(images, None)
    if first is None:
        raise InvalidData(f"{shown} has no rows: give it at least two classes of images")
    yield first
    yield from images


def _tables_in(path: Path) -> list[Path]:
    """Return a folder's parquet files: none if images lie in several folders, since then those are the data."""
    tables: list[Path] = []
    holders = 0
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        lower = [name.lower() for name in names]
        tables += [Path(folder, name) for name in names if name.lower().endswith(PARQUET_SUFFIX)]
        holders += folder != str(path) and any(name.endswith(SUFFIXES) for name in lower)
        if holders > 1:
            return []
    return sorted(tables)
