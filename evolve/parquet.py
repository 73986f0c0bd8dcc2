"""Tables of Arrow: parquet files, and data sets of the Hugging Face hub.

Local files are read as they are, without `datasets`, which leaves out files whose names it does not know. Images within
a table are unpacked into the cache, once for each state of the file; all else is read anew each time.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evolve.columns import Columns, Layout, PartReader, find_layout, known_part
from models.errors import InvalidData
from models.files import private, written_beside
from models.image_folder import SPLIT_FOLDERS
from models.labelled_table import ListedImage, Split

SUFFIX = ".parquet"
BATCH_ROWS = 64  # images in memory at once
PATHS = "paths.json"  # beside unpacked images


@dataclass(frozen=True, slots=True)
class ArrowTable:
    """Rows with a schema. `batches` yields the named columns, some rows at a time."""

    name: str  # what rows are called after
    shown: str  # what messages call it
    schema: Any  # pyarrow.Schema
    state: str  # another one as soon as the content is another
    folder: Path  # that paths are relative to
    split: Split | None
    batches: Callable[[list[str]], Iterator[Any]]


def parquet_images(files: Sequence[Path], root: Path, columns: Columns, cache_folder: Path) -> Iterator[ListedImage]:
    """Yield the images of parquet files, in order.

    Args:
        files: all with the same columns.
        root: the folder that holds them, or the one file. Parts are named by the files below a folder, or by a column.
        columns: that a person named.
        cache_folder: where images are unpacked.

    Raises:
        InvalidData: a table cannot be read; the message names the file, and the row where there is one.
    """
    parts = _parts_of(files, root)
    yield from _images([_of_file(file, root, parts[file]) for file in files], columns, cache_folder)


def hub_images(name: str, columns: Columns, cache_folder: Path) -> Iterator[ListedImage]:
    """Yield the images of `owner/name` or `owner/name:configuration` of the hub; InvalidData as for parquet."""
    import datasets

    repository, _, configuration = name.partition(":")
    shown = f"the hub's {repository!r}"
    try:
        tables = datasets.load_dataset(repository, configuration or None, cache_dir=str(cache_folder / "datasets"))
    except Exception as error:  # its errors have no common base: no network, no such name, a script, a bad file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidData(
            f"{shown} cannot be loaded ({reason}): where there is a network, run 'hf download "
            f"--repo-type dataset {repository} --local-dir FOLDER', bring FOLDER here and give it as --data, or as "
            "TASK's folder below --data-root"
        ) from error
    has_parts = len(tables) > 1
    found = [_of_dataset(str(part), rows, shown, has_parts=has_parts) for part, rows in tables.items()]
    yield from _images(found, columns, cache_folder / "sources")


def _of_dataset(part: str, rows: Any, shown: str, *, has_parts: bool) -> ArrowTable:
    return ArrowTable(
        name=part,
        shown=f"{shown} ({part})",
        schema=rows.features.arrow_schema,
        state=str(rows._fingerprint),
        folder=Path.cwd(),
        split=known_part(part, shown) if has_parts else None,
        batches=lambda names: rows.select_columns(names).with_format("arrow").iter(batch_size=BATCH_ROWS),
    )


def _of_file(file: Path, root: Path, split: Split | None) -> ArrowTable:
    import pyarrow
    import pyarrow.parquet

    shown = repr(str(file))

    def damaged(error: Exception) -> InvalidData:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return InvalidData(f"{shown} cannot be read as parquet ({reason}): make it again, or download it again")

    def batches(names: list[str]) -> Iterator[Any]:
        try:
            with pyarrow.parquet.ParquetFile(file) as opened:
                yield from opened.iter_batches(batch_size=BATCH_ROWS, columns=names)
        except (pyarrow.ArrowException, OSError) as error:
            raise damaged(error) from error

    try:
        status = file.stat()
        schema = pyarrow.parquet.read_schema(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise damaged(error) from error
    return ArrowTable(
        name=file.name if root == file else file.relative_to(root).as_posix(),
        shown=shown,
        schema=schema,
        state=f"{file.absolute()} {status.st_size} {status.st_mtime_ns}",
        folder=file.parent.absolute(),
        split=split,
        batches=batches,
    )


def _parts_of(files: Sequence[Path], root: Path) -> Mapping[Path, Split | None]:
    """Return the part that each file's name says, such as `data/train-00000-of-00002.parquet`; None if all are one."""
    if files == [root]:
        return {root: None}
    found = {file: _named_parts(file.relative_to(root)) for file in files}
    shown = repr(str(root))
    for file, parts in found.items():
        name = file.relative_to(root).as_posix()
        if len(parts) > 1:
            raise InvalidData(
                f"{shown} has the file {name!r}, whose name says {' and '.join(sorted(parts))}: rename it"
            )
        if not parts and any(found.values()):
            example = next(other.relative_to(root).as_posix() for other, its in found.items() if its)
            raise InvalidData(
                f"{shown} has parts, such as {example!r}, and the file {name!r}, whose name says none: rename it so "
                "that 'train', 'val' or 'test' is a word of its name, or move it out of the folder"
            )
    if len(set.union(*found.values())) < 2:
        return dict.fromkeys(files)
    return {file: next(iter(parts)) for file, parts in found.items()}


def _named_parts(path: Path) -> set[Split]:
    words = re.findall("[a-z]+", path.with_suffix("").as_posix().lower())
    return {SPLIT_FOLDERS[word] for word in words if word in SPLIT_FOLDERS}


