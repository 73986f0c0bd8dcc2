"""CSV manifests: a table of text that names images by their paths."""

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from evolve.columns import Columns, Layout, PartReader, find_layout
from models.errors import InvalidData
from models.labelled_table import ListedImage

SUFFIXES = (".csv", ".tsv")
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
# by the mark that a file begins with; that of UTF-16 begins that of UTF-32
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
REMEDY = "save it as 'CSV UTF-8' from a spreadsheet, or convert it: iconv -f WINDOWS-1252 -t UTF-8"


def manifest_images(path: Path, columns: Columns) -> Iterator[ListedImage]:
    """Yield the images of a CSV, in its order.

    Text is UTF-8, or what a byte order mark says; columns are separated by commas, semicolons, tabs or vertical
    bars, whichever separates the needed columns.

    Raises:
        InvalidData: it cannot be read; the message names the file, and the line where there is one.
    """
    shown = repr(str(path))
    text, lines_before = _without_separator_line(_text(path, shown))
    delimiter, header, layout = _header(text, columns, shown)
    place = {name: index for index, name in enumerate(header)}
    parts = PartReader()
    for number, row in islice(_rows(text, delimiter, shown, lines_before), 1, None):
        where = f"{shown}, line {number}"
        if any(field.strip() for field in row[len(header) :]):
            raise InvalidData(
                f"{where} has {len(row)} fields, but the header has {len(header)}: put a field that contains "
                f"{delimiter!r} into double quotes"
            )
        row += [""] * (len(header) - len(row))
        image, label = row[place[layout.image]], row[place[layout.label]]
        if not image.strip() or not label.strip():
            raise InvalidData(f"{where}: {layout.image} and {layout.label} must both be given")
        split = parts.part(row[place[layout.split]], where) if layout.split is not None else None
        yield ListedImage(f"{image} (line {number})", path.parent.absolute() / image, label, split)


def _text(path: Path, shown: str) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidData(f"{shown} cannot be read ({error.strerror}): make it readable") from error
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding.startswith("utf-8"):
            line = data.count(b"\n", 0, error.start) + 1
            raise InvalidData(
                f"{shown}, line {line}: the byte 0x{data[error.start]:02x} is not UTF-8, so the file has another "
                f"encoding such as Windows-1252: {REMEDY}"
            ) from error
        raise InvalidData(f"{shown} is damaged {encoding.upper()} ({error.reason}): {REMEDY}") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InvalidData(f"{shown}, line {line} has a NUL character, which no text has: remove it, or {REMEDY}")
    return text


def _without_separator_line(text: str) -> tuple[str, int]:
    """Return the text without a first line `sep=;`, which spreadsheets write, and how many lines are left out."""
    first, newline, rest = text.partition("\n")
    if newline and first.strip().lower() in {f"sep={delimiter}".strip() for delimiter in DELIMITERS}:
        return rest, 1
    return text, 0


def _header(text: str, columns: Columns, shown: str) -> tuple[str, Sequence[str], Layout]:
    """Return what separates columns, their names, and which are which."""
    headers = {delimiter: next((row for _, row in _rows(text, delimiter, shown, 0)), []) for delimiter in DELIMITERS}
    for delimiter, header in headers.items():
        try:
            return delimiter, header, find_layout(header, columns, shown=shown)
        except InvalidData:
            continue
    delimiter = max(headers, key=lambda delimiter: len(headers[delimiter]))
    header = headers[delimiter]
    if not header:
        raise InvalidData(f"{shown} is empty: give it a line with the columns path and label, and a line per image")
    if len(header) == 1:
        raise InvalidData(
            f"{shown} has the one column {header[0][:80]!r}, but needs two, such as path and label: separate them by "
            f"{', '.join(DELIMITERS.values())}"
        )
    find_layout(header, columns, shown=shown, note=f" (separated by {DELIMITERS[delimiter]})")
    raise AssertionError("the columns of this header were not found before")


def _rows(text: str, delimiter: str, shown: str, lines_before: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank, the header first, with the numbers of their last lines."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        for row in reader:
            if any(field.strip() for field in row):
                yield reader.line_num + lines_before, row
    except csv.Error as error:
        raise InvalidData(
            f"{shown}, line {reader.line_num + lines_before} is no CSV ({error}): end each field that begins with a "
            "double quote by one, and write a double quote within it twice"
        ) from error
