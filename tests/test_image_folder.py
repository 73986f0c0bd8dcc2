"""Labelled images from folders and zips: the layouts that are understood, and a clear refusal of all others."""

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from models.errors import ImageTooLarge, InvalidData, InvalidImage
from models.image_folder import (
    SUFFIXES,
    DataLimits,
    ImageFolder,
    find_unreadable,
    look_at_images,
    open_image_folder,
    unreadable,
)
from models.labelled_table import ListedImage, write_table
from models.preprocess import ImageLimits
from tests.support.images import draw, draw_folder, zipped
from tests.support.shared_data import shared_file


def refusal(path: Path, limits: DataLimits = DataLimits()) -> str:
    """Return why the data is refused, without its path, which every message must name."""
    with pytest.raises(InvalidData) as caught:
        open_image_folder(path, limits)
    assert repr(str(path)) in str(caught.value)
    return str(caught.value).replace(repr(str(path)), "DATA")


def summary(folder: ImageFolder) -> list[tuple[str, str, str | None]]:
    return [(entry.name, folder.labels[entry.label], entry.split) for entry in folder.entries]


def write_zip(path: Path, members: Mapping[str, bytes], *more: zipfile.ZipInfo) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        for member in more:
            archive.writestr(member, b"")
    return path


@pytest.fixture
def png(tmp_path: Path) -> bytes:
    draw(tmp_path / "one.png", hue=0, number=0)
    return (tmp_path / "one.png").read_bytes()


# layouts


def test_one_folder_per_class(tmp_path: Path) -> None:
    draw_folder(tmp_path / "pets", {"dog": 1, "cat": 2})
    with open_image_folder(tmp_path / "pets") as folder:
        assert folder.labels == ("cat", "dog")
        assert summary(folder) == [
            ("cat/000.png", "cat", None),
            ("cat/001.png", "cat", None),
            ("dog/000.png", "dog", None),
        ]
        assert folder.ignored == ()


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_splits(tmp_path: Path, val: str) -> None:
    draw_folder(tmp_path / "pets", {"train/cat": 1, "train/dog": 1, f"{val}/cat": 1, "test/dog": 1})
    with open_image_folder(tmp_path / "pets") as folder:
        assert {(name.split("/")[0], split) for name, _, split in summary(folder)} == {
            ("train", "train"),
            (val, "val"),
            ("test", "test"),
        }
        assert [label for _, label, split in summary(folder) if split == "test"] == ["dog"]


@pytest.mark.parametrize(
    "counts", [{"a": 2, "b": 2}, {"train/a": 2, "train/b": 2, "test/a": 1}], ids=["flat", "splits"]
)
@pytest.mark.parametrize("below", ["", "pets/", "./", "outer/inner/"])
def test_a_zip_is_as_its_folder(tmp_path: Path, counts: dict[str, int], below: str) -> None:
    path = draw_folder(tmp_path / "pets", counts)
    with open_image_folder(path) as folder, open_image_folder(zipped(path, below=below)) as archive:
        assert archive.entries == folder.entries
        assert archive.labels == folder.labels
        assert [archive.read(entry) for entry in archive.entries] == [folder.read(entry) for entry in folder.entries]


def test_a_zip_without_entries_for_its_folders(tmp_path: Path, png: bytes) -> None:
    path = write_zip(tmp_path / "pets.zip", {"train/a/0.png": png, "train/b/0.png": png})
    with open_image_folder(path) as folder:
        assert folder.labels == ("a", "b")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    draw_folder(tmp_path / "vehicles", {"bus": 1, "car": 1, "train": 1})
    with open_image_folder(tmp_path / "vehicles") as folder:
        assert folder.labels == ("bus", "car", "train")
        assert {entry.split for entry in folder.entries} == {None}


def test_images_in_folders_below_a_class_folder_belong_to_the_class(tmp_path: Path) -> None:
    draw_folder(tmp_path / "pets", {"cat": 1, "dog": 1})
    draw(tmp_path / "pets" / "cat" / "kittens" / "x.png", hue=0, number=9)
    with open_image_folder(tmp_path / "pets") as folder:
        assert summary(folder)[1] == ("cat/kittens/x.png", "cat", None)


