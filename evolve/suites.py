"""The paper's benchmark suites: the tasks that it solves jointly, by name, with source, splits and classes.

Tasks, their order and splits are those of the public notebook (google-research/google-research, muNet/mu2Net.ipynb,
commit 04ece717), whose names are those of the TensorFlow Datasets catalogue. Class counts were read there, in
tensorflow/datasets, and in google-research/task_adaptation for VTAB. A hub name stands only where a repository of
that name, its columns and its splits were seen on the hub; everything else needs a local copy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evolve.columns import Columns
from evolve.source import HUB_PREFIX
from models.errors import InvalidConfig, InvalidData
from models.names import TaskName

TRAIN_TEST = "train and test as published; 5% of train to select on"
CMATERDB_SPLITS = "train and test as published; 20% of train to select on"
OMNIGLOT_SPLITS = "images_background to train on, its small1 to select on, its small2 as test (the notebook's choice)"
NO_TEST_LABELS = "train as published; the validation part halved, to select on and as test (test labels are withheld)"
VTAB_PARTS = "train, validation and test as published"
VTAB_CUT = "90% of train, the rest of it to select on, test as published"
VTAB_SPLITS = {  # where VTAB cuts the parts itself, by the source's first name
    "caltech101": VTAB_CUT,
    "svhn_cropped": VTAB_CUT,
    "oxford_iiit_pet": "80% of train, the rest of it to select on, test as published",
    "eurosat": "60% to train on, the next 20% to select on, the last 20% as test",
    "resisc45": "60% to train on, the next 20% to select on, the last 20% as test",
    "clevr": "90% of train, the rest of it to select on, the validation part as test",
    "dsprites": "80% to train on, the next 10% to select on, the last 10% as test",
    "smallnorb": "train as published; the test part halved, to select on and as test",
}
VTAB_1K = "800 images of VTAB's train part, 200 of its validation part, its whole test part"
LOCAL_FORMS = ("", ".zip", ".parquet", ".csv")


@dataclass(frozen=True, slots=True)
class SuiteTask:
    """A task of the paper."""

    name: TaskName
    source: str  # its name in the TensorFlow Datasets catalogue, or in VTAB
    splits: str  # the notebook's; without images to select on, a copy's are drawn from its train part
    num_classes: int  # that have images
    hub: str | None = None  # confirmed name on the Hugging Face hub
    columns: Columns = Columns()


def _tasks(splits: str, tasks: Mapping[str, int], prefix: str = "", suffix: str = "") -> tuple[SuiteTask, ...]:
    def task_name(source: str) -> TaskName:
        return TaskName(source.replace("/", "_").replace("-", "_").lower())

    return tuple(
        SuiteTask(task_name(f"{prefix}{name}{suffix}"), f"{prefix}{name}{suffix}", splits, classes)
        for name, classes in tasks.items()
    )


MNIST = SuiteTask(TaskName("mnist"), "mnist", TRAIN_TEST, 10, "ylecun/mnist", Columns("image", "label"))
CIFAR100 = SuiteTask(
    TaskName("cifar100"),
    "cifar100",
    "train and test as published; 2% of train to select on",
    100,
    "uoft-cs/cifar100",
    Columns("img", "fine_label"),
)
CIFAR10 = SuiteTask(
    TaskName("cifar10"),
    "cifar10",
    "train and test as published; cifar10_1 to select on",
    10,
    "uoft-cs/cifar10",
    Columns("img", "label"),
)
CMATERDB = _tasks(CMATERDB_SPLITS, {"cmaterdb/bangla": 10, "cmaterdb/devanagari": 10, "cmaterdb/telugu": 10})
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
    "clevr/count_cylinders": 11,
    "clevr/count_all": 8,
    "clevr/closest_object_distance": 6,
    "dmlab": 6,
    "dsprites/label_x_position": 32,  # the notebook keeps every value apart; published VTAB scores are of 16 groups
    "dsprites/label_orientation": 40,  # the same
    "kitti/closest_object_distance": 5,
    "kitti/count_vehicles": 4,
    "kitti/closest_vehicle_distance": 4,
    "smallnorb/label_category": 5,
    "smallnorb/label_lighting": 6,
    "smallnorb/label_azimuth": 18,
    "smallnorb/label_elevation": 9,
}
SUITES: Mapping[str, tuple[SuiteTask, ...]] = {
    "cmaterdb": CMATERDB,
    "characters": (
        *_tasks(TRAIN_TEST, {"emnist/digits": 10, "emnist/letters": 26, "kmnist": 10}),  # 37 labels, 26 used
        MNIST,
        *_tasks(OMNIGLOT_SPLITS, {"omniglot": 964}),  # of 1,623: the other 659 are only in the published test part
        *CMATERDB,
    ),
    "imagenet-cifar": (
        *_tasks("train as published; imagenet_v2 to select on; the validation part as test", {"imagenet2012": 1000}),
        CIFAR100,
        CIFAR10,
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
    "vtab-full": tuple(
        task
        for name, classes in {"caltech101": 102, **VTAB}.items()
        for task in _tasks(VTAB_SPLITS.get(name.split("/")[0], VTAB_PARTS), {name: classes})
    ),
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
    lines = [f"  {place / task.name}: {task.source}, {task.num_classes} classes; {task.splits}" for task in tasks]
    given = "" if data_root else " and give --data-root DATA_ROOT"
    return (
        f"{len(tasks)} tasks need a local copy: get them and put each, as a folder of images, a .zip, .parquet or "
        f".csv, to{given}:\n" + "\n".join(lines)
    )
