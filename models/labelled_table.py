"""Labelled images that lie anywhere, listed one by one: what CSV manifests, parquet and the hub become.

A list names each image as its author knows it (`photos/1.jpg (line 7)`), its file, its class as given and its
part. Nothing is copied: an image that is repaired or replaced is seen, a class is never the name of a folder.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from models.errors import InvalidData, InvalidImage
from models.files import written_beside
from models.image_files import read_bounded, too_many_bytes

Split = Literal["train", "val", "test"]

SUFFIX = ".images.jsonl"
NAMED_AFTER = 32  # hex digits of the content's sha256


@dataclass(frozen=True, slots=True)
class ListedImage:
    """One image of a table.

    `name` is unique and ends in `where` it stands in the source: "photos/1.jpg" and "(line 7)". `split` is "train",
    "val" or "test"; None if the source has no parts.
    """

    name: str
    file: Path
    label: str
    split: Split | None

    @property
    def where(self) -> str:
        return self.name[self.name.rindex("(") :]


@dataclass(frozen=True, slots=True)
class LabelledTable:
    """A list of images. `shown_as` is what messages call the source, `relative_to` what its paths start from."""

    shown_as: str
    relative_to: str
    images: tuple[ListedImage, ...]


def write_table(folder: Path, images: Iterable[ListedImage], *, shown_as: str, relative_to: Path) -> Path:
    """Write a list into `folder`, named after its content, and return its path. It appears whole.

    Any number of processes may write the same list at once.
    """
    digest = hashlib.sha256()
    with written_beside(folder / f"list{SUFFIX}") as temporary:
        with temporary.open("r+b") as file:
            for content in chain([[shown_as, str(relative_to)]], map(_line, images)):
                line = json.dumps(content).encode() + b"\n"
                digest.update(line)
                file.write(line)
        target = folder / f"{digest.hexdigest()[:NAMED_AFTER]}{SUFFIX}"
        os.replace(temporary, target)
    return target


def _line(image: ListedImage) -> list[str | None]:
    return [image.name, str(image.file), image.label, image.split]


def is_table(path: Path) -> bool:
    """Whether `path` is a list that `write_table` wrote."""
    return path.name.endswith(SUFFIX) and path.is_file()


def read_table(path: Path) -> LabelledTable:
    """Return a list that `write_table` wrote; InvalidData if it is damaged."""
    try:
        with path.open("rb") as file:
            shown_as, relative_to = json.loads(next(file))
            rows = [json.loads(line) for line in file]
        images = tuple(ListedImage(name, Path(place), label, split) for name, place, label, split in rows)
    except (OSError, ValueError, TypeError, StopIteration) as error:
        raise InvalidData(f"{str(path)!r} is a damaged list of images ({error}): delete it and start again") from error
    return LabelledTable(shown_as, relative_to, images)


class TableFiles:
    """The files of a list, by the names in it."""

    def __init__(self, table: LabelledTable) -> None:
        self._relative_to = table.relative_to
        self._files = {image.name: image.file for image in table.images}
        self.sizes = {name: _size(file) for name, file in self._files.items()}  # 0 for what is not there

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return a file's content; ImageTooLarge beyond `max_bytes`, InvalidImage if it cannot be read."""
        file = self._files[name]
        try:
            status = file.stat()
            if not stat.S_ISREG(status.st_mode):  # reading a pipe might never end
                raise InvalidImage("the path is not that of a file")
            with file.open("rb") as opened:
                data = read_bounded(opened, max_bytes)
        except OSError as error:
            raise InvalidImage(
                f"the file cannot be read ({error.strerror}); paths are relative to {self._relative_to!r}"
            ) from error
        if len(data) > max_bytes:
            raise too_many_bytes(status.st_size, max_bytes)
        return data

    def path(self, name: str) -> str:
        """Return where a file lies."""
        return str(self._files[name])

    def close(self) -> None:
        """Nothing is held open."""


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