def test_numbers_in_labels_are_in_numeric_order(tmp_path: Path) -> None:
    draw_folder(tmp_path / "n", dict.fromkeys(["10", "9", "1", "x10", "x9", "a"], 1))
    with open_image_folder(tmp_path / "n") as folder:
        assert folder.labels == ("1", "9", "10", "a", "x9", "x10")


def test_what_file_managers_leave_is_overlooked(tmp_path: Path, png: bytes) -> None:
    draw_folder(tmp_path / "pets", {"cat": 1, "dog": 1, ".thumbnails": 1, "__MACOSX/cat": 1, "cat/.cache": 1})
    for name in ("cat/.DS_Store", "cat/Thumbs.db", ".hidden.png", "cat/._000.png", "desktop.ini"):
        (tmp_path / "pets" / name).write_bytes(png)
    with open_image_folder(zipped(tmp_path / "pets")) as folder:
        assert [entry.name for entry in folder.entries] == ["cat/000.png", "dog/000.png"]
        assert folder.ignored == ()
        assert folder.hidden == (
            ".hidden.png",
            ".thumbnails/000.png",
            "__MACOSX/cat/000.png",
            "cat/.DS_Store",
            "cat/._000.png",
            "cat/.cache/000.png",
            "cat/Thumbs.db",
            "desktop.ini",
        )


def test_other_files_are_ignored_and_reported(tmp_path: Path, png: bytes) -> None:
    draw_folder(tmp_path / "pets", {"cat": 1, "dog": 1})
    for name in ("README.txt", "overview.png", "cat/boxes.json"):
        (tmp_path / "pets" / name).write_bytes(png)
    with open_image_folder(tmp_path / "pets") as folder:
        assert len(folder.entries) == 2
        assert folder.ignored == ("README.txt", "cat/boxes.json", "overview.png")


def test_labels_are_in_one_unicode_form(tmp_path: Path) -> None:
    draw_folder(tmp_path / "pets", {"cafe\u0301  au lait": 1, "tea": 1})
    with open_image_folder(tmp_path / "pets") as folder:
        assert folder.labels == ("caf\u00e9 au lait", "tea")
        assert folder.read(folder.entries[0])


def test_utf8_names_without_their_flag_are_read_as_utf8(tmp_path: Path, png: bytes) -> None:
    path = write_zip(tmp_path / "pets.zip", {"k\u00e4se/0.png": png, "tea/0.png": png})
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(signature) + offset
        flags = struct.unpack_from("<H", data, at)[0]
        struct.pack_into("<H", data, at, flags & ~0x800)
    path.write_bytes(data)
    with open_image_folder(path) as folder:
        assert folder.labels == ("k\u00e4se", "tea")
        assert folder.read(folder.entries[0]) == png


def zip_with_raw_names(path: Path, members: Mapping[bytes, bytes], *, unicode_names: Mapping[bytes, str] = {}) -> Path:
    """Write a zip whose names are these bytes, without the flag of UTF-8; perhaps with the names in a field 0x7075."""
    stand_ins = {name: f"{number:0{len(name)}d}" for number, name in enumerate(members)}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            member = zipfile.ZipInfo(stand_ins[name])
            if name in unicode_names:
                field = struct.pack("<BI", 1, zlib.crc32(name)) + unicode_names[name].encode()
                member.extra = struct.pack("<HH", 0x5455, 1) + b"x" + struct.pack("<HH", 0x7075, len(field)) + field
            archive.writestr(member, data)
    packed = path.read_bytes()
    for name, stand_in in stand_ins.items():
        packed = packed.replace(stand_in.encode(), name)
    path.write_bytes(packed)
    return path


@pytest.mark.parametrize(("encoding", "names"), [("shift-jis", ("猫", "犬", "馬")), ("gbk", ("猫", "狗", "马"))])
def test_a_zip_with_names_of_an_unknown_encoding_is_refused(
    tmp_path: Path, png: bytes, encoding: str, names: tuple[str, ...]
) -> None:
    raw = [f"{name}/{number:03d}.png".encode(encoding) for name in names for number in range(2)]
    path = zip_with_raw_names(tmp_path / "pets.zip", dict.fromkeys(raw, png))
    first = raw[0] if encoding == "shift-jis" else raw[2]  # the bytes of a cat in GBK are also UTF-8
    assert refusal(path) == (
        f"DATA has the member {first!r}, whose name is not UTF-8: make the zip again with UTF-8 names, for example by "
        "'7z a -mcu=on DATA.zip FOLDER' or 'python -m zipfile -c DATA.zip FOLDER'"
    )


