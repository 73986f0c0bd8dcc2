"""The commands that judge what was evolved: evaluate, baselines, report. Heavy imports wait until a command runs."""

import json
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from models.commands import JsonOption, StoreArgument, accuracy_text, in_millions, plain_console
from models.names import parse_task_name
from models.store import Store

if find_spec("torch") is None:
    raise ModuleNotFoundError("judging needs what evolving needs: install mu2net[evolve]", name="torch")

if TYPE_CHECKING:
    from evolve.baselines import BaselineResult
    from evolve.evaluation import Evaluation

TaskArgument = Annotated[str, typer.Argument(help="A task of the store.", show_default=False)]
DataOption = Annotated[
    str, typer.Option(help="Labelled images, as for evolve; of a data set with a test part that, else all.")
]


def evaluate(
    store: StoreArgument,
    task: TaskArgument,
    data: DataOption,
    release: Annotated[int | None, typer.Option(help="Default: the active one.")] = None,
    precision: Annotated[Literal["float32", "int8", "float16"], typer.Option(help="As it is served.")] = "float32",
    plot: Annotated[Path | None, typer.Option(help="Draw the confusion matrix into this .svg, .png or .pdf.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Of a CSV, parquet or hub table.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Of a CSV, parquet or hub table.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Judge a live route on labelled images: accuracy, classes, confusion, calibration."""
    from evolve.columns import Columns
    from evolve.evaluation import evaluate as judged
    from evolve.evaluation import plot_confusion
    from evolve.source import as_image_folder
    from evolve.task import has_test_part, load_images

    opened = Store.open(store)
    found = opened.release(release)
    name = parse_task_name(task)
    route = opened.route(found.route_id(name), needed_by=f"task {name!r} of release {found.number}")
    cache = opened.folder / "work"
    folder = as_image_folder(data, cache, Columns(image_column, label_column))
    images = load_images(folder, route.labels, cache_folder=cache / "pixels")
    part = "test" if has_test_part(folder) else "all"
    evaluation = judged(opened, route, images, None if precision == "float32" else precision)
    if plot is not None:
        plot_confusion(evaluation, route.labels, plot)
    if as_json:
        facts = {
            "task": name,
            "release": found.number,
            "route": found.route_id(name),
            "precision": precision,
            "labels": route.labels,
            "part": part,
        }
        typer.echo(json.dumps(facts | asdict(evaluation)))
        return
    _print_evaluation(f"{name} of release {found.number}", evaluation)
    if part == "all":
        plain_console().print(
            "The data has no test part, so all of it was judged: with what the task was trained on, if these are the "
            "images it was evolved from. What it got on those held out is in `mu2net tasks`.",
            highlight=False,
            soft_wrap=True,
        )


def _print_evaluation(title: str, evaluation: "Evaluation") -> None:
    table = Table(title=title)
    for column in ("class", "images", "recall", "precision", "most often taken for"):
        table.add_column(column, justify="left" if column in {"class", "most often taken for"} else "right")
    for quality in evaluation.classes:
        table.add_row(
            quality.label,
            str(quality.images),
            accuracy_text(quality.recall),
            accuracy_text(quality.precision),
            quality.most_confused_with or "",
        )
    console = plain_console()
    console.print(table)
    console.print(
        f"accuracy {evaluation.accuracy:.4f} ± {evaluation.standard_error:.4f} (standard error) on "
        f"{evaluation.images:,} images; top 5 {accuracy_text(evaluation.top5_accuracy)}; calibration error "
        f"{evaluation.calibration_error:.4f} at a mean confidence of {evaluation.mean_confidence:.4f}; negative log "
        f"likelihood {evaluation.negative_log_likelihood:.4f}",
        highlight=False,
        soft_wrap=True,
    )


def baselines(
    store: StoreArgument,
    task: TaskArgument,
    data: DataOption,
    images: Annotated[
        int | None, typer.Option(help="Training images for each family, tuning included; default: the route's own.")
    ] = None,
    image_sizes: Annotated[
        list[int] | None, typer.Option("--image-size", help="Pixels; repeatable. Default: that of the task's route.")
    ] = None,
    families: Annotated[
        list[str] | None, typer.Option("--family", help="finetune, freeze:K, adapters:D, probe; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of splits and batches.")] = 0,
    threads: Annotated[int, typer.Option(help="Of each run in training.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Train what a user would do instead: tuned baselines of the same root.

    They get as many images as the task's evolution, and the augmentation that it started with.
    """
    from evolve.baselines import DEFAULT_FAMILIES, Harness, parse_family, start_augmentation
    from evolve.local_executor import LocalExecutor
    from evolve.source import as_image_folder
    from evolve.task import load_task

    name = parse_task_name(task)
    opened = Store.open(store)
    route = opened.routes(opened.release()).get(name)
    cache = opened.folder / "work"
    loaded = load_task(name, as_image_folder(data, cache), seed=seed, cache_folder=cache / "pixels")
    sizes = image_sizes or [route.image_size if route else opened.root().image_size]
    budget = images if images is not None else route.lineage.trained_images if route else 0
    chosen = [parse_family(text, opened.root().depth) for text in families or DEFAULT_FAMILIES]
    with LocalExecutor(None) as execute, Console(stderr=True).status("training") as status:
        harness = Harness(
            opened,
            loaded,
            image_sizes=tuple(sizes),
            images=budget,
            execute=execute,
            augmentation=start_augmentation(route) if route else None,
            seed=seed,
            threads=threads,
        )
        results = []
        for family in chosen:
            status.update(f"training {family.name}")
            results.append(harness.run(family))
    if as_json:
        typer.echo(json.dumps({"task": name, "images": budget, "baselines": [asdict(result) for result in results]}))
        return
    _print_baselines(name, budget, results)


def _print_baselines(name: str, budget: int, results: "list[BaselineResult]") -> None:
    table = Table(title=f"Baselines of {name}, each within {budget:,} training images, tuning included")
    for column in ("family", "pixels", "learning rate", "val", "test", "own parameters", "GFLOPs", "images"):
        table.add_column(column, justify="left" if column == "family" else "right")
    for result in results:
        table.add_row(
            result.family,
            str(result.image_size),
            f"{result.learning_rate:g}",
            accuracy_text(result.validation_accuracy),
            accuracy_text(result.test_accuracy),
            in_millions(result.own_parameters),
            f"{result.flops / 1e9:.3f}",
            f"{result.trained_images:,}",
        )
    plain_console().print(table)


def report(
    store: StoreArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="The HTML file to write.")] = Path("report.html"),
    release: Annotated[int | None, typer.Option(help="Default: the active one.")] = None,
) -> None:
    """Write all about a store into one self-contained HTML file: leaderboard, costs, progress, lineage, sharing."""
    from evolve.report import write_report

    write_report(Store.open(store), output, release)
    plain_console().print(f"wrote {output}", highlight=False, soft_wrap=True)
