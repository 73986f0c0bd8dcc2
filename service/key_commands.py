"""`mu2net keys`: API keys made, listed and revoked."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from models.commands import JsonOption, StoreArgument, moment, plain_console
from models.errors import InvalidInput
from models.files import Files
from models.key_list import Key, Manages, find_keys
from models.names import RESERVED_TASK_NAMES, parse_task_name
from models.store import Store
from service.keys import add_key, key_files, new_key, revoke_key
from service.rate_limit import check_rate

KeysOption = Annotated[
    str | None,
    typer.Option(
        "--keys",
        envvar="MU2NET_KEYS",
        help="Folder or URL that holds keys.json; default: the store.",
        show_default=False,
    ),
]

app = typer.Typer(
    help="API keys of the servers of a store. From the first one made, every request needs a key.",
    no_args_is_help=True,
)


@app.command()
def create(
    store: StoreArgument,
    name: Annotated[str, typer.Argument(help="Whose key it is, for people.", show_default=False)],
    classify: Annotated[
        list[str] | None, typer.Option(help="A task it may classify with; repeat it, or: all (but private ones).")
    ] = None,
    tasks: Annotated[bool, typer.Option("--tasks", help="It may add and retire tasks, and see their jobs.")] = False,
    releases: Annotated[bool, typer.Option("--releases", help="It may activate and resume releases.")] = False,
    rate: Annotated[str | None, typer.Option(help="At most so many requests, as 100/minute.")] = None,
    keys: KeysOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it: now and never again, since only its hash is stored."""
    allowed = tuple(task if task in RESERVED_TASK_NAMES else parse_task_name(task) for task in classify or ())
    scopes: dict[Manages, bool] = {"tasks": tasks, "releases": releases}
    manages = tuple(scope for scope, is_given in scopes.items() if is_given)
    if not allowed and not manages:
        raise InvalidInput("a key that may do nothing is of no use: give --classify TASK, --tasks or --releases")
    key, token = new_key(name, classify=allowed, manages=manages, rate=None if rate is None else check_rate(rate))
    add_key(_files(store, keys), key)
    if as_json:
        typer.echo(json.dumps(_row(key) | {"key": token}))
        return
    typer.echo(token)
    typer.echo(f"key {key.id} ({name}): {_scopes(key)}; send it as 'Authorization: Bearer KEY'", err=True)


@app.command(name="list")
def list_keys(store: StoreArgument, keys: KeysOption = None, as_json: JsonOption = False) -> None:
    """List all keys, revoked ones too."""
    known = find_keys(_files(store, keys))
    found = known.keys if known else ()
    if as_json:
        typer.echo(json.dumps({"keys": [_row(key) for key in found]}))
        return
    none = "none: requests need no key" if known is None else "none yet, and requests need one: make a key"
    table = Table(title=f"Keys of {store}", caption=None if found else none)
    for column in ("id", "name", "may", "rate", "made (UTC)", "revoked (UTC)"):
        table.add_column(column)
    for key in found:
        table.add_row(
            key.id, key.name, _scopes(key), key.rate or "", moment(key.created_at), moment(key.revoked_at or "")
        )
    plain_console().print(table)


@app.command()
def revoke(
    store: StoreArgument,
    key: Annotated[str, typer.Argument(help="The key's id or name, see 'mu2net keys list'.", show_default=False)],
    keys: KeysOption = None,
    as_json: JsonOption = False,
) -> None:
    """Revoke a key: servers refuse it within seconds. Requests need a key even when all are revoked."""
    revoked = revoke_key(_files(store, keys), key)
    typer.echo(json.dumps(_row(revoked)) if as_json else f"revoked key {revoked.id} ({revoked.name})")


def _files(store: str, keys: str | None) -> Files:
    Store.open(store)  # a mistyped store is told, not given a file of keys
    return key_files(store, keys)


def _row(key: Key) -> dict[str, object]:
    return {name: value for name, value in asdict(key).items() if name != "sha256"}


def _scopes(key: Key) -> str:
    named = [f"classify {', '.join(key.classify)}"] if key.classify else []
    return "; ".join([*named, *key.manages])