@pytest.mark.parametrize("encoding", ["shift-jis", "utf-8"])
def test_the_unicode_path_field_of_a_zip_counts(tmp_path: Path, png: bytes, encoding: str) -> None:
    names = [f"{name}/{number:03d}.png" for name in ("猫", "犬", "馬") for number in range(2)]
    raw = {name.encode(encoding): name for name in names}
    path = zip_with_raw_names(tmp_path / "pets.zip", dict.fromkeys(raw, png), unicode_names=raw)
    with open_image_folder(path) as folder:
        assert sorted(folder.labels) == sorted(["猫", "犬", "馬"])
        assert [entry.name for entry in folder.entries] == sorted(names)
        assert folder.read(folder.entries[0]) == png


def test_a_unicode_path_field_of_another_name_does_not_count(tmp_path: Path, png: bytes) -> None:
    raw = [f"{name}/0.png".encode() for name in ("cat", "dog")]
    path = zip_with_raw_names(tmp_path / "pets.zip", dict.fromkeys(raw, png), unicode_names={raw[0]: "ant/0.png"})
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<I", zlib.crc32(raw[0])) + b"ant", b"\0\0\0\0ant"))
    with open_image_folder(path) as folder:
        assert folder.labels == ("cat", "dog")


# to be judged, not learnt from


@pytest.mark.parametrize("counts", [{"cat": 2}, {"test/cat": 2}, {"test/cat": 1, "test/dog": 1}, {"val/cat": 1}])
def test_images_to_be_judged_may_be_of_one_class_or_part(tmp_path: Path, counts: Mapping[str, int]) -> None:
    path = draw_folder(tmp_path / "pets", counts)
    assert refusal(path)
    for data in (path, zipped(path)):
        with open_image_folder(data, to_judge=True) as folder:
            assert set(folder.labels) == {Path(name).name for name in counts}
            assert len(folder.entries) == sum(counts.values())


def test_backslashes_in_a_zip_separate_folders(tmp_path: Path, png: bytes) -> None:
    path = write_zip(tmp_path / "pets.zip", {"a\\0.png": png, "b\\0.png": png})
    with open_image_folder(path) as folder:
        assert folder.labels == ("a", "b")


def test_links_in_a_folder_are_followed_but_never_in_circles(tmp_path: Path) -> None:
    draw_folder(tmp_path / "elsewhere", {"cat": 1})
    draw_folder(tmp_path / "pets", {"dog": 1})
    (tmp_path / "pets" / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    (tmp_path / "pets" / "dog" / "up").symlink_to(tmp_path / "pets")
    with open_image_folder(tmp_path / "pets") as folder:
        assert [entry.name for entry in folder.entries] == ["cat/000.png", "dog/000.png"]


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Training", "Validation", "Testing"),
        ("TRAIN", "VALID", "TEST"),
        ("train_set", "val_set", "test_set"),
        ("trainset", "valset", "testset"),
        ("train-set", "val-set", "test-set"),
        ("Train Data", "Dev Data", "Test Data"),
        ("training_set", "validation_set", "testing_set"),
        ("images_train", "images_val", "images_test"),
        ("train_images", "dev", "TestImages"),
    ],
)
@pytest.mark.parametrize("below", ["", "archive/"])
def test_parts_by_their_common_names(tmp_path: Path, train: str, val: str, test: str, below: str) -> None:
    counts = {f"{train}/cat": 2, f"{train}/dog": 2, f"{val}/cat": 1, f"{test}/dog": 1}
    draw_folder(tmp_path / "pets", {f"{below}{name}": count for name, count in counts.items()})
    for path in (tmp_path / "pets", zipped(tmp_path / "pets")):
        with open_image_folder(path) as folder:
            assert folder.labels == ("cat", "dog")
            splits = [entry.split for entry in folder.entries]
            assert (splits.count("train"), splits.count("val"), splits.count("test")) == (4, 1, 1)


