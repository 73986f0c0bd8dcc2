"""`mu2net releases`: what a store's releases are, whether they are whole, which one is active, and housekeeping."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from models.collect import collect
from models.commands import (
    JsonOption,
    SignOption,
    StoreArgument,
    accuracy_text,
    in_millions,
    moment,
    open_store,
    plain_console,
)
from models.diff import diff as differences
from models.errors import DamagedObject
from models.names import parse_task_name, short
from models.precision import Precision
from models.push import push
from models.release import Release
from models.route import Route
from models.signatures import Trust, load_signer, new_key, read_signatures
from models.store import Current, Store
from models.verify import verify

app = typer.Typer(
    help="List, prove, activate, compare, copy and clean up the releases of a store.", no_args_is_help=True
)

ReleaseArgument = Annotated[int, typer.Argument(help="The release's number.", min=0, show_default=False)]
PerhapsRelease = Annotated[int | None, typer.Argument(help="A number; without one, the active release.", min=0)]
TaskArgument = Annotated[str, typer.Argument(help="The task's name.", show_default=False)]

HOUR_S = 3600.0


@app.command(name="list")
def list_releases(store: StoreArgument, as_json: JsonOption = False) -> None:
    """List all releases: which is active, which are pending because a person holds another."""
    opened = Store.open(store)
    current = opened.current()
    releases = [opened.release(number) for number in opened.release_numbers()]
    if as_json:
        rows = [_release_row(release, current) for release in releases]
        typer.echo(json.dumps({"active": current.release, "held": current.is_held, "releases": rows}))
        return
    table = Table(title=f"Releases of {store}", caption=_state_text(current, store))
    for column in ("release", "", "made from", "tasks", "made (UTC)", "what changed"):
        table.add_column(column, justify="right" if column in {"release", "made from", "tasks"} else "left")
    for release in releases:
        parent = "" if release.parent is None else str(release.parent)
        count = str(len(release.tasks))
        state = _state(release.number, current)
        table.add_row(str(release.number), state, parent, count, moment(release.created_at), release.reason)
    plain_console().print(table)


def _state(number: int, current: Current) -> str:
    if number == current.release:
        return "active, held" if current.is_held else "active"
    return "pending" if number in current.pending else ""


def _state_text(current: Current, store: str) -> str:
    if not current.is_held:
        return f"release {current.release} is active; publishing moves on by itself"
    waiting = f"; pending: {', '.join(map(str, current.pending))}" if current.pending else ""
    return f"release {current.release} is held{waiting}; go on with 'mu2net releases resume {store}'"


def _release_row(release: Release, current: Current) -> dict[str, object]:
    return {
        "release": release.number,
        "parent": release.parent,
        "state": _state(release.number, current),
        "tasks": len(release.tasks),
        "precisions": dict(release.precisions),
        "created_at": release.created_at,
        "reason": release.reason,
    }


@app.command()
def show(store: StoreArgument, release: PerhapsRelease = None, as_json: JsonOption = False) -> None:
    """Show the tasks of a release, and the route that answers for each."""
    opened = Store.open(store)
    found = opened.release(release)
    routes = opened.routes(found)
    current = opened.current()
    if as_json:
        tasks = {task: asdict(route) | {"route": found.tasks[task]} for task, route in sorted(routes.items())}
        typer.echo(json.dumps({**_release_row(found, current), "tasks": tasks}))
        return
    state = _state(found.number, current) or "not active"
    table = Table(
        title=f"Release {found.number} of {store} ({state}): {found.reason}",
        caption=f"made {moment(found.created_at)} UTC",
    )
    lower = sorted(found.precisions)  # a column each: the validation accuracy in it
    for column in ("task", "route", "classes", "pixels", "blocks", "parameters", "val", *lower, "test"):
        table.add_column(column, justify="left" if column in {"task", "route"} else "right")
    for task, route in sorted(routes.items()):
        table.add_row(task, short(found.tasks[task]), *_numbers(route, lower))
    plain_console().print(table)


def _numbers(route: Route, lower: Sequence[Precision]) -> tuple[str, ...]:
    quality, variants = route.quality, [route.variants.get(precision) for precision in lower]
    return (
        str(len(route.labels)),
        str(route.image_size),
        str(route.depth),
        in_millions(route.parameters),
        accuracy_text(quality.validation_accuracy if quality else None),
        *(accuracy_text(variant.validation_accuracy if variant else None) for variant in variants),
        accuracy_text(quality.test_accuracy if quality else None),
    )


@app.command(name="verify")
def verify_releases(
    store: StoreArgument,
    release: PerhapsRelease = None,
    every: Annotated[bool, typer.Option("--all", help="All releases, not just one.")] = False,
    trust: Annotated[
        list[str] | None,
        typer.Option(help="A public key, as a file or in base64; repeatable. Each release must be signed by one."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read and check every file that a release needs; exits with 1 and names each that is missing or damaged."""
    trusted = None if not trust else Trust.of(trust)
    opened = Store.open(store)
    active = opened.current().release if release is None and not every else 0
    numbers = opened.release_numbers() if every else [active if release is None else release]
    found = verify(opened, numbers, trust=trusted)
    if as_json:
        facts = {"releases": numbers, "files": found.files, "size": found.size, "problems": found.problems}
        typer.echo(json.dumps(facts))
    else:
        console = plain_console()
        for problem in found.problems:
            console.print(Text.assemble(("wrong:", "bold red"), " ", problem), soft_wrap=True)
        verdict = f"{len(found.problems)} problems" if found.problems else "whole"
        named = f"release{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
        console.print(f"{named}: {verdict}; {found.files} files, {found.size:,} bytes read", highlight=False)
    if found.problems:
        raise typer.Exit(1)


