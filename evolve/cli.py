"""The commands that make a store and evolve tasks in it. Heavy imports wait until a command runs."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from models.commands import JsonOption, StoreArgument, accuracy_text
from models.names import parse_task_name
from models.store import Store

if find_spec("torch") is None:
    raise ModuleNotFoundError("evolving needs torch: install mu2net[evolve]", name="torch")

Triple = tuple[float, float, float]


def init(
    store: Annotated[str, typer.Argument(help="The folder or s3:// URL to make the store in.", show_default=False)],
    root: Annotated[
        str,
        typer.Option(
            help="What everything grows from: a timm model such as vit_tiny_patch16_224 with its pretrained weights, "
            "a checkpoint file in timm's key names, or 'random' ('random:embed_dim=64,depth=4,num_heads=4,"
            "patch_size=4,image_size=32,seed=0')."
        ),
    ],
    image_size: Annotated[int | None, typer.Option(help="Pixels; default: the root's own.")] = None,
    num_heads: Annotated[int | None, typer.Option(help="Of a checkpoint file whose heads are not 64 wide.")] = None,
    mean: Annotated[Triple | None, typer.Option(help="Mean per channel that the root was trained with.")] = None,
    std: Annotated[Triple | None, typer.Option(help="Standard deviation per channel.")] = None,
) -> None:
    """Make a store from a pretrained network, the root."""
    from evolve.publish import create_store
    from models.root import load_root

    loaded = load_root(root, image_size=image_size, num_heads=num_heads, mean=mean, std=std)
    made = create_store(store, loaded)
    network, parameters = loaded.network, made.root().parameters
    Console().print(
        f"Made {store}: root {root}, {network.depth} blocks of width {network.embed_dim}, {network.image_size} px, "
        f"{parameters:,} parameters.\nNext: mu2net evolve {store} TASK --data FOLDER_OR_ZIP",
        highlight=False,
        soft_wrap=True,
    )


def evolve(
    store: StoreArgument,
    task: Annotated[str, typer.Argument(help="The task's name; a known one is improved.", show_default=False)],
    data: Annotated[
        Path,
        typer.Option(help="Labelled images: a folder or zip with a folder per class, perhaps in train/ and test/."),
    ],
    preset: Annotated[str | None, typer.Option(help="Settings of the paper, by name; see evolve/presets.")] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file with settings.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="One setting, as key=value; repeatable.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Never offer its components to other tasks.")] = False,
    from_release: Annotated[
        int | None, typer.Option(help="Grow from the routes of this release; default: the active one.")
    ] = None,
    skip_unreadable: Annotated[bool, typer.Option("--skip-unreadable", help="Leave damaged images out.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Candidates trained side by side; default: the cores / threads of each."),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="The slow reference: one after another, nothing shared.")
    ] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Show where the time of training went.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Add a task to the system, or improve one, and publish the outcome as a new release.

    An interrupted run is taken up again by the same command.
    """
    from evolve.config import load_config

    name = parse_task_name(task)
    opened = Store.open(store)
    resolved = load_config(config, settings or [], preset=preset)

    import torch  # after what can be refused at once: it takes seconds

    from evolve.local_executor import LocalExecutor, default_workers
    from evolve.loop import evolve_task, one_after_another
    from evolve.progress import ProgressDisplay
    from evolve.task import load_task
    from evolve.throughput import profile_table

    console = Console(stderr=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    workers = workers or default_workers(threads=resolved.threads, device=device)
    with LocalExecutor(workers) as side_by_side, ProgressDisplay(console) as display:
        loaded = load_task(
            name,
            data,
            seed=resolved.seed,
            cache_folder=opened.folder / "work" / "pixels",
            skip_unreadable=skip_unreadable,
            progress=display.decoding,
        )
        for warning in loaded.describe().warnings():
            console.print(f"[yellow]note:[/] {warning}", highlight=False)
        former = opened.routes(opened.release()).get(name)
        if former is not None and former.labels != loaded.labels:
            console.print(f"[yellow]note:[/] {label_changes(former.labels, loaded.labels)}", highlight=False)
        try:
            outcome = evolve_task(
                loaded,
                opened,
                resolved,
                private=private,
                from_release=from_release,
                execute=one_after_another if plain else side_by_side,
                report=display.candidate(resolved),
            )
        except KeyboardInterrupt:
            console.print("stopped; the finished generations are kept: the same command goes on from there")
            raise
    if profile:
        console.print(profile_table(outcome.throughput))
    quality = outcome.route.quality
    if as_json:
        summary = {
            "task": name,
            "release": outcome.release.number,
            "route": outcome.route_id,
            "is_new": outcome.is_new,
            "trained_images": outcome.trained_images,
            "quality": asdict(quality) if quality else None,
        }
        typer.echo(json.dumps(summary))
        return
    news = f"published in release {outcome.release.number}" if outcome.is_new else "kept: nothing better was found"
    assert quality is not None, "a task's route has a quality"
    Console().print(
        f"{name}: {news}; validation accuracy {accuracy_text(quality.validation_accuracy)}, "
        f"to be expected {accuracy_text(quality.expected_accuracy)}, "
        f"test accuracy {accuracy_text(quality.test_accuracy)}",
        highlight=False,
        soft_wrap=True,
    )


def label_changes(old: Sequence[str], new: Sequence[str]) -> str:
    """Return for people what becomes of a task whose classes have changed."""
    gone, added = sorted(set(old) - set(new)), sorted(set(new) - set(old))
    changes = [f"{word} {', '.join(labels)}" for word, labels in (("without", gone), ("with", added)) if labels]
    return (
        f"the classes have changed ({'; '.join(changes)}): a new head is learnt, accuracies before and after are not "
        "comparable, and clients see the new classes from the new release on"
    )
