"""Commands that only read a store: they are there in every install, a serving container included."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from models.figures import task_figures
from models.signatures import load_signer
from models.store import Store

StoreArgument = Annotated[
    str, typer.Argument(help="The store: a folder, or a URL such as s3://...", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]

SignOption = Annotated[
    Path | None,
    typer.Option(
        "--sign",
        envvar="MU2NET_SIGN",
        help="Private key that signs the releases made here, see 'mu2net releases keygen'.",
        show_default=False,
    ),
]

COLUMNS = ("task", "classes", "px", "blocks", "val", "test", "added", "accounted", "FLOPs")


def open_store(store: str, sign: Path | None = None) -> Store:
    """Open a store whose releases, as far as they are made through it, are signed with the key in a file."""
    signer = None if sign is None else load_signer(sign)  # first: a wrong key is told before anything is done
    opened = Store.open(store)
    opened.signer = signer
    return opened


def tasks(store: StoreArgument, as_json: JsonOption = False) -> None:
    """List the tasks of a store's active release, with what each is worth and costs."""
    opened = Store.open(store)
    release = opened.release()
    routes = opened.routes(release)
    figures = task_figures(routes, opened.root())
    if as_json:
        rows = [
            {
                "task": task,
                "route": release.tasks[task],
                "labels": route.labels,
                "image_size": route.image_size,
                "depth": route.depth,
                "private": route.private,
                "quality": asdict(route.quality) if route.quality else None,
                **asdict(figures[task]),
            }
            for task, route in sorted(routes.items())
        ]
        typer.echo(json.dumps({"release": release.number, "tasks": rows}))
        return
    caption = "added, accounted: parameters; FLOPs: of one image over the root's"
    table = Table(
        title=f"Release {release.number} of {store}",
        caption=caption,
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for column in COLUMNS:  # fits a terminal of 80 columns: a task's name is what may need more than a line
        is_name = column == "task"
        table.add_column(column, justify="left" if is_name else "right", no_wrap=not is_name, overflow="fold")
    for task, route in sorted(routes.items()):
        quality, cost = route.quality, figures[task]
        table.add_row(
            task,
            str(len(route.labels)),
            str(route.image_size),
            str(route.depth),
            accuracy_text(quality.validation_accuracy if quality else None),
            accuracy_text(quality.test_accuracy if quality else None),
            in_millions(cost.parameters_added),
            in_millions(cost.accounted_parameters),
            f"{cost.flops / cost.root_flops:.3f}",
        )
    plain_console().print(table)


def accuracy_text(accuracy: float | None) -> str:
    """Return an accuracy of 0 to 1 for people, a dash where none was measured."""
    return "–" if accuracy is None else f"{accuracy:.3f}"  # noqa: RUF001


def plain_console() -> Console:
    """Return where commands print what people have named: brackets in a name are no markup."""
    return Console(markup=False)


def moment(created_at: str) -> str:
    """Return a time of a record, ISO 8601 in UTC, as short as a table of 80 columns wants it."""
    return created_at[:16].replace("T", " ")


def in_millions(parameters: float) -> str:
    return f"{parameters / 1e6:.3f} M"
