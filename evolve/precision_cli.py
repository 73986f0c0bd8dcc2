"""The command precision: which precisions a store's routes have beside float32."""

import json
from dataclasses import asdict
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from models.commands import JsonOption, SignOption, StoreArgument, accuracy_text, open_store, plain_console
from models.errors import InvalidConfig, InvalidData
from models.names import TaskName, parse_task_name
from models.precision import DEFAULT_TOLERANCE
from models.store import Store

if find_spec("torch") is None:
    raise ModuleNotFoundError("lowering needs what evolving needs: install mu2net[evolve]", name="torch")

if TYPE_CHECKING:
    from evolve.task import LabelledImages
    from models.route import Route, Variant


def precision(
    store: StoreArgument,
    wanted: Annotated[
        Literal["int8", "float16", "float32"],
        typer.Argument(metavar="PRECISION", help="int8 (for CPUs), float16 (for GPUs), or float32: neither."),
    ],
    data: Annotated[
        list[str] | None, typer.Option(metavar="TASK=IMAGES", help="Labelled images of a task, as for evolve.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Points of validation accuracy that a route may lose.", min=0, max=100)
    ] = DEFAULT_TOLERANCE,
    skip_unreadable: Annotated[bool, typer.Option("--skip-unreadable", help="Leave damaged images out.")] = False,
    sign: SignOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish a release whose routes can also be served in a lower precision, or in float32 alone again.

    Each route is judged on its validation images in both precisions. What is evolved later gets the same.
    """
    from evolve.variants import drop_variants, lower_release

    opened = open_store(store, sign)
    if wanted == "float32":
        if data:
            raise InvalidConfig("--data is for int8 and float16: float32 needs no images")
        release = drop_variants(opened)
        typer.echo(json.dumps({"release": release.number}) if as_json else _published(opened, release.number))
        return
    found: dict[TaskName, Variant] = {}
    images = _validation_images(opened, data or [], skip_unreadable)
    with Console(stderr=True).status(f"judging routes in {wanted}"):
        release = lower_release(opened, wanted, images, tolerance=tolerance, told=found.__setitem__)
    if as_json:
        tasks = {task: asdict(variant) | {"points_lost": variant.points_lost} for task, variant in found.items()}
        typer.echo(json.dumps({"release": release.number, "precision": wanted, "tasks": tasks}))
        return
    _print(opened, release.number, found, wanted)


def _validation_images(opened: Store, given: list[str], skip_unreadable: bool) -> "dict[TaskName, LabelledImages]":
    """Return the validation images of each task of which data is given: the very split that its evolution had."""
    from evolve.source import as_image_folder
    from evolve.task import load_task

    release = opened.newest()
    cache = opened.folder / "work"
    images = {}
    for text in given:
        name, _, path = text.partition("=")
        if not path:
            raise InvalidConfig(f"--data {text!r}: give TASK=IMAGES, such as flowers=flowers.zip")
        task = parse_task_name(name)
        route = opened.route(release.route_id(task), needed_by=f"task {task!r}")
        seed = int(route.lineage.config.get("seed", 0))
        folder = as_image_folder(path, cache)
        loaded = load_task(task, folder, seed=seed, cache_folder=cache / "pixels", skip_unreadable=skip_unreadable)
        _require_labels(route, loaded.labels, path)
        images[task] = loaded.val
    return images


def _require_labels(route: "Route", labels: tuple[str, ...], path: str) -> None:
    if labels != route.labels:
        raise InvalidData(
            f"{path!r} has the classes {', '.join(labels)}; task {route.task!r} has {', '.join(route.labels)}: give "
            "the images that it was evolved with"
        )


def _print(opened: Store, number: int, found: "dict[TaskName, Variant]", wanted: str) -> None:
    table = Table(title=f"{wanted} beside float32")
    for column in ("task", "images", "float32", wanted, "points lost", "stages"):
        table.add_column(column, justify="left" if column == "task" else "right")
    routes = opened.routes(opened.release(number))
    for task, variant in found.items():
        pairs = zip(variant.stages, routes[task].stages, strict=True)
        changed = sum(lowered.subgraph != stage.subgraph for lowered, stage in pairs)
        table.add_row(
            task,
            str(variant.validation_images),
            accuracy_text(variant.float32_accuracy),
            accuracy_text(variant.validation_accuracy),
            f"{variant.points_lost:.2f}",
            f"{changed} of {len(variant.stages)}",
        )
    console = plain_console()
    console.print(table)
    console.print(_published(opened, number), soft_wrap=True)


def _published(opened: Store, number: int) -> str:
    state = "is active" if opened.current().release == number else "is pending: another release is held"
    return f"published release {number}, which {state}"
