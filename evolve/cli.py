"""The commands that make a store and evolve tasks in it. Heavy imports wait until a command runs."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from evolve.config import preset_names, setting_names
from evolve.executors import ExecutorOption, RayAddressOption, WorkersOption, open_executor
from models.budget import parse_budget
from models.commands import JsonOption, SignOption, StoreArgument, accuracy_text, open_store, plain_console
from models.names import TaskName, parse_task_name
from models.store import Store

if TYPE_CHECKING:
    from evolve.columns import Columns
    from evolve.config import EvolveConfig
    from evolve.run import Executor, Outcome
    from evolve.suites import SuiteTask

if find_spec("torch") is None:
    raise ModuleNotFoundError("evolving needs torch: install mu2net[evolve]", name="torch")

Triple = tuple[float, float, float]
DATA_HELP = (
    "Labelled images: a folder or zip with a folder per class, perhaps in train/ and test/; a CSV manifest with path, "
    "label and perhaps split; parquet; or hub:owner/name of the Hugging Face hub."
)


def init(
    store: Annotated[str, typer.Argument(help="The folder or s3:// URL to make the store in.", show_default=False)],
    root: Annotated[
        str,
        typer.Option(
            help="What everything grows from: a timm model such as vit_tiny_patch16_224 with its pretrained weights, "
            "a checkpoint file in timm's key names, or 'random', perhaps as random:depth=4,image_size=32 with any of "
            "embed_dim, depth, num_heads, patch_size, image_size, seed."
        ),
    ],
    image_size: Annotated[int | None, typer.Option(help="Pixels; default: the root's own.")] = None,
    num_heads: Annotated[int | None, typer.Option(help="Of a checkpoint file whose heads are not 64 wide.")] = None,
    mean: Annotated[
        Triple | None, typer.Option(help="Mean per channel in the root's training: --mean .5 .5 .5")
    ] = None,
    std: Annotated[Triple | None, typer.Option(help="Standard deviation per channel: --std .5 .5 .5")] = None,
) -> None:
    """Make a store from a pretrained network, the root."""
    from evolve.publish import create_store
    from models.root import load_root

    loaded = load_root(root, image_size=image_size, num_heads=num_heads, mean=mean, std=std)
    made = create_store(store, loaded)
    network, parameters = loaded.network, made.root().parameters
    plain_console().print(
        f"Made {store}: root {root}, {network.depth} blocks of width {network.embed_dim}, {network.image_size} px, "
        f"{parameters:,} parameters.\nNext: mu2net evolve {store} TASK --data FOLDER_OR_ZIP",
        highlight=False,
        soft_wrap=True,
    )


def evolve(
    store: StoreArgument,
    task: Annotated[
        str | None, typer.Argument(help="The task's name; a known one is improved.", show_default=False)
    ] = None,
    data: Annotated[str | None, typer.Option(help=DATA_HELP)] = None,
    suite: Annotated[
        str | None, typer.Option(help="Evolve all tasks of one of the paper's suites, in order; see evolve/suites.py.")
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="The folder with local copies of a suite's tasks.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Of a CSV, parquet or hub table.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Of a CSV, parquet or hub table.")] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Stop after 90s, 5m or 1.5h instead of a number of generations; a route is live early and gets "
            "better meanwhile. Begins from the preset 'online' unless another is named."
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help=f"Settings for few images, of jobs, or of the paper: {', '.join(preset_names())}."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file with settings.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help=f"One setting, as key=value; repeatable. Keys: {', '.join(setting_names())}."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Never offer its components to other tasks.")] = False,
    from_release: Annotated[
        int | None, typer.Option(help="Grow from the routes of this release; default: the active one.")
    ] = None,
    skip_unreadable: Annotated[bool, typer.Option("--skip-unreadable", help="Leave damaged images out.")] = False,
    workers: WorkersOption = None,
    executor: ExecutorOption = "local",
    ray_address: RayAddressOption = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="The slow reference: one after another, nothing shared.")
    ] = False,
    sign: SignOption = None,
    profile: Annotated[bool, typer.Option("--profile", help="Show where the time of training went.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Add a task to the system, or improve one, and publish the outcome as a new release.

    An interrupted run is taken up again by the same command.
    """
    from evolve.columns import Columns
    from evolve.config import load_config

    opened = open_store(store, sign)
    if plain and (workers is not None or executor != "local"):
        raise typer.BadParameter("--plain trains one after another in this process: leave --workers and --executor out")
    if budget is not None:
        parse_budget(budget)
        superseded = {setting.partition("=")[0].strip() for setting in settings or []} & {"generations", "minutes"}
        if superseded:
            raise typer.BadParameter(f"--budget takes the place of --set {min(superseded)}: leave one of them out")
    resolved = load_config(config, settings or [], preset="online" if budget and preset is None else preset)
    columns = Columns(image_column, label_column)
    for name, (source, its_columns) in _sources(task, data, suite, data_root, columns).items():
        outcome = _evolve_one(
            opened,
            name,
            source,
            resolved,
            budget=budget,
            columns=its_columns,
            private=private,
            from_release=from_release,
            skip_unreadable=skip_unreadable,
            execute=partial(open_executor, executor, workers=workers, ray_address=ray_address),
            plain=plain,
        )
        if profile:
            _print_profile(outcome)
        if as_json:
            typer.echo(json.dumps(_summary(name, outcome, opened)))
        else:
            _print_outcome(name, outcome, opened)