def test_parts_within_the_class_folders(tmp_path: Path) -> None:
    draw_folder(tmp_path / "pets", {"cat/Train": 2, "cat/test": 1, "dog/train": 2, "dog/Validation": 1})
    for path in (tmp_path / "pets", zipped(tmp_path / "pets", below="pets/")):
        with open_image_folder(path) as folder:
            assert summary(folder) == [
                ("cat/Train/000.png", "cat", "train"),
                ("cat/Train/001.png", "cat", "train"),
                ("cat/test/000.png", "cat", "test"),
                ("dog/Validation/000.png", "dog", "val"),
                ("dog/train/000.png", "dog", "train"),
                ("dog/train/001.png", "dog", "train"),
            ]


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".JFIF", ".Heic", ""])
def test_images_are_known_by_suffix_or_first_bytes(tmp_path: Path, png: bytes, suffix: str) -> None:
    draw_folder(tmp_path / "pets", {"dog": 1})
    (tmp_path / "pets/cat").mkdir()
    (tmp_path / f"pets/cat/0{suffix}").write_bytes(png)
    (tmp_path / "pets/cat/README").write_text("no image")
    for path in (tmp_path / "pets", zipped(tmp_path / "pets")):
        with open_image_folder(path) as folder:
            assert [entry.name for entry in folder.entries] == [f"cat/0{suffix}", "dog/000.png"]
            assert folder.ignored == ("cat/README",)
            assert find_unreadable(folder) == {}


def test_a_link_to_an_image_that_is_not_there_is_unreadable(tmp_path: Path) -> None:
    draw_folder(tmp_path / "pets", {"cat": 1, "dog": 1})
    (tmp_path / "pets/cat/gone.png").symlink_to("/nowhere/0.png")
    with open_image_folder(tmp_path / "pets") as folder:
        assert find_unreadable(folder) == {
            "cat/gone.png": "the link's target '/nowhere/0.png' cannot be read (No such file or directory)"
        }


def test_a_pipe_is_ignored_and_reported(tmp_path: Path) -> None:
    draw_folder(tmp_path / "pets", {"cat": 1, "dog": 1})
    os.mkfifo(tmp_path / "pets/cat/pipe.png")
    with open_image_folder(tmp_path / "pets") as folder:
        assert folder.ignored == ("cat/pipe.png",)


@pytest.mark.parametrize(
    "label",
    ["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0dc1\u0dca\u200d\u0dbb\u0dd3"],
    ids=["Persian", "Sinhala"],
)
def test_joiners_within_labels(tmp_path: Path, label: str) -> None:
    draw_folder(tmp_path / "pets", {label: 1, "dog": 1})
    for path in (tmp_path / "pets", zipped(tmp_path / "pets")):
        with open_image_folder(path) as folder:
            assert folder.labels == ("dog", label)


# refusals


def test_a_dead_link_that_may_be_a_class_is_refused(tmp_path: Path) -> None:
    draw_folder(tmp_path / "pets", {"cat": 1, "dog": 1})
    (tmp_path / "pets/eel").symlink_to("/nowhere/eel")
    assert refusal(tmp_path / "pets") == (
        "DATA has the link 'eel' to what is not there ('/nowhere/eel'): bring back its target, for example by "
        "mounting or fetching it, or remove the link"
    )


@pytest.mark.parametrize("parts", [("",), ("train/", "test/")], ids=["flat", "parts"])
def test_a_class_that_begins_with_a_dot_is_refused(tmp_path: Path, parts: tuple[str, ...]) -> None:
    draw_folder(tmp_path / "data", {f"{part}{name}": 1 for part in parts for name in (".net", "java", "python")})
    for path in (tmp_path / "data", zipped(tmp_path / "data")):
        assert refusal(path) == (
            "DATA has images in '.net', which begins with a dot and so is no class: rename it if it is one, else "
            "remove it"
        )


@pytest.mark.parametrize("name", ["a" * 1000 + ".png", "/".join("a" * 16_000) + "/0.png"], ids=["long", "deep"])
def test_a_name_in_a_zip_has_bounds(tmp_path: Path, png: bytes, name: str) -> None:
    path = write_zip(tmp_path / "data.zip", {"cat/0.png": png, "dog/0.png": png, name: png})
    assert refusal(path).startswith(f"DATA has a name of {len(name):,} characters, {name[:80]!r}...; at most 1,000 are")


