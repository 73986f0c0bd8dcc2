"""CSV manifests and parquet files: what is read, and what is refused with the words of its file and line."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pyarrow
import pyarrow.parquet
import pytest

from evolve.columns import Columns
from evolve.source import as_image_folder
from evolve.task import Task, load_images, load_task
from models.errors import InvalidData
from models.image_folder import open_image_folder
from models.labelled_table import read_table
from models.names import TaskName
from tests.support.images import draw, draw_folder

Load = Callable[..., Task]
PETS = {"cat": 6, "dog": 6}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw_folder(tmp_path / "images", PETS)


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(source: Path, columns: Columns = Columns(), **options: object) -> Task:
        folder = as_image_folder(str(source), tmp_path / "cache", columns)
        return load_task(TaskName("pets"), folder, seed=0, cache_folder=tmp_path / "pixels", **options)  # type: ignore[arg-type]

    return load


@pytest.fixture
def refusal(load: Load, tmp_path: Path) -> Callable[[Path], str]:
    """Returns what `evolve` says; `evaluate` and all else that reads tables go through the same reader."""

    def refusal(source: Path) -> str:
        with pytest.raises(InvalidData) as caught:
            load(source)
        with pytest.raises(InvalidData) as judged:
            load_images(as_image_folder(str(source), tmp_path / "judged"), ("cat", "dog"), cache_folder=tmp_path)
        assert str(judged.value) == str(caught.value)
        return str(caught.value).replace(f"{tmp_path}/", "")

    return refusal


def rows(folder: Path) -> list[tuple[str, str]]:
    """Return the path below the folder's parent, and the class, of each image."""
    return [(str(path.relative_to(folder.parent)), path.parent.name) for path in sorted(folder.rglob("*.png"))]


def write_csv(
    folder: Path,
    lines: Sequence[Sequence[str]],
    header: str = "path,label",
    *,
    delimiter: str = ",",
    encoding: str = "utf-8",
) -> Path:
    path = folder.parent / "table.csv"
    text = "\n".join([header.replace(",", delimiter), *(delimiter.join(line) for line in lines)])
    path.write_bytes(f"{text}\n".encode(encoding))
    return path


