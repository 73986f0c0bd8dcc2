"""Tables become the same tasks as folders; the paper's suites find their data or say what is needed."""

import csv
from pathlib import Path

import datasets
import pytest

from evolve.columns import Columns
from evolve.source import as_image_folder
from evolve.suites import SUITES, VTAB_SPLITS, locate, suite
from evolve.task import Task, load_task
from models.errors import InvalidConfig, InvalidData
from models.labelled_table import read_table
from models.names import TaskName, parse_task_name
from tests.support.tiny import COLOURS, draw_image_folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, seed in (("train", 1), ("test", 2)):
        draw_image_folder(tmp_path / "images" / split, images_per_class=4, seed=seed)
    return tmp_path / "images"


def load(source: str, tmp_path: Path, columns: Columns = Columns()) -> Task:
    folder = as_image_folder(source, tmp_path / "cache", columns)
    return load_task(TaskName("shapes"), folder, seed=0, cache_folder=tmp_path / "pixels")


def contents(task: Task) -> dict[str, list[tuple[str, str]]]:
    """Return digest and class of every image, whatever the files are called."""
    assert task.test is not None
    parts = {"learnt": (task.train, task.val), "test": (task.test,)}
    return {
        name: sorted(
            (digest, task.labels[label])
            for images in part
            for digest, label in zip(images.digests, images.labels, strict=True)
        )
        for name, part in parts.items()
    }


def write_manifest(folder: Path, *, header: tuple[str, str, str] = ("path", "label", "split")) -> Path:
    path = folder.parent / "images.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for image in sorted(folder.rglob("*.png")):
            writer.writerow([image.relative_to(path.parent), image.parent.name, image.parent.parent.name])
    return path


def write_parquet(folder: Path, target: Path, *, label: str = "label") -> Path:
    """Write a table as the hub keeps it: encoded images, and classes as numbers with names."""
    labels = sorted(COLOURS)
    target.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        files = sorted((folder / split).rglob("*.png"))
        features = datasets.Features({"image": datasets.Image(), label: datasets.ClassLabel(names=labels)})
        rows = {
            "image": [{"bytes": file.read_bytes(), "path": None} for file in files],
            label: [labels.index(file.parent.name) for file in files],
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(target / f"{split}-00000-of-00001.parquet")
    return target


def test_a_manifest_is_the_task_of_its_images(folder: Path, tmp_path: Path) -> None:
    assert contents(load(str(write_manifest(folder)), tmp_path)) == contents(load(str(folder), tmp_path))


def test_parquet_is_the_task_of_its_images(folder: Path, tmp_path: Path) -> None:
    table = write_parquet(folder, tmp_path / "table")
    assert contents(load(str(table), tmp_path)) == contents(load(str(folder), tmp_path))


def test_one_parquet_file_has_no_splits(folder: Path, tmp_path: Path) -> None:
    table = write_parquet(folder, tmp_path / "table", label="colour") / "train-00000-of-00001.parquet"
    task = load(str(table), tmp_path, Columns(label="colour"))
    assert task.test is not None
    assert len(task.train) + len(task.val) + len(task.test) == 12


def test_a_table_is_unpacked_once(folder: Path, tmp_path: Path) -> None:
    source = str(write_parquet(folder, tmp_path / "table") / "train-00000-of-00001.parquet")
    first = as_image_folder(source, tmp_path / "cache")
    (unpacked,) = {image.file.parent for image in read_table(first).images}
    stamp = unpacked.stat().st_mtime_ns
    assert as_image_folder(source, tmp_path / "cache") == first
    assert unpacked.stat().st_mtime_ns == stamp


def test_columns_of_other_names_are_to_be_named(folder: Path, tmp_path: Path) -> None:
    source = str(write_manifest(folder, header=("picture", "colour", "split")))
    message = r"has no column for image paths; its columns are picture, colour, split \(separated by commas\): name one"
    with pytest.raises(InvalidData, match=message):
        load(source, tmp_path)
    assert load(source, tmp_path, Columns("picture", "colour")).labels == tuple(sorted(COLOURS))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (",red,train", "line 2: path and label must both be given"),
        ("images/train/red/0.png,red,later", "has the split 'later'; use one of train, val"),
    ],
)
def test_a_mistake_in_a_manifest_is_refused(folder: Path, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "bad.csv").write_text(f"path,label,split\n{line}\n")
    with pytest.raises(InvalidData, match=message):
        load(str(tmp_path / "bad.csv"), tmp_path)
    assert not list((tmp_path / "cache" / "sources").glob("*"))  # nothing half written


def test_the_hub_without_a_network_says_what_to_download(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=r"hf download --repo-type dataset ylecun/mnist --local-dir FOLDER"):
        load("hub:ylecun/mnist", tmp_path)


# suites


@pytest.mark.parametrize("name", SUITES)
def test_a_suites_tasks_have_names_of_their_own(name: str) -> None:
    names = [task.name for task in suite(name)]
    assert len(set(names)) == len(names)
    assert all(parse_task_name(task) == task for task in names)


def test_the_paper_solves_its_tasks_jointly() -> None:
    assert len({task.name for name in ("characters", "decathlon", "imagenet-cifar") for task in suite(name)}) == 21
    assert len(suite("vtab-full")) == 23
    assert len(suite("vtab-1k")) == 25
    splits = {task.source: task.splits for task in suite("vtab-full")}
    assert set(VTAB_SPLITS) <= {source.split("/")[0] for source in splits}
    assert splits["smallnorb/label_azimuth"] == "train as published; the test part halved, to select on and as test"
    assert splits["dtd"] == "train, validation and test as published"


def test_a_suite_takes_local_copies_in_any_form(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "copies"
    write_parquet(folder, root / "cmaterdb_bangla")
    (root / "cmaterdb_devanagari").symlink_to(folder)
    write_manifest(folder).rename(tmp_path / "images" / "telugu.csv")
    (root / "cmaterdb_telugu.csv").write_text((tmp_path / "images" / "telugu.csv").read_text())
    (root / "images").symlink_to(folder)
    found = locate(suite("cmaterdb"), root)
    assert list(found) == ["cmaterdb_bangla", "cmaterdb_devanagari", "cmaterdb_telugu"]
    for source in found.values():
        assert load(source, tmp_path).num_classes == 3


def test_what_a_suite_lacks_is_listed_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(InvalidData) as caught:
        locate(suite("characters"), tmp_path)
    assert str(caught.value).startswith("7 tasks need a local copy")  # mnist is on the hub
    assert (
        f"{tmp_path / 'cmaterdb_bangla'}: cmaterdb/bangla, 10 classes; train and test as published; 20% of train"
        in str(caught.value)
    )


def test_an_unknown_suite_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="there is no suite 'chars'; suites: cmaterdb, characters, "):
        suite("chars")