def test_folders_in_each_other_have_bounds(tmp_path: Path) -> None:
    draw_folder(tmp_path / "data", {"cat": 1, "dog": 1, "/".join("a" * 40): 1})
    for path in (tmp_path / "data", zipped(tmp_path / "data")):
        assert " folders in each other, 'a/a/" in refusal(path)
        assert refusal(path).endswith("at most 32 are allowed: move the class folders up")


def test_a_zip_of_deep_names_costs_no_more_than_they_are_long(tmp_path: Path, png: bytes) -> None:
    deep = [f"{n}/" + "/".join("b" * 30) + "/0.png" for n in range(2000)]
    path = write_zip(tmp_path / "data.zip", dict.fromkeys(deep, png))
    with open_image_folder(path) as folder:
        assert len(folder.entries) == 2000


def test_no_such_path(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == (
        "there is no DATA: check the path; give one folder per class, or train/ and test/ (and val/) with one "
        "folder per class in each"
    )


def test_neither_folder_nor_zip(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("a,b")
    assert refusal(tmp_path / "data.csv").startswith("DATA is neither a folder nor a zip: give one folder per class")


@pytest.mark.parametrize("name", ["data.zip", "upload"])
def test_damaged_zip(tmp_path: Path, name: str) -> None:
    whole = zipped(draw_folder(tmp_path / "pets", {"cat": 2, "dog": 2})).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    assert refusal(tmp_path / name) == "DATA is a damaged zip (File is not a zip file): make or upload it again"


def _no_images(folder: Path) -> None:
    folder.mkdir()


def _only_text(folder: Path) -> None:
    (folder / "cat").mkdir(parents=True)
    (folder / "cat" / "a.svg").touch()


def _images_without_classes(folder: Path) -> None:
    draw_folder(folder, {".": 3})


def _splits_without_classes(folder: Path) -> None:
    draw_folder(folder, {"train": 3, "test": 2})


def _test_without_classes(folder: Path) -> None:
    draw_folder(folder, {"train/cat": 1, "train/dog": 1, "test": 2})


def _no_train(folder: Path) -> None:
    draw_folder(folder, {"test/cat": 1, "test/dog": 1})


def _two_val(folder: Path) -> None:
    draw_folder(folder, {"train/cat": 1, "train/dog": 1, "val/cat": 1, "valid/cat": 1})


def _more_beside_splits(folder: Path) -> None:
    draw_folder(folder, {"train/cat": 1, "train/dog": 1, "extra/cat": 1})


LAYOUT = "give one folder per class, or train/ and test/ (and val/) with one folder per class in each"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(
            _no_images,
            f"DATA has no images ({', '.join(SUFFIXES)}): {LAYOUT}",
            id="nothing",
        ),
        pytest.param(
            _only_text,
            f"DATA has no images ({', '.join(SUFFIXES)}); it has 1 other files such as 'cat/a.svg': {LAYOUT}",
            id="no images",
        ),
        pytest.param(_images_without_classes, f"DATA has no images in class folders: {LAYOUT}", id="no classes"),
        pytest.param(
            _splits_without_classes,
            f"DATA has images directly in 'test', 'train', without their classes: {LAYOUT}",
            id="splits without classes",
        ),
        pytest.param(
            _test_without_classes,
            "DATA has images directly in 'test', without their classes: put each into its class's folder",
            id="test without classes",
        ),
        pytest.param(_no_train, f"DATA has 'test' but no images in 'train': {LAYOUT}", id="no train"),
        pytest.param(
            _two_val, "DATA has more than one folder of a split among 'train', 'val', 'valid': merge them", id="two val"
        ),
        pytest.param(
            lambda folder: draw_folder(folder, {"seg_train/a": 1, "seg_train/b": 1, "seg_test/a": 1}),
            "DATA has 'seg_test', 'seg_train', which look like parts of the data and not like classes: rename them to "
            f"'train', 'val' and 'test'; {LAYOUT}",
            id="unknown parts",
        ),
        pytest.param(
            lambda folder: draw_folder(folder, {"cat/train": 1, "cat/test": 1, "dog": 1}),
            "DATA has 'test', 'train' within class folders, and other images beside them such as 'dog/000.png': put "
            "all images of a class into its parts, or none",
            id="parts within some classes",
        ),
        pytest.param(
            lambda folder: draw_folder(folder, {"cat/train": 1, "cat/training": 1, "dog/train": 1}),
            "DATA has more than one folder of a split in 'cat': merge them",
            id="two train within a class",
        ),
        pytest.param(
            lambda folder: draw_folder(folder, {"cat/test": 1, "dog/test": 1}),
            f"DATA has parts within its class folders, but no images in 'train': {LAYOUT}",
            id="no train within the classes",
        ),
        pytest.param(_more_beside_splits, f"DATA has 'extra' beside 'train': {LAYOUT}", id="more beside splits"),
    ],
)
def test_layouts_that_are_refused(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / "data")
    assert refusal(tmp_path / "data") == message
    assert refusal(zipped(tmp_path / "data")) == message


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        pytest.param({"cat": 3}, f"DATA has the one class 'cat'; at least two are needed: {LAYOUT}", id="one class"),
        pytest.param(
            {"cat": 3, "dog": 0, "eel": 0},
            "DATA has no images of the class 'dog', 'eel': add some, or remove the folder",
            id="empty classes",
        ),
        pytest.param(
            {"train/cat": 3, "train/dog": 1, "train/eel": 0, "test/eel": 1},
            "DATA has no images of the class 'eel': add some, or remove the folder",
            id="empty class in train",
        ),
        pytest.param(
            {"train/cat": 1, "train/dog": 1, "test/eel": 1},
            "DATA has the class 'eel' in test but not in train: add it to train, or remove it from test",
            id="test has more",
        ),
        pytest.param(
            {"train/cat": 1, "train/dog": 1, **{f"val/x{number}": 1 for number in range(7)}},
            "DATA has the class 'x0', 'x1', 'x2', 'x3', 'x4', and 2 more in val but not in train: add it to train, "
            "or remove it from val",
            id="val has more",
        ),
        pytest.param(
            {"Cat": 1, "cat ": 1, "dog": 1},
            "DATA has the class folders 'Cat' and 'cat ', which differ only in case, spaces or the form of their "
            "letters: merge or rename them",
            id="alike",
        ),
        pytest.param(
            {"caf\u00e9": 1, "cafe\u0301": 1, "dog": 1},
            r"DATA has the class folders 'cafe\u0301' and 'caf\xe9', which differ only in case, spaces or the form of "
            "their letters: merge or rename them",
            id="letters alike",
        ),
        pytest.param(
            {"a\x07b": 1, "c": 1},
            r"DATA has a class folder 'a\x07b'; a class's name has 1 to 100 printable characters: rename it",
            id="unprintable",
        ),
        pytest.param(
            {"a\u200d": 1, "c": 1},
            r"DATA has a class folder 'a\u200d'; a class's name has 1 to 100 printable characters: rename it",
            id="joins nothing",
        ),
        pytest.param(
            {"a\u202eb": 1, "c": 1},
            r"DATA has a class folder 'a\u202eb'; a class's name has 1 to 100 printable characters: rename it",
            id="turns the line",
        ),
        pytest.param(
            {"a\u200cb": 1, "ab": 1},
            r"DATA has the class folders 'ab' and 'a\u200cb', which differ only in case, spaces or the form of their "
            "letters: merge or rename them",
            id="alike but for a joiner",
        ),
        pytest.param(
            {"a" * 101: 1, "c": 1},
            f"DATA has a class folder '{'a' * 100}'; a class's name has 1 to 100 printable characters: rename it",
            id="long",
        ),
    ],
)
def test_classes_that_are_refused(tmp_path: Path, counts: dict[str, int], message: str) -> None:
    draw_folder(tmp_path / "data", counts)
    assert refusal(tmp_path / "data") == message
    assert refusal(zipped(tmp_path / "data")) == message


