"""The paper's benchmark suites: the tasks that it solves jointly, by name, with source, splits and classes.

Tasks and their order are those of the public notebook (google-research/google-research, muNet/mu2Net.ipynb,
commit 04ece717), whose names are those of the TensorFlow Datasets catalogue. A hub name stands only where a
repository of that name and its columns were seen on the hub; everything else needs a local copy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evolve.source import HUB_PREFIX, Columns
from models.errors import InvalidConfig, InvalidData
from models.names import TaskName

TRAIN_TEST = "train and test as published"
NO_TEST_LABELS = "train as published; its validation part as test, since labels of the test part are withheld"
VTAB_FULL = "train, validation and test of the Visual Task Adaptation Benchmark"
VTAB_1K = "800 images to train on, 200 to select on, the whole test part (VTAB-1k)"
LOCAL_FORMS = ("", ".zip", ".parquet", ".csv")


@dataclass(frozen=True, slots=True)
class SuiteTask:
    """A task of the paper. `num_classes` is None where no source for it was confirmed."""

    name: TaskName
    source: str  # its name in the TensorFlow Datasets catalogue, or in VTAB
    splits: str
    num_classes: int | None
    hub: str | None = None  # confirmed name on the Hugging Face hub
    columns: Columns = Columns()


def _tasks(splits: str, tasks: Mapping[str, int | None], prefix: str = "", suffix: str = "") -> tuple[SuiteTask, ...]:
    def task_name(source: str) -> TaskName:
        return TaskName(source.replace("/", "_").replace("-", "_").lower())

    return tuple(
        SuiteTask(task_name(f"{prefix}{name}{suffix}"), f"{prefix}{name}{suffix}", splits, classes)
        for name, classes in tasks.items()
    )


MNIST = SuiteTask(TaskName("mnist"), "mnist", TRAIN_TEST, 10, "ylecun/mnist", Columns("image", "label"))
CIFAR100 = SuiteTask(
    TaskName("cifar100"), "cifar100", TRAIN_TEST, 100, "uoft-cs/cifar100", Columns("img", "fine_label")
)
CMATERDB = _tasks(TRAIN_TEST, {"cmaterdb/bangla": 10, "cmaterdb/devanagari": 10, "cmaterdb/telugu": 10})
VTAB = {
    "dtd": 47,
    "oxford_flowers102": 102,
    "oxford_iiit_pet": 37,
    "sun397": 397,
    "svhn_cropped": 10,
    "patch_camelyon": 2,
    "eurosat": 10,
    "resisc45": 45,
    "diabetic_retinopathy_detection/btgraham-300": 5,
    "clevr/count_cylinders": None,
    "clevr/count_all": 8,
    "clevr/closest_object_distance": 6,
    "dmlab": 6,
    "dsprites/label_x_position": 16,
    "dsprites/label_orientation": 16,
    "kitti/closest_object_distance": None,
    "kitti/count_vehicles": None,
    "kitti/closest_vehicle_distance": 4,
    "smallnorb/label_category": 5,
    "smallnorb/label_lighting": 6,
    "smallnorb/label_azimuth": 18,
    "smallnorb/label_elevation": 9,
}
SUITES: Mapping[str, tuple[SuiteTask, ...]] = {
    "cmaterdb": CMATERDB,
    "characters": (
        *_tasks(TRAIN_TEST, {"emnist/digits": 10, "emnist/letters": None, "kmnist": 10}),
        MNIST,
        *_tasks(TRAIN_TEST, {"omniglot": 1623}),
        *CMATERDB,
    ),
    "imagenet-cifar": (
        *_tasks("train as published; its validation part as test", {"imagenet2012": 1000}),
        CIFAR100,
        *_tasks(TRAIN_TEST, {"cifar10": 10}),
    ),
    "decathlon": _tasks(
        NO_TEST_LABELS,
        {
            "imagenet12": 1000,
            "svhn": 10,
            "cifar100": 100,
            "gtsrb": 43,
            "daimlerpedcls": 2,
            "omniglot": 1623,
            "ucf101": 101,
            "aircraft": 100,
            "dtd": 47,
            "vgg-flowers": 102,
        },
        prefix="visual_domain_decathlon/",
    ),
    "vtab-full": _tasks(VTAB_FULL, {"caltech101": 102, **VTAB}),
    "vtab-1k": _tasks(VTAB_1K, {"caltech101": 102, "cifar100": 100, "cifar10": 10, **VTAB}, suffix="/1k"),
}


def suite(name: str) -> tuple[SuiteTask, ...]:
    """Return a suite's tasks in order; InvalidConfig, listing the suites, if there is none of that name."""
    if name not in SUITES:
        raise InvalidConfig(f"there is no suite {name!r}; suites: {', '.join(SUITES)}")
    return SUITES[name]


def locate(tasks: Sequence[SuiteTask], data_root: Path | None) -> dict[TaskName, str]:
    """Return each task's source: its copy below `data_root`, else its confirmed place on the hub.

    Raises:
        InvalidData: tasks with neither; the message says for each what to get, and where to put it.
    """
    found: dict[TaskName, str] = {}
    missing: list[SuiteTask] = []
    for task in tasks:
        copies = [data_root / f"{task.name}{form}" for form in LOCAL_FORMS] if data_root else []
        copy = next((path for path in copies if path.exists()), None)
        if copy is not None:
            found[task.name] = str(copy)
        elif task.hub is not None:
            found[task.name] = f"{HUB_PREFIX}{task.hub}"
        else:
            missing.append(task)
    if missing:
        raise InvalidData(_missing(missing, data_root))
    return found


def _missing(tasks: Sequence[SuiteTask], data_root: Path | None) -> str:
    place = data_root or Path("DATA_ROOT")
    lines = [
        f"  {place / task.name}: {task.source}, {task.num_classes or 'its'} classes; {task.splits}" for task in tasks
    ]
    given = "" if data_root else " and give --data-root DATA_ROOT"
    return (
        f"{len(tasks)} tasks need a local copy: get them and put each, as a folder of images, a .zip, .parquet or "
        f".csv, to{given}:\n" + "\n".join(lines)
    )