def write_parquet(path: Path, lines: Sequence[tuple[str, object]], **more: Sequence[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {
        "image": [{"bytes": (path.parent / name).read_bytes(), "path": None} for name, _ in lines],
        "label": [label for _, label in lines],
    }
    pyarrow.parquet.write_table(pyarrow.table(table | more), path)
    return path


def number_of(task: Task) -> tuple[int, int]:
    """Return how many images are learnt from, and how many are the test."""
    assert task.test is not None
    return len(task.train) + len(task.val), len(task.test)


# what is read


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_is_what_its_mark_says(images: Path, load: Load, encoding: str) -> None:
    named = [(path, {"cat": "Kätzchen", "dog": "犬"}[label]) for path, label in rows(images)]
    assert load(write_csv(images, named, encoding=encoding)).labels == ("Kätzchen", "犬")


@pytest.mark.parametrize("before", ["", "sep=DELIMITER\n", "sep=DELIMITER\r\n\r\n"], ids=["", "sep", "sep and blank"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_the_one_that_separates_the_columns(
    images: Path, load: Load, delimiter: str, before: str
) -> None:
    named = [(path, f'"{label}{delimiter} or so"') for path, label in rows(images)]
    path = write_csv(images, named, delimiter=delimiter)
    path.write_text(before.replace("DELIMITER", delimiter) + path.read_text())
    assert load(path).labels == tuple(" ".join(f"{name}{delimiter} or so".split()) for name in ("cat", "dog"))


def test_tabs_in_a_tsv(images: Path, load: Load) -> None:
    path = write_csv(images, rows(images), delimiter="\t").rename(images.parent / "table.TSV")
    assert load(path).labels == ("cat", "dog")


@pytest.mark.parametrize("header", ["path,label,split", "Path,Label,Split", " FILE_NAME , Class , SPLIT "])
def test_columns_are_found_whatever_their_case(images: Path, load: Load, header: str) -> None:
    parts = [(*row, ("Train", "TEST ")[number % 2]) for number, row in enumerate(rows(images))]
    assert number_of(load(write_csv(images, parts, header))) == (6, 6)
    columns = Columns(header.split(",")[0].strip().upper(), header.split(",")[1].strip().upper())
    assert number_of(load(write_csv(images, parts, header), columns)) == (6, 6)


def test_parts_have_their_common_names(images: Path, load: Load) -> None:
    names = ("training", "valid", "Testing")
    task = load(write_csv(images, [(*row, names[n % 3]) for n, row in enumerate(rows(images))], "path,label,split"))
    assert (len(task.train), len(task.val), number_of(task)) == (4, 4, (8, 4))


@pytest.mark.parametrize("column", ["split", "Split"])
def test_a_split_column_of_parquet_counts(images: Path, load: Load, column: str) -> None:
    parts = [("train", "test")[number % 2] for number in range(12)]
    path = write_parquet(images.parent / "one.parquet", rows(images), **{column: parts})
    task = load(path)
    assert task.test is not None
    assert sorted(task.test.names) == sorted(f"one.parquet (row {number})" for number in range(2, 13, 2))
    path.rename(images.parent / "train-00000-of-00001.parquet")
    assert number_of(load(images.parent / "train-00000-of-00001.parquet")) == (6, 6)


def test_files_of_parquet_name_their_parts(images: Path, load: Load) -> None:
    whole = write_parquet(images.parent / "whole.parquet", rows(images)).read_bytes()
    for number, name in enumerate(["data/train-0.parquet", "validation/0.parquet", "shapes_test.PARQUET"]):
        path = images.parent / "tables" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(whole)
        assert len(read_table(as_image_folder(str(path.parents[0]), images.parent / "c")).images) >= 12, number
    task = load(images.parent / "tables")
    assert (len(task.train), len(task.val), number_of(task)) == (12, 12, (24, 12))
    (images.parent / "tables/.cache").mkdir()
    (images.parent / "tables/.cache/extra.parquet").write_bytes(b"")
    assert number_of(load(images.parent / "tables")) == (24, 12)


def test_paths_in_parquet_are_relative_to_it(images: Path, load: Load) -> None:
    table = {"path": [path for path, _ in rows(images)], "class": [label for _, label in rows(images)]}
    pyarrow.parquet.write_table(pyarrow.table(table), images.parent / "paths.parquet")
    assert load(images.parent / "paths.parquet").labels == ("cat", "dog")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (pyarrow.array([3, 12] * 6), ("3", "12")),
        (pyarrow.array(["b", "a"] * 6).dictionary_encode(), ("a", "b")),
        (pyarrow.array([True, False] * 6), ("False", "True")),
        (pyarrow.array(["None", "nan"] * 6, pyarrow.large_string()), ("nan", "None")),
    ],
    ids=["numbers", "categories", "booleans", "texts that look like nothing"],
)
def test_classes_of_parquet(images: Path, load: Load, labels: Sequence[object], expected: tuple[str, ...]) -> None:
    table = {"image": [(images.parent / path).read_bytes() for path, _ in rows(images)], "label": labels}
    pyarrow.parquet.write_table(pyarrow.table(table), images.parent / "t.parquet")
    assert load(images.parent / "t.parquet").labels == expected


# classes are text, as given


ODD_LABELS = ("A/B", "A-B", ".net", "_.net", "thumbs.db", "__MACOSX", "..", "train", "CON", "a\\b")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_classes_stay_as_given(tmp_path: Path, load: Load, kind: str) -> None:
    folder = draw_folder(tmp_path / "images", {str(number): 3 for number in range(len(ODD_LABELS))})
    named = [(path, ODD_LABELS[int(label)]) for path, label in rows(folder)]
    task = load(write_csv(folder, named) if kind == "csv" else write_parquet(tmp_path / "t.parquet", named))
    assert sorted(task.labels) == sorted(ODD_LABELS)
    assert len(task.train) == len(ODD_LABELS)
    assert task.ignored == task.hidden == task.nested == ()
    assert task.train.pixels(8).shape == (len(ODD_LABELS), 8, 8, 3)


# what has changed is seen


@pytest.mark.parametrize("kind", ["csv", "parquet paths"])
def test_a_repaired_image_is_seen(images: Path, load: Load, kind: str) -> None:
    broken = images / "cat" / "000.png"
    good = broken.read_bytes()
    table = {"path": [path for path, _ in rows(images)], "label": [label for _, label in rows(images)]}
    pyarrow.parquet.write_table(pyarrow.table(table), images.parent / "paths.parquet")
    source = write_csv(images, rows(images)) if kind == "csv" else images.parent / "paths.parquet"
    broken.write_bytes(b"")
    where = "cat/000.png (line 2)" if kind == "csv" else "paths.parquet (row 1)"
    with pytest.raises(InvalidData, match="1 of 12 images cannot be used") as caught:
        load(source)
    assert f"{where}: the image is empty" in str(caught.value)
    broken.write_bytes(good)
    before = load(source)
    draw(images / "dog" / "000.png", hue=200, number=99)
    after = load(source)
    assert before.digest != after.digest
    assert len(after.skipped) == 0


def test_a_rewritten_parquet_file_is_seen(images: Path, load: Load) -> None:
    path = write_parquet(images.parent / "t.parquet", rows(images))
    before = load(path)
    draw(images / "dog" / "000.png", hue=200, number=99)
    write_parquet(path, rows(images))
    assert load(path).digest != before.digest


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_many_may_read_one_new_table_at_once(images: Path, tmp_path: Path, kind: str) -> None:
    source = write_csv(images, rows(images)) if kind == "csv" else write_parquet(tmp_path / "t.parquet", rows(images))
    start = Barrier(8)

    def read(_: int) -> tuple[Path, int]:
        start.wait()
        path = as_image_folder(str(source), tmp_path / "cache")
        with open_image_folder(path) as folder:
            return path, sum(len(folder.read(entry)) > 0 for entry in folder.entries)

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(read, range(8)))
    assert {count for _, count in found} == {12}
    assert len(found) == 1
    assert not list((tmp_path / "cache" / "sources").glob(".new-*"))


# what is refused: CSV


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "'table.csv' is empty: give it a line with the columns path and label, and a line per image"),
        (b"path,label\n", "'table.csv' has no rows: give it at least two classes of images"),
        (
            "path,label\na.png,cat\nb.png,caf\xe9\n".encode("cp1252"),
            "'table.csv', line 3: the byte 0xe9 is not UTF-8, so the file has another encoding such as Windows-1252: "
            "save it as 'CSV UTF-8' from a spreadsheet, or convert it: iconv -f WINDOWS-1252 -t UTF-8",
        ),
        ("path,label\na.png,cat\n".encode("utf-16")[:-1], "'table.csv' is damaged UTF-16 (truncated data): save it as"),
        ("path,label\na.png,cat\n".encode("utf-16-le"), "'table.csv', line 1 has a NUL character, which no text has: "),
        (b"path,label\na.png,cat\nb\0.png,cat\n", "'table.csv', line 3 has a NUL character, which no text has: remove"),
        (
            b"path:label\na.png:cat\n",
            "'table.csv' has the one column 'path:label', but needs two, such as path and label: separate them by "
            "commas, semicolons, tabs, vertical bars",
        ),
        (
            b"photo;kind\na.png;cat\n",
            "'table.csv' has no column for image paths; its columns are photo, kind (separated by semicolons): name "
            "one by --image-column",
        ),
        (
            b"path,label,Label\na.png,cat,cat\n",
            "'table.csv' has more than one column for classes; its columns are path, label, Label (separated by "
            "commas): name one by --label-column",
        ),
        (
            b"path,label\na.png,a, b\n",
            "'table.csv', line 2 has 3 fields, but the header has 2: put a field that contai",
        ),
        (
            b'path,label\na.png,"cat\n',
            "'table.csv', line 2 is no CSV (unexpected end of data): end each field that beg",
        ),
        (b"path,label\n\n\na.png\n", "'table.csv', line 4: path and label must both be given"),
        (b"path,label\n ,cat\n", "'table.csv', line 2: path and label must both be given"),
        (
            b"path,label,Split\na.png,cat,extra\n",
            "'table.csv', line 2 has the split 'extra'; use one of train, val, valid, validation, test, training, dev, "
            "testing, or leave splits out",
        ),
        (
            b"path,label,split\na.png,cat,\nb.png,cat,train\n",
            "'table.csv', line 2 has no split, but 'table.csv', line 3 has one: give every row train, val or test, or "
            "leave splits out",
        ),
        (b"path,label,split,Split\na,b,c,d\n", "'table.csv' has more than one column for splits; its columns are path"),
        (
            f"path,label\na.png,cat\nb.png,{'x' * 300}\n".encode(),
            f"'table.csv' has a class '{'x' * 100}' (line 3); a class's name has 1 to 100 printable characters: rename",
        ),
        (
            b"path,label\na.png,Cat\nb.png,dog\nc.png,cat\n",
            "'table.csv' has the classes 'Cat' (line 2) and 'cat' (line 4), which differ only in case, spaces or the "
            "form of their letters: merge or rename them",
        ),
        (
            "path,label\na.png,caf\xe9\nb.png,cafe\u0301\n".encode(),
            r"'table.csv' has the classes 'cafe\u0301' (line 3) and 'caf\xe9' (line 2), which differ only in case, sp",
        ),
    ],
    ids=lambda value: None if isinstance(value, bytes) else " ".join(value.split()[1:6]),
)
def test_a_csv_is_refused(tmp_path: Path, refusal: Callable[[Path], str], data: bytes, message: str) -> None:
    (tmp_path / "table.csv").write_bytes(data)
    assert refusal(tmp_path / "table.csv").startswith(message)