@app.command()
def keygen(
    file: Annotated[Path, typer.Argument(help="Where the private key goes; FILE.pub gets the public key.")],
    as_json: JsonOption = False,
) -> None:
    """Make a pair of keys for signing releases: Ed25519, in PEM files as OpenSSL reads them."""
    public = new_key(file)
    if as_json:
        typer.echo(json.dumps({"private_key_file": str(file), "public_key": public}))
        return
    typer.echo(public)
    typer.echo(f"private key: {file}; servers trust its holder with 'mu2net serve --trust {file}.pub'", err=True)


@app.command()
def sign(
    store: StoreArgument,
    release: PerhapsRelease = None,
    key: Annotated[Path, typer.Option(help="The private key, a PEM file.", show_default=False)] = ...,  # type: ignore[assignment]  # typer's mark of an option that must be given
    as_json: JsonOption = False,
) -> None:
    """Sign a release after its files were read and checked; servers that trust the key take it up."""
    signer = load_signer(key)
    opened = Store.open(store)
    found = opened.release(release)
    problems = verify(opened, [found.number]).problems
    if problems:
        raise DamagedObject(f"release {found.number} was not signed, since it is not whole: {problems[0]}")
    with opened.files.lock():
        signer(opened.files, found)
    keys = [signature.key for signature in read_signatures(opened.files, found.number)]
    if as_json:
        typer.echo(json.dumps({"release": found.number, "signed_by": keys}))
        return
    typer.echo(f"release {found.number} of {store} is signed by {', '.join(keys)}")


@app.command()
def activate(store: StoreArgument, release: ReleaseArgument, as_json: JsonOption = False) -> None:
    """Make a release the active one, and hold it there: servers go to it, and no job moves on until `resume`."""
    _tell(Store.open(store).activate(release), store, as_json)


@app.command()
def resume(store: StoreArgument, sign: SignOption = None, as_json: JsonOption = False) -> None:
    """End a hold: make active what was published meanwhile, put on the release that is active now."""
    _tell(open_store(store, sign).resume(), store, as_json)


def _tell(current: Current, store: str, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(current)))
    else:
        typer.echo(_state_text(current, store))