def _sources(
    task: str | None, data: str | None, suite: str | None, data_root: Path | None, columns: "Columns"
) -> "dict[TaskName, tuple[str, Columns]]":
    """Return what to evolve, in order, and from where.

    Raises:
        BadParameter: options that do not go together.
    """
    from evolve.suites import locate
    from evolve.suites import suite as tasks_of

    if suite is None:
        missing = "argument 'TASK'" if task is None else "option '--data'" if data is None else None
        if missing is not None:
            raise typer.BadParameter(
                f"Missing {missing}: give a task's name and --data, or --suite for the paper's tasks"
            )
        if data_root is not None:
            raise typer.BadParameter("--data-root goes with --suite: leave it out")
        assert task is not None
        assert data is not None
        return {parse_task_name(task): (data, columns)}
    if task is not None or data is not None:
        raise typer.BadParameter(f"--suite {suite} names tasks and data itself: leave the task's name and --data out")
    tasks = tasks_of(suite)
    found = locate(tasks, data_root)
    return {task.name: (found[task.name], _columns(task, found[task.name], columns)) for task in tasks}


def _columns(task: "SuiteTask", source: str, given: "Columns") -> "Columns":
    """Return those that the suite knows of the hub's table; a local copy may have others."""
    from evolve.source import HUB_PREFIX

    return task.columns if source.startswith(HUB_PREFIX) else given


def _evolve_one(
    opened: Store,
    name: TaskName,
    source: str,
    config: "EvolveConfig",
    *,
    budget: str | None,
    columns: "Columns",
    private: bool,
    from_release: int | None,
    skip_unreadable: bool,
    execute: "Callable[..., AbstractContextManager[Executor]]",
    plain: bool,
) -> "Outcome":
    # after what can be refused at once: torch takes seconds
    from evolve.anytime import anytime_config
    from evolve.loop import evolve_task, one_after_another
    from evolve.progress import ProgressDisplay
    from evolve.source import as_image_folder
    from evolve.task import load_task

    console = Console(stderr=True)
    cache = opened.folder / "work"
    with execute() as side_by_side, ProgressDisplay(console) as display:
        loaded = load_task(
            name,
            as_image_folder(source, cache, columns),
            seed=config.seed,
            cache_folder=cache / "pixels",
            skip_unreadable=skip_unreadable,
            progress=display.decoding,
        )
        if budget is not None:
            config = anytime_config(config, budget, opened.root(), loaded.train)
        for warning in loaded.describe().warnings():
            console.print(note(warning))
        former = opened.routes(opened.release()).get(name)
        if former is not None and former.labels != loaded.labels:
            console.print(note(label_changes(former.labels, loaded.labels)))
        try:
            return evolve_task(
                loaded,
                opened,
                config,
                private=private,
                from_release=from_release,
                execute=one_after_another if plain else side_by_side,
                report=display.candidate(config),
            )
        except KeyboardInterrupt:
            console.print("stopped; the finished generations are kept: the same command goes on from there")
            raise


def _print_profile(outcome: "Outcome") -> None:
    from evolve.throughput import profile_table

    Console(stderr=True).print(profile_table(outcome.throughput))


def _parent(outcome: "Outcome", store: Store) -> str | None:
    """Return the task that the route grew from, "root", or None for a route that no release has any more."""
    parent = outcome.route.lineage.parent
    if parent is None or not store.has_object(parent, "json"):
        return None
    return store.route(parent, needed_by="its child").task or "root"


def _summary(name: TaskName, outcome: "Outcome", store: Store) -> dict[str, object]:
    quality = outcome.route.quality
    return {
        "task": name,
        "release": outcome.release.number,
        "route": outcome.route_id,
        "is_new": outcome.is_new,
        "candidates": outcome.candidates,
        "stopped": outcome.stopped,
        "learnt_from": outcome.learnt_from,
        "trained_images": outcome.trained_images,
        "parent": _parent(outcome, store),
        "depth": outcome.route.depth,
        "image_size": outcome.route.image_size,
        "quality": asdict(quality) if quality else None,
    }


def _print_outcome(name: TaskName, outcome: "Outcome", store: Store) -> None:
    route, quality = outcome.route, outcome.route.quality
    assert quality is not None, "a task's route has a quality"
    stopped = f", {outcome.stopped} of them stopped early" if outcome.stopped else ""
    news = f"published in release {outcome.release.number}" if outcome.is_new else "kept: nothing better was found"
    Console().print(
        f"{name}: {news}; validation accuracy {accuracy_text(quality.validation_accuracy)}, "
        f"to be expected {accuracy_text(quality.expected_accuracy)}, "
        f"test accuracy {accuracy_text(quality.test_accuracy)}; "
        f"grown from {_parent(outcome, store) or 'a route that is gone'}, depth {route.depth}, {route.image_size} px; "
        f"candidates trained: {outcome.candidates}{stopped}{_ranking(outcome)}",
        highlight=False,
        soft_wrap=True,
    )


def _ranking(outcome: "Outcome") -> str:
    match outcome.learnt_from:
        case None:
            return ""
        case 0:
            return "; nothing was learnt from earlier iterations to rank them by"
        case taught:
            return f", ranked by what {taught} candidate{'s' if taught > 1 else ''} of earlier iterations taught"


def note(text: str) -> Text:
    return Text.assemble(("note:", "yellow"), " ", text)


def label_changes(old: Sequence[str], new: Sequence[str]) -> str:
    """Return for people what becomes of a task whose classes have changed."""
    gone, added = sorted(set(old) - set(new)), sorted(set(new) - set(old))
    changes = [f"{word} {', '.join(labels)}" for word, labels in (("without", gone), ("with", added)) if labels]
    return (
        f"the classes have changed ({'; '.join(changes)}): a new head is learnt, accuracies before and after are not "
        "comparable, and clients see the new classes from the new release on"
    )