def test_images_that_cannot_be_read_are_named_by_path_and_line(images: Path, load: Load, tmp_path: Path) -> None:
    (images / "cat" / "000.png").write_bytes(b"abc")
    more = [("images/gone.png", "cat"), ("images/cat", "dog")]
    source = write_csv(images, [*rows(images), *more])
    with pytest.raises(InvalidData) as caught:
        load(source, skip_unreadable=False)
    assert str(caught.value).replace(f"{tmp_path}/", "") == (
        "'table.csv': 3 of 14 images cannot be used; repair or remove them, or have them skipped (--skip-unreadable):\n"
        "  images/cat (line 15): the path is not that of a file\n"
        "  images/cat/000.png (line 2): the 3 bytes are not a readable image (UnidentifiedImageError): send one of "
        "PNG, JPEG, WEBP, GIF, BMP, TIFF, AVIF, HEIF\n"
        "  images/gone.png (line 14): the file cannot be read (No such file or directory); paths are relative to "
        f"'{tmp_path}'"
    )
    assert len(load(source, skip_unreadable=True).skipped) == 3


@pytest.mark.parametrize("part", ["test", "val"])
def test_a_table_without_images_to_train_on(images: Path, load: Load, part: str) -> None:
    source = write_csv(images, [(*row, part) for row in rows(images)], "path,label,split")
    with pytest.raises(InvalidData, match=f"has '{part}' but no images in 'train': mark rows as train, or leave"):
        load(source)