@app.command()
def remove(store: StoreArgument, task: TaskArgument, sign: SignOption = None, as_json: JsonOption = False) -> None:
    """Publish a release without a task. Older releases keep it, and activating one brings it back."""
    opened = open_store(store, sign)
    _tell_published(opened, opened.remove_task(task), store, as_json)


@app.command()
def rename(
    store: StoreArgument,
    task: TaskArgument,
    new_name: Annotated[str, typer.Argument(help="Its new name.", show_default=False)],
    sign: SignOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish a release with a task under another name; its answers stay the same."""
    opened = open_store(store, sign)
    _tell_published(opened, opened.rename_task(task, parse_task_name(new_name)), store, as_json)


def _tell_published(opened: Store, release: Release, store: str, as_json: bool) -> None:
    current = opened.current()
    if as_json:
        typer.echo(json.dumps(_release_row(release, current)))
    else:
        typer.echo(f"published release {release.number} ({release.reason}); {_state_text(current, store)}")


@app.command()
def diff(
    store: StoreArgument,
    before: ReleaseArgument,
    after: Annotated[int | None, typer.Argument(help="Another number; without one, the active release.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show which tasks one release has otherwise than another, and what is new to it."""
    opened = Store.open(store)
    old, new = opened.release(before), opened.release(after)
    changes = differences(opened, old, new)
    if as_json:
        rows = [asdict(change) for change in changes]
        typer.echo(json.dumps({"before": old.number, "after": new.number, "changes": rows}))
        return
    table = Table(title=f"From release {old.number} to {new.number}: {len(changes)} tasks differ")
    for column in ("task", "what", "val before", "val after", "new parameters"):
        table.add_column(column, justify="left" if column in {"task", "what"} else "right")
    for change in changes:
        accuracies = accuracy_text(change.validation_before), accuracy_text(change.validation_after)
        table.add_row(change.task, change.what, *accuracies, in_millions(change.new_parameters))
    plain_console().print(table)


@app.command(name="push")
def push_release(
    store: StoreArgument,
    target: Annotated[str, typer.Argument(help="Another store, made if missing: a folder or a URL.")],
    release: PerhapsRelease = None,
    sign: SignOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a release to another store, only the objects that it lacks, and make it the active one there.

    Its signatures go along if it keeps its number.
    """
    done = push(Store.open(store), target, release, signer=None if sign is None else load_signer(sign))
    if as_json:
        typer.echo(json.dumps({**asdict(done), "release": done.release.number}))
        return
    waits = "; a person holds another release there, so this one is pending" if done.is_held and done.is_new else ""
    news = f"is there as release {done.release.number}" if done.is_new else f"had this as release {done.release.number}"
    typer.echo(
        f"{target}: {news}; {done.copied} objects copied ({done.copied_bytes:,} bytes), {done.present} there "
        f"already{waits}"
    )
    if done.needs_keys:
        state = "lets nobody in until it has keys" if done.is_shut else "has none: its servers answer without a key"
        typer.echo(
            f"keys are not copied, since they are secrets of {store}; {target} {state}: make some with 'mu2net keys "
            f"create {target} NAME'",
            err=True,
        )


@app.command()
def gc(
    store: StoreArgument,
    keep: Annotated[int | None, typer.Option(help="How many of the newest releases stay; default: all.")] = None,
    grace_hours: Annotated[float, typer.Option(help="What is younger stays in any case; at least 2.")] = 24.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be deleted.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete what no kept release needs. Safe beside running servers and evolutions."""
    garbage = collect(Store.open(store), keep=keep, grace_s=grace_hours * HOUR_S, dry_run=dry_run)
    if as_json:
        typer.echo(json.dumps({**asdict(garbage), "bytes": garbage.size, "dry_run": dry_run}))
        return
    verb = "would delete" if dry_run else "deleted"
    typer.echo(
        f"{verb} {len(garbage.releases)} releases, {len(garbage.objects)} objects and {len(garbage.leftovers)} "
        f"leftovers of killed writers: {garbage.size:,} bytes; kept releases: "
        f"{', '.join(map(str, garbage.kept_releases))}"
    )
