"""The command `mu2net`, put together from the commands that the installed packages register as entry points.

A serving install has no evolve commands: their module needs torch, is not importable, and so is left out.
This is the process boundary: expected errors become one line on stderr and exit code 1.
"""

import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

from models.errors import Mu2NetError

COMMAND_GROUP = "mu2net.commands"


def _registered() -> Sequence[EntryPoint]:
    """Return the commands that are installed; in a Bento, whose sources are not, those that pyproject.toml names."""
    installed = tuple(entry_points(group=COMMAND_GROUP))
    if installed:
        return installed
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    return [EntryPoint(name, value, COMMAND_GROUP) for name, value in project["entry-points"][COMMAND_GROUP].items()]


def build_app() -> typer.Typer:
    """Return the command line with every command whose package can be imported here."""
    app = typer.Typer(
        name="mu2net",
        help="A multitask vision transformer that grows by evolution, and the server that answers from it.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    missing: list[str] = []
    for point in sorted(_registered(), key=lambda point: point.name):
        try:
            command = point.load()
        except ModuleNotFoundError:
            missing.append(point.name)
            continue
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=point.name)
        else:
            app.command(name=point.name)(command)
    if missing:
        app.info.epilog = f"Not installed here: {', '.join(missing)} (they come with 'mu2net\\[evolve]')."
    return app


def main() -> None:
    """Run `mu2net` with the process's arguments; exits with 0, 1 (error), 2 (usage) or 130 (Ctrl-C)."""
    try:
        build_app()()
    except Mu2NetError as error:
        _end(str(error), code=1)
    except OSError as error:  # no permission, a full disk: the system's own words say it best
        _end(f"the system refused: {error}; check the path, its permissions and the free space", code=1)
    except KeyboardInterrupt:  # before a command runs; afterwards typer ends with 130 itself
        _end("stopped", code=130)


def _end(message: str, *, code: int) -> None:
    Console(stderr=True).print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(code)
