"""Which columns of a table hold image, class and part: one rule for CSV manifests, parquet and the hub."""

from collections.abc import Sequence
from dataclasses import dataclass

from models.errors import InvalidData
from models.image_folder import SPLIT_FOLDERS, part_of
from models.labelled_table import Split

LABEL_COLUMNS = ("label", "labels", "class")
PATH_COLUMNS = ("path", "file", "file_name", "image")
SPLIT_COLUMNS = ("split",)


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a table hold image and class; None: found by their type or name."""

    image: str | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """The names of a table's columns, as the table spells them. `split` is None where it has no such column."""

    image: str
    label: str
    split: str | None


def find_layout(
    header: Sequence[str],
    columns: Columns,
    *,
    images: Sequence[str] = (),
    labels: Sequence[str] = (),
    shown: str,
    note: str = "",
) -> Layout:
    """Return the columns of a table. Case and surrounding spaces of their names do not matter.

    Args:
        header: names of all columns.
        columns: that a person named.
        images: columns that are images by their type.
        labels: columns that are classes by their type.
        shown: what messages call the table.
        note: what messages add to the list of columns.

    Raises:
        InvalidData: none or several may be meant; the message names all columns, and the option that decides.
    """
    listed = f"its columns are {', '.join(name for name in header if name.strip())}{note}"

    def column(wanted: str | None, typed: Sequence[str], usual: Sequence[str], what: str, option: str) -> str:
        found = _meant(header, wanted, typed, usual)
        if len(found) != 1:
            several = "more than one column" if found else "no column"
            asked = f"{several} {wanted!r}" if wanted else f"{several} for {what}"
            raise InvalidData(f"{shown} has {asked}; {listed}: name one by {option}")
        return found[0]

    splits = _meant(header, None, (), SPLIT_COLUMNS)
    if len(splits) > 1:
        raise InvalidData(f"{shown} has more than one column for splits; {listed}: keep one, and rename the others")
    return Layout(
        image=column(columns.image, images, PATH_COLUMNS, "image paths", "--image-column"),
        label=column(columns.label, labels, LABEL_COLUMNS, "classes", "--label-column"),
        split=splits[0] if splits else None,
    )


def _meant(header: Sequence[str], wanted: str | None, typed: Sequence[str], usual: Sequence[str]) -> list[str]:
    if wanted is not None:
        exact = [name for name in header if name == wanted]
        return exact or [name for name in header if _plain(name) == _plain(wanted)]
    return list(typed) or [name for name in header if _plain(name) in usual]


def _plain(name: str) -> str:
    return name.strip().casefold()


class PartReader:
    """Reads a column of parts, row by row: every row has one, or none has."""

    def __init__(self) -> None:
        self._first: tuple[bool, str] | None = None  # whether it has a part, and what the row is called

    def part(self, value: str | None, where: str) -> Split | None:
        """Return a row's part.

        Args:
            value: what stands in the column; nothing, None or spaces is no part.
            where: what messages call the row.

        Raises:
            InvalidData: an unknown part, or a part here and none there.
        """
        text = (value or "").strip()
        first = self._first = self._first or (bool(text), where)
        if bool(text) != first[0]:
            with_part, without = (where, first[1]) if text else (first[1], where)
            raise InvalidData(
                f"{without} has no split, but {with_part} has one: give every row train, val or test, or leave splits "
                "out"
            )
        return known_part(text, where) if text else None


def known_part(text: str, where: str) -> Split:
    """Return the part that a text names, in any case and by any name that a folder of it may have."""
    part = part_of(text)
    if part is None:
        raise InvalidData(
            f"{where} has the split {text[:80]!r}; use one of {', '.join(SPLIT_FOLDERS)}, or leave splits out"
        )
    return part
