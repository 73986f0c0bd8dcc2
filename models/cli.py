"""The command `mu2net`, put together from the commands that the installed packages register as entry points.

A serving install has no evolve commands: their module needs torch, is not importable, and so is left out.
This is the process boundary: expected errors become one line on stderr and exit code 1.
"""

import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from models.errors import InvalidConfig, Mu2NetError

COMMAND_GROUP = "mu2net.commands"
PROJECT = Path(__file__).parents[1] / "pyproject.toml"
PANELS = {  # of --help: the commands in the order in which one meets them
    "Begin": ("demo", "init"),
    "Tasks": ("evolve", "tasks", "evaluate", "baselines", "report"),
    "Serve": ("serve", "worker", "keys", "releases", "precision"),
}


def _registered() -> Sequence[EntryPoint]:
    """Return the commands that are installed; in a Bento, whose sources are not, those that pyproject.toml names."""
    installed = tuple(entry_points(group=COMMAND_GROUP))
    if installed:
        return installed
    return [EntryPoint(name, value, COMMAND_GROUP) for name, value in _project()["entry-points"][COMMAND_GROUP].items()]


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads(PROJECT.read_text())["project"]
    return project


def _tell_version(is_asked: bool) -> bool:
    if not is_asked:
        return False
    try:
        typer.echo(version("mu2net"))
    except PackageNotFoundError:  # in a Bento
        typer.echo(_project()["version"])
    raise typer.Exit


def _options(
    _: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_tell_version)
    ] = False,
) -> None:
    """Take the options that stand before a command."""


def build_app(wanted: str | None = None) -> typer.Typer:
    """Return the command line with every command whose package can be imported here.

    If there is a command `wanted`, with that one alone: importing all of them takes seconds.

    Raises:
        InvalidConfig: `wanted` cannot be imported here.
    """
    app = typer.Typer(
        name="mu2net",
        help="A multitask vision transformer that grows by evolution, and the server that answers from it.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback()(_options)
    points = sorted(_registered(), key=_place)
    missing: list[str] = []
    for point in [point for point in points if point.name == wanted] or points:
        try:
            command = point.load()
        except ModuleNotFoundError as error:
            if point.name == wanted:
                raise InvalidConfig(
                    f"the command {wanted!r} is not installed here ({error}): install mu2net[evolve]"
                ) from error
            missing.append(point.name)
            continue
        panel = next((panel for panel, names in PANELS.items() if point.name in names), None)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=point.name, rich_help_panel=panel)
        else:
            app.command(name=point.name, rich_help_panel=panel)(command)
    if missing:
        app.info.epilog = f"Not installed here: {', '.join(missing)} (they come with 'mu2net\\[evolve]')."
    return app


def _place(point: EntryPoint) -> tuple[int, str]:
    order = [name for names in PANELS.values() for name in names]
    return (order.index(point.name) if point.name in order else len(order)), point.name


def main() -> None:
    """Run `mu2net` with the process's arguments; exits with 0, 1 (error), 2 (usage) or 130 (Ctrl-C)."""
    try:
        build_app(next(iter(sys.argv[1:]), None))()
    except Mu2NetError as error:
        path = getattr(error, "path", "")  # of what a disk refused
        _end(f"{error} ({path})" if path else str(error), code=1)
    except OSError as error:  # no permission, a full disk: the system's own words say it best
        _end(f"the system refused: {error}; check the path, its permissions and the free space", code=1)
    except KeyboardInterrupt:  # before a command runs; afterwards typer ends with 130 itself
        _end("stopped", code=130)


def _end(message: str, *, code: int) -> None:
    Console(stderr=True).print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(code)
