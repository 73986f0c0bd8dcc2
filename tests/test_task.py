"""Tasks: splits that depend on the images alone, and pixels that are decoded once."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evolve.task import LabelledImages, Task, default_val_fraction, load_task
from models.errors import InvalidConfig, InvalidData
from models.labelled_table import Split
from models.names import TaskName
from models.preprocess import load_pixels
from tests.support.images import draw_folder, zipped
from tests.support.shared_data import shared_file

PETS = TaskName("pets")
Load = Callable[..., Task]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(path: Path, *, seed: int = 0, **options: object) -> Task:
        return load_task(PETS, path, seed=seed, cache_folder=tmp_path / "cache", **options)  # type: ignore[arg-type]

    return load


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return draw_folder(tmp_path / "pets", {"train/cat": 20, "train/dog": 12, "test/cat": 3, "test/dog": 3})


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    return draw_folder(tmp_path / "flat", {"cat": 40, "dog": 20})


def parts(task: Task) -> dict[Split, tuple[str, ...]]:
    """Return the content digests of each split."""
    assert task.test is not None
    return {"train": task.train.digests, "val": task.val.digests, "test": task.test.digests}


def as_sets(task: Task) -> dict[Split, set[str]]:
    return {split: set(digests) for split, digests in parts(task).items()}


def counts(images: LabelledImages) -> list[int]:
    return [int(count) for count in np.bincount(images.labels)]


# splits


def test_val_is_taken_from_train(pets: Path, load: Load) -> None:
    task = load(pets)
    assert task.labels == ("cat", "dog")
    assert task.num_classes == 2
    assert (counts(task.train), counts(task.val)) == ([15, 9], [5, 3])
    assert task.test is not None
    assert counts(task.test) == [3, 3]
    assert not set(task.train.names) & set(task.val.names)
    assert all(name.startswith("train/") for name in task.train.names + task.val.names)
    assert task.train.labels.dtype == np.int64
    assert [name.split("/")[1] for name in task.train.names] == [task.labels[label] for label in task.train.labels]


def test_one_level_of_class_folders_is_split_in_three(flat: Path, load: Load) -> None:
    task = load(flat)
    assert task.test is not None
    assert (counts(task.test), counts(task.val), counts(task.train)) == ([8, 4], [8, 4], [24, 12])
    assert len(set(task.train.names + task.val.names + task.test.names)) == 60


def test_a_given_val_is_used_as_it_is(tmp_path: Path, load: Load) -> None:
    path = draw_folder(tmp_path / "pets", {"train/cat": 4, "train/dog": 4, "val/cat": 2, "val/dog": 1})
    task = load(path)
    assert (counts(task.train), counts(task.val), task.test) == ([4, 4], [2, 1], None)


@pytest.mark.parametrize(
    ("images", "fraction"), [(100, 0.25), (2000, 0.25), (2500, 0.2), (5000, 0.1), (20_000, 0.1)], ids=str
)
def test_small_data_sets_give_up_a_larger_part(images: int, fraction: float) -> None:
    assert default_val_fraction(images) == fraction


def test_val_fraction(flat: Path, load: Load) -> None:
    assert counts(load(flat, val_fraction=0.5).val) == [16, 8]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0])
def test_a_val_fraction_out_of_range_is_refused(flat: Path, load: Load, fraction: float) -> None:
    with pytest.raises(InvalidConfig, match=rf"^val_fraction is {fraction}; it must lie between 0 and 1: try 0.2"):
        load(flat, val_fraction=fraction)


def test_a_class_keeps_an_image_to_train_on_and_val_comes_before_test(tmp_path: Path, load: Load) -> None:
    task = load(draw_folder(tmp_path / "few", {"one": 1, "three": 3, "two": 2}))
    assert task.test is not None
    assert task.labels == ("one", "three", "two")
    assert [np.bincount(images.labels, minlength=3).tolist() for images in (task.train, task.val, task.test)] == [
        [1, 1, 1],
        [0, 1, 1],
        [0, 1, 0],
    ]


def test_one_image_per_class_leaves_none_for_validation(tmp_path: Path, load: Load) -> None:
    with pytest.raises(InvalidData, match=r"has one image per class, none is left for validation: add more of each$"):
        load(draw_folder(tmp_path / "few", {"a": 1, "b": 1}))


def test_the_seed_decides(flat: Path, load: Load) -> None:
    assert parts(load(flat)) == parts(load(flat))
    assert as_sets(load(flat)) != as_sets(load(flat, seed=1))
    assert load(flat).digest == load(flat).digest != load(flat, seed=1).digest


def test_a_zip_is_split_as_its_folder(flat: Path, load: Load) -> None:
    folder, archive = load(flat), load(zipped(flat, below="wrapped/"))
    assert parts(folder) == parts(archive)
    assert folder.digest == archive.digest


def test_names_and_their_order_do_not_matter(flat: Path, tmp_path: Path, load: Load) -> None:
    files = sorted((flat / "cat").iterdir())
    for name, file in zip(reversed(files), files, strict=True):
        target = tmp_path / "renamed" / "cat" / f"x{name.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    shutil.copytree(flat / "dog", tmp_path / "renamed" / "dog")
    assert as_sets(load(flat)) == as_sets(load(tmp_path / "renamed"))


def test_more_images_move_few_of_the_old_ones(tmp_path: Path, load: Load) -> None:
    before = load(draw_folder(tmp_path / "a", {"cat": 100, "dog": 2}))
    after = load(draw_folder(tmp_path / "b", {"cat": 100, "dog": 2, "cat/more": 30}))
    moved = as_sets(before)["train"] & (as_sets(after)["val"] | as_sets(after)["test"])
    assert len(moved) <= 10


def test_identical_images_stay_together(flat: Path, load: Load) -> None:
    for file in sorted((flat / "cat").iterdir()):
        shutil.copy(file, file.with_name(f"twin-{file.name}"))
    sets = as_sets(load(flat))
    assert not sets["train"] & sets["val"]
    assert not sets["test"] & (sets["train"] | sets["val"])


# pixels


def test_pixels_are_those_of_the_one_preprocessing(pets: Path, load: Load) -> None:
    task = load(pets)
    for size in (8, 20):
        pixels = task.val.pixels(size)
        expected = [load_pixels((pets / name).read_bytes(), size) for name in task.val.names]
        np.testing.assert_array_equal(pixels, np.stack(expected))
        assert pixels.dtype == np.uint8
        assert not pixels.flags.writeable


def test_images_are_decoded_once_per_size(pets: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    task = load(pets)
    first = np.array(task.val.pixels(8))
    monkeypatch.setattr("models.preprocess.load_pixels", None)
    monkeypatch.setattr("models.looking.check_image", None)
    np.testing.assert_array_equal(load(pets).val.pixels(8), first)
    with pytest.raises(TypeError):
        load(pets).val.pixels(12)


def test_nothing_unfinished_stays_in_the_cache(pets: Path, load: Load, tmp_path: Path) -> None:
    load(pets).train.pixels(8)
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".json", ".npy"]


@pytest.mark.parametrize("content", [b"", b"garbage", None], ids=["empty", "garbage", "another shape"])
def test_a_damaged_cache_is_made_anew(pets: Path, load: Load, tmp_path: Path, content: bytes | None) -> None:
    first = np.array(load(pets).val.pixels(8))
    (cached,) = (tmp_path / "cache").glob("*.npy")
    if content is None:
        np.save(cached, np.zeros((1, 8, 8, 3), np.uint8))
    else:
        cached.write_bytes(content)
    for remembered in (tmp_path / "cache").glob("*.json"):
        remembered.write_text("[")
    np.testing.assert_array_equal(load(pets).val.pixels(8), first)


def test_progress_is_told(pets: Path, load: Load) -> None:
    seen: list[tuple[int, int]] = []
    task = load(pets, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (38, 38)
    task.val.pixels(8, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (8, 8)


def test_a_task_travels_to_other_processes(pets: Path, load: Load) -> None:
    task = load(pets)
    copy = pickle.loads(pickle.dumps(task))
    np.testing.assert_array_equal(copy.val.pixels(8), task.val.pixels(8))


def test_images_that_change_while_in_use_are_refused(pets: Path, load: Load) -> None:
    task = load(pets)
    changed, gone = task.val.names[:2]
    shutil.copy(pets / task.train.names[0], pets / changed)
    (pets / gone).unlink()
    with pytest.raises(InvalidData) as caught:
        task.val.pixels(8)
    assert str(caught.value).startswith(f"'{pets}': 2 of 8 images cannot be used")
    assert f"{changed}: changed since the task was loaded" in str(caught.value)
    assert f"{gone}: gone since the task was loaded" in str(caught.value)


# unreadable images


def test_unreadable_images_are_refused(pets: Path, load: Load) -> None:
    (pets / "train/cat/003.png").write_bytes(b"no image")
    with pytest.raises(InvalidData) as caught:
        load(pets, skip_unreadable=False)
    assert str(caught.value) == (
        f"'{pets}': 1 of 38 images cannot be used; repair or remove them, or have them skipped (--skip-unreadable):\n"
        "  train/cat/003.png: the 8 bytes are not a readable image (UnidentifiedImageError): send one of PNG, JPEG, "
        "WEBP, GIF, BMP, TIFF, AVIF, HEIF"
    )


def test_unreadable_images_are_skipped_on_demand(pets: Path, load: Load) -> None:
    (pets / "train/cat/003.png").write_bytes(b"no image")
    task = load(pets, skip_unreadable=True)
    assert list(task.skipped) == ["train/cat/003.png"]
    assert len(task.train) + len(task.val) == 31
    assert task.train.pixels(8).shape == (len(task.train), 8, 8, 3)
    assert task.describe().warnings() == ("1 unreadable images were skipped",)


def test_a_class_of_only_unreadable_images_is_refused(pets: Path, load: Load) -> None:
    for file in (pets / "train/dog").iterdir():
        file.write_bytes(b"")
    with pytest.raises(InvalidData, match=r"no image to train on of the class 'dog' can be read: add some$"):
        load(pets, skip_unreadable=True)


def test_what_is_unreadable_is_remembered(pets: Path, load: Load, tmp_path: Path) -> None:
    (pets / "train/cat/003.png").write_bytes(b"no image")
    skipped = load(pets, skip_unreadable=True).skipped
    (remembered,) = (tmp_path / "cache").glob("*.json")
    found = json.loads(remembered.read_text())
    assert len(found) == 38
    assert [problem for problem in found.values() if problem] == list(skipped.values())
    assert load(pets, skip_unreadable=True).skipped == skipped


# descriptions


def test_a_sound_task_has_no_warnings(pets: Path, load: Load) -> None:
    summary = load(pets).describe()
    assert summary.counts == {"train": (15, 9), "val": (5, 3), "test": (3, 3)}
    assert summary.imbalance == pytest.approx(15 / 9)
    assert summary.warnings() == ()


def test_what_a_person_should_know_is_said(tmp_path: Path, load: Load) -> None:
    path = draw_folder(tmp_path / "pets", {"train/cat": 60, "train/dog": 4, "test/cat": 3})
    shutil.copy(path / "train/cat/000.png", path / "test/cat/copy.png")
    (path / "notes.txt").touch()
    summary = load(path).describe()
    assert summary.missing("test") == ("dog",)
    assert summary.warnings() == (
        "1 of 2 classes have no image in test, such as 'dog'",
        "the largest class has 15 times the training images of the smallest",
        "1 test images are also among those trained or selected on",
        "1 files were ignored: no images, or outside of the class folders, such as 'notes.txt'",
    )


@pytest.mark.shared_data
def test_a_real_data_set(load: Load) -> None:
    task = load(shared_file("datasets/hymenoptera.zip"))
    assert task.test is not None
    assert (len(task.train), len(task.val), len(task.test)) == (183, 61, 153)
    assert task.val.pixels(32).shape == (61, 32, 32, 3)


def test_what_lies_deeper_or_in_two_classes_is_told(flat: Path, load: Load) -> None:
    (flat / "cat" / "wild").mkdir()
    (flat / "cat" / "000.png").rename(flat / "cat" / "wild" / "000.png")
    shutil.copy(flat / "cat" / "001.png", flat / "dog" / "twin.png")
    task = load(flat)
    assert task.nested == ("cat/wild/000.png",)
    assert task.contradictory == ("cat/001.png", "dog/twin.png")
    nested, contradictory = task.describe().warnings()
    assert nested == (
        "1 images lie in folders within a class folder, and are taken for that class: if those are classes of their "
        "own, move them up"
    )
    assert contradictory == (
        "2 images lie in more than one class, the same byte for byte: no answer can be right for all of them"
    )


FRAMES, FILMS = 10, 8  # of each film, of each class


def films(folder: Path, *, is_shuffled: bool) -> Path:
    """Write three classes of films whose frames differ by little, named in order or in none."""
    rng = np.random.default_rng(0)
    for label in ("bus", "car", "van"):
        (folder / label).mkdir(parents=True)
        names = rng.permutation(FILMS * FRAMES) if is_shuffled else np.arange(FILMS * FRAMES)
        for at, name in enumerate(names):
            if at % FRAMES == 0:
                scene = rng.uniform(0, 230, (16, 16, 3))
            frame = (scene + rng.uniform(0, 25, scene.shape)).astype(np.uint8)
            Image.fromarray(frame).save(folder / label / f"{name}.png")
    return folder


def test_films_are_not_torn_apart(tmp_path: Path, load: Load) -> None:
    task = load(films(tmp_path / "films", is_shuffled=False))
    assert task.in_runs
    assert task.describe().warnings() == (
        "images that follow each other by name are nearly the same, like frames of a film: what is held out is a run "
        "of each class, not single images",
    )
    assert task.test is not None
    for held_out in (task.val, task.test):
        for label in range(3):
            frames = sorted(
                int(Path(name).stem) for name, of in zip(held_out.names, held_out.labels, strict=True) if of == label
            )
            gone = {int(Path(name).stem) for name in task.test.names} if held_out is task.val else set()
            between = set(range(frames[0], frames[-1])) - gone
            assert len(frames) == 16
            assert between <= set(frames)  # one run, but for what test took before


def test_films_without_an_order_and_few_images_are_split_one_by_one(tmp_path: Path, load: Load, flat: Path) -> None:
    assert not load(films(tmp_path / "films", is_shuffled=True)).in_runs
    assert not load(flat).in_runs


def test_class_folders_in_split_folders_are_not_nested(pets: Path, load: Load) -> None:
    assert load(pets).nested == ()