# rows


def _images(tables: Sequence[ArrowTable], columns: Columns, cache_folder: Path) -> Iterator[ListedImage]:
    parts = PartReader()
    for table in tables:
        layout = _layout(table, columns)
        files = _files_of_rows(table, _unpacked(table, layout.image, cache_folder))
        for number, row in enumerate(_rows(table, layout), start=1):
            where = f"{table.shown}, row {number}"
            if number not in files:
                raise InvalidData(f"{where} has no image in {layout.image!r}: give it one, or remove the row")
            yield ListedImage(
                name=f"{table.name} (row {number})",
                file=files[number],
                label=_label(table, layout.label, row[layout.label], where),
                split=_split(table, layout, row, parts, where),
            )


def _layout(table: ArrowTable, columns: Columns) -> Layout:
    """Return the table's columns; InvalidData unless their types are those of images and of single classes."""
    import pyarrow.types as types

    schema, kinds = table.schema, _kinds(table.schema)
    layout = find_layout(
        schema.names,
        columns,
        images=[name for name, kind in kinds.items() if kind == "Image"],
        labels=[name for name, kind in kinds.items() if kind == "ClassLabel"],
        shown=table.shown,
    )
    label, image = schema.field(layout.label).type, schema.field(layout.image).type
    value = label.value_type if types.is_dictionary(label) else label
    if not (_is_text(value) or types.is_integer(value) or types.is_boolean(value)):
        raise InvalidData(
            f"{table.shown} has classes of the type {label} in {layout.label!r}: make them one text or whole number a "
            "row, or name another column by --label-column"
        )
    has_bytes = types.is_struct(image) and {"bytes", "path"} & {field.name for field in image}
    if not (has_bytes or _is_text(image) or types.is_binary(image) or types.is_large_binary(image)):
        raise InvalidData(
            f"{table.shown} has images of the type {image} in {layout.image!r}: make them bytes of image files, or "
            "paths, or name another column by --image-column"
        )
    return layout


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _features(schema: Any) -> dict[str, Any]:
    """Return what `datasets` wrote into a schema about its columns; nothing if something else wrote it."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {name: kind for name, kind in found.items() if isinstance(kind, dict)} if isinstance(found, dict) else {}


def _kinds(schema: Any) -> dict[str, str]:
    return {name: str(kind.get("_type")) for name, kind in _features(schema).items() if name in schema.names}


def _unpacked(table: ArrowTable, column: str, cache_folder: Path) -> Path:
    """Return a folder with the images that are within the table, each called by the number of its row.

    Its file `PATHS` has the paths of the others, by row.
    """
    digest = hashlib.sha256(f"{table.state} {column}".encode(errors="surrogateescape")).hexdigest()
    target = cache_folder / digest[:32]
    if target.is_dir():
        return target
    with written_beside(target, is_folder=True) as temporary:
        paths: dict[int, str] = {}
        number = 0
        for batch in table.batches([column]):
            for value in batch.column(column).to_pylist():
                number += 1
                data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, value)
                if isinstance(data, bytes):
                    _write(temporary / str(number), data)
                elif isinstance(path, str):
                    paths[number] = path
        _write(temporary / PATHS, json.dumps(paths).encode())
        try:
            os.replace(temporary, target)
        except OSError:
            if not target.is_dir():  # else another process was faster, and wrote the same
                raise
    return target


def _write(path: Path, data: bytes) -> None:
    with open(path, "xb", opener=private) as file:
        file.write(data)


def _files_of_rows(table: ArrowTable, unpacked: Path) -> dict[int, Path]:
    """Return the image file of each row that has one."""
    paths = json.loads((unpacked / PATHS).read_bytes())
    files = {int(number): table.folder / path for number, path in paths.items() if path and "\0" not in path}
    return files | {int(name): unpacked / name for name in os.listdir(unpacked) if name != PATHS}


def _rows(table: ArrowTable, layout: Layout) -> Iterator[dict[str, Any]]:
    """Yield all but the images."""
    names = [name for name in (layout.label, layout.split) if name is not None]
    for batch in table.batches(names):
        for values in zip(*(batch.column(name).to_pylist() for name in names), strict=True):
            yield dict(zip(names, values, strict=True))


def _label(table: ArrowTable, column: str, value: object, where: str) -> str:
    """Return a class as the table has it: the text, the number, or the name of the number."""
    if value is None or not str(value).strip():
        raise InvalidData(f"{where} has no class in {column!r}: give it one, or remove the row")
    names = _features(table.schema).get(column, {}).get("names")
    if not isinstance(names, list) or not isinstance(value, int):
        return str(value)
    if not 0 <= value < len(names):
        raise InvalidData(
            f"{where} has the class {value} in {column!r}, whose {len(names)} names are numbered 0 to {len(names) - 1}"
            ": give it one of them, or remove the row"
        )
    return str(names[value])


def _split(table: ArrowTable, layout: Layout, row: Mapping[str, Any], parts: PartReader, where: str) -> Split | None:
    if layout.split is None:
        return table.split
    value = row[layout.split]
    names = _features(table.schema).get(layout.split, {}).get("names")
    if isinstance(names, list) and isinstance(value, int) and 0 <= value < len(names):
        value = names[value]
    split = parts.part(None if value is None else str(value), where)
    if None not in (split, table.split) and split != table.split:
        raise InvalidData(
            f"{where} has the split {value!r}, but lies in the part {table.split!r} by its file's name: correct one "
            "of them"
        )
    return table.split if split is None else split