def test_a_spreadsheet_is_refused(tmp_path: Path, refusal: Callable[[Path], str]) -> None:
    (tmp_path / "table.xlsx").write_bytes(b"PK\3\4")
    assert refusal(tmp_path / "table.xlsx") == "'table.xlsx' is a spreadsheet: save it as 'CSV UTF-8' and give that"


# what is refused: parquet


def test_a_row_of_parquet_without_image(images: Path, tmp_path: Path, refusal: Callable[[Path], str]) -> None:
    data = [(tmp_path / path).read_bytes() for path, _ in rows(images)]
    for image in (None, {"bytes": None, "path": None}, {"bytes": None, "path": ""}, {"bytes": None, "path": "a\0b"}):
        table = {"image": [*({"bytes": value, "path": None} for value in data), image], "label": ["a", "b"] * 6 + ["a"]}
        pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet")
        said = refusal(tmp_path / "t.parquet")
        assert said == "'t.parquet', row 13 has no image in 'image': give it one, or remove the row"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat", None] * 6, "'t.parquet', row 2 has no class in 'label': give it one, or remove the row"),
        (["cat", " "] * 6, "'t.parquet', row 2 has no class in 'label': give it one, or remove the row"),
        ([["red"], ["blue"]] * 6, "'t.parquet' has classes of the type list<"),
        ([1.0, 2.0] * 6, "'t.parquet' has classes of the type double in 'label': make them one text or whole number"),
        (pyarrow.array([None] * 12, pyarrow.null()), "'t.parquet' has classes of the type null in 'label': make them"),
    ],
    ids=["null", "spaces", "lists", "fractions", "nothing"],
)
def test_classes_of_parquet_are_refused(
    images: Path, tmp_path: Path, refusal: Callable[[Path], str], labels: Sequence[object], message: str
) -> None:
    table = {"image": [(tmp_path / path).read_bytes() for path, _ in rows(images)], "label": labels}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet")
    assert refusal(tmp_path / "t.parquet").startswith(message)