def test_an_empty_class_of_test_is_none_of_our_business(tmp_path: Path) -> None:
    draw_folder(tmp_path / "data", {"train/cat": 1, "train/dog": 1, "test/cat": 1, "test/dog": 0})
    with open_image_folder(tmp_path / "data") as folder:
        assert folder.labels == ("cat", "dog")


def test_a_folder_that_must_not_be_read(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("needs a user whom file permissions bind: root reads everything")
    draw_folder(tmp_path / "data", {"cat": 1, "dog": 1})
    (tmp_path / "data" / "dog").chmod(0)
    assert "cannot be read" in refusal(tmp_path / "data")


def test_too_many_images(tmp_path: Path) -> None:
    draw_folder(tmp_path / "data", {"cat": 2, "dog": 1})
    assert refusal(tmp_path / "data", DataLimits(max_images=2)) == (
        "DATA has 3 images; at most 2 are allowed: leave some out"
    )


def test_too_many_bytes(tmp_path: Path) -> None:
    draw_folder(tmp_path / "data", {"cat": 2, "dog": 1})
    message = refusal(tmp_path / "data", DataLimits(max_total_bytes=100))
    assert message.endswith("bytes in all; at most 100 are allowed: scale them down or leave some out")


def test_another_name_for_messages(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=r"^there is no uploaded zip: check"):
        open_image_folder(tmp_path / "none", shown_as="uploaded zip")


# hostile zips


def hostile(name: str, **attributes: int) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    for key, value in attributes.items():
        setattr(member, key, value)
    return member


@pytest.mark.parametrize(
    ("member", "problem"),
    [
        pytest.param(hostile("/etc/0.png"), "points outside of the zip", id="absolute"),
        pytest.param(hostile("c:\\0.png"), "points outside of the zip", id="drive"),
        pytest.param(hostile("a/../../0.png"), "points outside of the zip", id="parent"),
        pytest.param(hostile("a\\..\\0.png"), "points outside of the zip", id="parent with backslashes"),
        pytest.param(
            hostile("a/0.png", external_attr=(stat.S_IFLNK | 0o777) << 16), "is a link or a device", id="link"
        ),
        pytest.param(
            hostile("a/0.png", external_attr=(stat.S_IFCHR | 0o777) << 16), "is a link or a device", id="device"
        ),
        pytest.param(
            hostile("a/0.png", compress_type=zipfile.ZIP_BZIP2),
            "is compressed by method 12; stored (0) or deflated (8) is allowed",
            id="compression",
        ),
        pytest.param(hostile("b/./0.png"), "is there twice", id="twice"),
    ],
)
def test_hostile_members_are_refused(tmp_path: Path, png: bytes, member: zipfile.ZipInfo, problem: str) -> None:
    path = write_zip(tmp_path / "data.zip", {"b/0.png": png, "c/0.png": png}, member)
    assert refusal(path).startswith(f"DATA has the member {member.filename.replace(chr(92), '/')!r}, which {problem}")


def test_an_encrypted_member_is_refused(tmp_path: Path, png: bytes) -> None:
    path = write_zip(tmp_path / "data.zip", {"a/0.png": png, "b/0.png": png})
    data = bytearray(path.read_bytes())
    data[data.find(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    assert refusal(path) == ("DATA has the member 'a/0.png', which is encrypted: make the zip again without a password")


def test_a_bomb_is_refused_unread(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "ab":
            with archive.open(f"{name}/0.png", "w") as member:
                for _ in range(60):
                    member.write(bytes(2**20))
    message = refusal(tmp_path / "data.zip")
    assert "to 125,829,120 bytes; at most 200 times its own size is allowed: images hardly shrink" in message


def test_too_many_members_are_refused(tmp_path: Path, png: bytes) -> None:
    path = write_zip(tmp_path / "data.zip", {f"a/{number}.txt": b"" for number in range(5)} | {"a/0.png": png})
    assert refusal(path, DataLimits(max_images=2)) == "DATA has 6 members; at most 4 are allowed"


def test_a_lie_about_a_size_reads_no_more_than_that(tmp_path: Path, png: bytes) -> None:
    path = write_zip(tmp_path / "data.zip", {"a/0.png": png, "b/0.png": png})
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.find(b"PK\x01\x02") + 24, 10)
    path.write_bytes(data)
    with open_image_folder(path) as folder, pytest.raises(InvalidImage, match=r"^damaged within the zip \(.*CRC"):
        folder.read(folder.entries[0])


# reading


def test_unreadable_images_are_found_and_named(tmp_path: Path) -> None:
    path = draw_folder(tmp_path / "pets", {"cat": 8, "dog": 1})
    for number in range(7):
        (path / "cat" / f"{number:03d}.png").write_bytes(b"" if number else b"<html>")
    seen: list[tuple[int, int]] = []
    with open_image_folder(path) as folder:
        problems = find_unreadable(folder, lambda done, total: seen.append((done, total)))
    assert list(problems) == [f"cat/{number:03d}.png" for number in range(7)]
    assert seen == [(done, 9) for done in range(1, 10)]
    message = str(unreadable(problems, 9, "'pets'", can_skip=True))
    assert message.startswith(
        "'pets': 7 of 9 images cannot be used; repair or remove them, or have them skipped (--skip-unreadable):\n"
        "  cat/000.png: the 6 bytes are not a readable image"
    )
    assert message.endswith("\n  and 2 more")
    assert message.count("\n") == 6


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_processes_beside_find_the_same(tmp_path: Path, kind: str) -> None:
    path = draw_folder(tmp_path / "pets", {"cat": 400, "dog": 400})
    (path / "cat" / "003.png").write_bytes(b"abc")
    (path / "dog" / "001.png").write_bytes(bytes(3000))
    (path / "dog" / "002.png").unlink()
    (path / "dog" / "002.png").symlink_to(tmp_path / "nowhere")
    if kind == "table":
        files = sorted(path.rglob("*.png"))
        listed = (ListedImage(f"{file.name} (row {n})", file, file.parent.name, None) for n, file in enumerate(files))
        path = write_table(tmp_path / "lists", listed, shown_as="a table", relative_to=path)
    with open_image_folder(path, DataLimits(image=ImageLimits(max_bytes=2000))) as folder:
        digests, problems = look_at_images(folder)
        seen: list[tuple[int, int]] = []
        assert look_at_images(folder, lambda *told: seen.append(told), beside_from=1) == (digests, problems)
        assert seen == [(done, 800) for done in range(1, 801)]
        assert len(problems) == 3
        known = {digest: problems.get(entry.name, "known") for entry, digest in digests.items()}
        assert "known" in look_at_images(folder, known=known, beside_from=1)[1].values()


def test_a_member_damaged_within_a_zip_is_unreadable(tmp_path: Path, png: bytes) -> None:
    path = write_zip(tmp_path / "data.zip", {"a/0.png": png, "b/0.png": png})
    data = bytearray(path.read_bytes())
    data[data.find(png) + 20] ^= 0xFF
    path.write_bytes(data)
    with open_image_folder(path) as folder:
        problems = find_unreadable(folder)
    assert problems == {"a/0.png": "damaged within the zip (Bad CRC-32 for file 'a/0.png')"}


@pytest.mark.parametrize("as_zip", [False, True], ids=["folder", "zip"])
def test_an_image_over_the_limit_is_not_read(tmp_path: Path, as_zip: bool) -> None:
    path = draw_folder(tmp_path / "pets", {"cat": 1, "dog": 1})
    limits = DataLimits(image=ImageLimits(max_bytes=20))
    with (
        open_image_folder(zipped(path) if as_zip else path, limits) as folder,
        pytest.raises(ImageTooLarge, match=r"^the image has \d+ bytes; at most 20 are allowed: send a smaller file$"),
    ):
        folder.read(folder.entries[0])


def test_a_file_that_went_away_is_unreadable(tmp_path: Path) -> None:
    path = draw_folder(tmp_path / "pets", {"cat": 1, "dog": 1})
    with open_image_folder(path) as folder:
        (path / "cat" / "000.png").unlink()
        with pytest.raises(InvalidImage, match=r"^the file cannot be read \(No such file or directory\)$"):
            folder.read(folder.entries[0])


def test_map_keeps_the_order_also_in_threads(tmp_path: Path) -> None:
    path = draw_folder(tmp_path / "pets", {"cat": 20, "dog": 20})
    for file in path.rglob("*.png"):
        with file.open("ab") as stream:
            stream.write(bytes(20_000))  # decoders overlook it; large files are read by several threads
    with open_image_folder(zipped(path)) as folder:
        names = folder.map(lambda entry: (entry.name, len(folder.read(entry)) > 20_000), folder.entries)
    assert names == [(entry.name, True) for entry in folder.entries]


@pytest.mark.shared_data
def test_a_real_data_set() -> None:
    with open_image_folder(shared_file("datasets/gtsrb.zip")) as folder:
        assert len(folder.labels) == 43
        assert len(folder.entries) == 3440 + 1032
        assert {entry.split for entry in folder.entries} == {"train", "test"}