@pytest.mark.parametrize("wrong", [-1, 2])
def test_a_number_that_names_no_class(images: Path, tmp_path: Path, refusal: Callable[[Path], str], wrong: int) -> None:
    features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    data = [(tmp_path / path).read_bytes() for path, _ in rows(images)]
    table = pyarrow.table({"image": data, "label": [0, 1] * 5 + [0, wrong]})
    pyarrow.parquet.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "t.parquet"
    )
    assert refusal(tmp_path / "t.parquet") == (
        f"'t.parquet', row 12 has the class {wrong} in 'label', whose 2 names are numbered 0 to 1: give it one of "
        "them, or remove the row"
    )


@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
def test_a_parquet_file_that_is_cut_off(
    images: Path, tmp_path: Path, refusal: Callable[[Path], str], part: float
) -> None:
    path = write_parquet(tmp_path / "t.parquet", rows(images))
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    said = refusal(path)
    assert said.startswith("'t.parquet' cannot be read as parquet (")
    assert said.endswith("): make it again, or download it again")


def test_a_parquet_file_that_is_damaged_within(images: Path, tmp_path: Path, refusal: Callable[[Path], str]) -> None:
    path = write_parquet(tmp_path / "t.parquet", rows(images))
    data = bytearray(path.read_bytes())
    data[4:400] = b"\xff" * 396
    path.write_bytes(data)
    assert refusal(path).startswith("'t.parquet' cannot be read as parquet (")


def test_a_third_part_is_not_left_out(images: Path, tmp_path: Path, refusal: Callable[[Path], str]) -> None:
    whole = write_parquet(tmp_path / "t.parquet", rows(images)).read_bytes()
    folder = tmp_path / "svhn"
    folder.mkdir()
    for part in ("train", "test", "extra"):
        (folder / f"{part}-00000-of-00001.parquet").write_bytes(whole)
    assert refusal(folder) == (
        "'svhn' has parts, such as 'test-00000-of-00001.parquet', and the file 'extra-00000-of-00001.parquet', whose "
        "name says none: rename it so that 'train', 'val' or 'test' is a word of its name, or move it out of the folder"
    )
    (folder / "extra-00000-of-00001.parquet").rename(folder / "train_test.parquet")
    assert refusal(folder) == ("'svhn' has the file 'train_test.parquet', whose name says test and train: rename it")


def test_a_column_and_a_name_that_say_different_parts(
    images: Path, tmp_path: Path, refusal: Callable[[Path], str]
) -> None:
    folder = tmp_path / "both"
    for part in ("train", "test"):
        path = write_parquet(tmp_path / f"{part}.parquet", rows(images), split=["train"] * 12)
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    assert refusal(folder) == (
        "'both/test.parquet', row 1 has the split 'train', but lies in the part 'test' by its file's name: correct one "
        "of them"
    )


def test_a_third_part_of_the_hub_is_not_left_out(images: Path, tmp_path: Path) -> None:
    files = [f"{part}.parquet" for part in ("train", "test", "extra")]
    for file in files:
        write_parquet(tmp_path / file, rows(images)).rename(images / file)
    card = "---\nconfigs:\n- config_name: all\n  data_files:\n"
    lines = [f"  - split: {file.removesuffix('.parquet')}\n    path: {file}\n" for file in files]
    (images / "README.md").write_text(f"{card}{''.join(lines)}---\n")  # a folder as the hub would send it
    source = f"hub:{images}:all"
    with pytest.raises(InvalidData, match="has the split 'extra'; use one of train, val"):
        as_image_folder(source, tmp_path / "cache")
    (images / "README.md").write_text(f"{card}{''.join(lines[:2])}---\n")
    found = read_table(as_image_folder(source, tmp_path / "cache")).images
    assert [(image.name, image.label, image.split) for image in found[::12]] == [
        ("train (row 1)", "cat", "train"),
        ("test (row 1)", "cat", "test"),
    ]
    assert found[1].file.read_bytes() == (tmp_path / rows(images)[1][0]).read_bytes()
