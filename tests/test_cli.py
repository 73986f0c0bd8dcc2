"""The command line: what each command prints, and that a user's mistake is one clear line with exit code 1."""

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path

import pytest
from PIL import Image

from evolve.config import preset_names, setting_names
from models.cli import COMMAND_GROUP
from models.store import Store
from tests.support.command_line import Cli
from tests.support.tiny import TINY_ROOT, draw_image_folder

FOLDER = Path(__file__).parents[1]
SETTINGS = ("generations=1", "children_per_generation=1", "epochs=1", "batch_size=8", "validations=1", "threads=1")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)


def evolve_words(store: Path, task: str, data: Path) -> list[object]:
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    return ["evolve", store, task, "--data", data, *settings]


def test_init_evolve_and_tasks(cli: Cli, tmp_path: Path, toy_folder: Path) -> None:
    store = tmp_path / "store"
    assert "2 blocks of width 16, 16 px" in cli.succeed("init", store, "--root", TINY_ROOT)
    summary = json.loads(cli.succeed(*evolve_words(store, "toys", toy_folder), "--json"))
    assert (summary["task"], summary["release"], summary["is_new"]) == ("toys", 1, True)
    assert (summary["parent"], summary["depth"], summary["image_size"]) == ("root", 2, 16)
    assert (summary["candidates"], summary["stopped"], summary["learnt_from"]) == (1, 0, None)
    fresh = tmp_path / "fresh"
    cli.succeed("init", fresh, "--root", TINY_ROOT)
    first = cli.succeed(*evolve_words(fresh, "toys", toy_folder), "--set", "rank_children=2")
    assert first.strip().endswith("trained: 1; nothing was learnt from earlier iterations to rank them by")
    again = cli.succeed(*evolve_words(store, "more", toy_folder), "--set", "parents=toys", "--set", "seed=1")
    assert re.search(r"; grown from toys, depth [12], 16 px; candidates trained: 1$", again.strip())
    ranked = cli.succeed(*evolve_words(store, "third", toy_folder), "--set", "rank_children=2")
    assert ranked.strip().endswith("candidates trained: 1, ranked by what 2 candidates of earlier iterations taught")
    fourth = json.loads(cli.succeed(*evolve_words(store, "fourth", toy_folder), "--set", "rank_children=2", "--json"))
    assert fourth["learnt_from"] == 3
    listed = json.loads(cli.succeed("tasks", store, "--json"))
    task = next(task for task in listed["tasks"] if task["task"] == "toys")
    assert (task["task"], task["route"], task["labels"]) == ("toys", summary["route"], ["blue", "green", "red"])
    assert "toys" in cli.succeed("tasks", store)


def test_nothing_is_cut_in_a_terminal_of_80_columns(
    cli: Cli, tiny_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    heads = " ".join(cli.succeed("tasks", tiny_store).split())
    assert "task classes px blocks val test added accounted FLOPs" in heads
    texts = [" ".join(re.sub("[│╭╮╰╯─]", " ", cli.succeed(name, "--help")).split()) for name in ("init", "evolve")]
    assert "random:depth=4,image_size=32" in texts[0]
    assert ", ".join(preset_names()) in texts[1]
    assert ", ".join(setting_names()) in texts[1]
    assert "or a Ray cluster (mu2net[ray])." in texts[1]  # brackets are no markup
    assert not [text for text in texts if "…" in text]


def test_help_shows_every_command_and_one_command_imports_no_other(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = cli.succeed("--help")
    for name in (point.name for point in entry_points(group=COMMAND_GROUP)):
        assert re.search(rf"│ {name} ", everything), name
    assert cli.succeed("--version") == f"{version('mu2net')}\n"
    broken = [EntryPoint("tasks", "models.commands:tasks", COMMAND_GROUP), EntryPoint("evolve", "no.such:x", "x")]
    monkeypatch.setattr("models.cli.entry_points", lambda group: broken)
    assert "Print one JSON object" in cli.succeed("tasks", "--help")
    assert "Not installed here: evolve (they come with 'mu2net[evolve]')." in cli.succeed("--help")
    assert cli.fail("evolve") == (
        "error: the command 'evolve' is not installed here (No module named 'no'): install mu2net[evolve]"
    )


def test_brackets_in_names_are_no_markup(
    cli: Cli, tiny_store: Path, toy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    store = tiny_store.rename(tiny_store.with_name("st[o]re"))
    assert "st[o]re" in cli.succeed("tasks", store)
    cli.succeed("keys", "create", store, "[/b] shop", "--releases")
    assert "[/b] shop" in cli.succeed("keys", "list", store)
    listed = cli.succeed("releases", "list", store)
    assert "st[o]re" in listed
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d ", listed)
    assert "…" not in listed
    assert "whole" in cli.succeed("releases", "verify", store)
    renamed = toy_folder.parent / "bracketed"
    shutil.copytree(toy_folder, renamed, dirs_exist_ok=True)
    (renamed / "red").rename(renamed / "[red]")
    assert "(without red; with [red])" in cli.fail(*evolve_words(store, "shapes_a", renamed), code=0)


def test_a_damaged_journal_says_what_can_be_done(cli: Cli, tiny_store: Path, toy_folder: Path) -> None:
    end = tiny_store / "journal" / "shapes_a" / "0001" / "end.json"
    end.write_bytes(end.read_bytes()[:-9] + b"something")
    message = cli.fail(*evolve_words(tiny_store, "shapes_a", toy_folder))
    assert f"{end} is damaged: " in message
    assert f"or delete the folder {end.parent}: no release needs it, and the task is evolved anew" in message


def test_a_store_is_not_made_twice(cli: Cli, tiny_store: Path) -> None:
    message = cli.fail("init", tiny_store, "--root", TINY_ROOT)
    assert "is a store already: choose another folder, or evolve a task in this one" in message


def test_a_store_that_does_not_exist(cli: Cli, tmp_path: Path, toy_folder: Path) -> None:
    for words in (["tasks", tmp_path / "none"], evolve_words(tmp_path / "none", "toys", toy_folder)):
        assert "it has no file CURRENT; make one with 'mu2net init" in cli.fail(*words)


def test_a_damaged_store_is_named(cli: Cli, tiny_store: Path, toy_folder: Path) -> None:
    route_id = Store.open(tiny_store).release().tasks["shapes_a"]  # type: ignore[index]  # plain text is a name here
    damaged = tiny_store / "objects" / f"{route_id}.json"
    damaged.write_bytes(damaged.read_bytes()[:-9] + b"something")
    for words in (["tasks", tiny_store], evolve_words(tiny_store, "toys", toy_folder)):
        message = cli.fail(*words)
        assert f"{route_id}.json is damaged: its sha256 is" in message
        assert "needed by task 'shapes_a' of release 2" in message


@pytest.mark.parametrize("name", ["Toys", "../toys", "all", "", "a" * 65], ids=repr)
def test_a_bad_task_name(cli: Cli, tiny_store: Path, toy_folder: Path, name: str) -> None:
    message = cli.fail(*evolve_words(tiny_store, name, toy_folder))
    assert "is not a task name: use 1 to 64 of" in message or "is reserved and no task can have it" in message


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("generatoins=3", "unknown key generatoins (did you mean generations?); known keys: generations, "),
        ("generations=0", "generations = 0: use a whole number from 1"),
        ("generations=many", "generations = 'many': a whole number is needed"),
        ("generations=1.5", "generations = 1.5: a whole number is needed"),
        ("learning_rate=0.3", "learning_rate = 0.3: use one of 0.0001, 0.0002"),
        ("seed=-1", "seed = -1: use a whole number from 0"),
        ("threads=100000", "threads = 100000: use a whole number from 1 to 256"),
        ("size_penalty=2", "size_penalty = 2: use a number above 0 and up to 1 (1 = off)"),
    ],
    ids=lambda text: text[:20],
)
def test_a_bad_setting(cli: Cli, tiny_store: Path, toy_folder: Path, setting: str, message: str) -> None:
    assert message in cli.fail("evolve", tiny_store, "toys", "--data", toy_folder, "--set", setting)


def test_a_configuration_file(cli: Cli, tmp_path: Path, tiny_store: Path, toy_folder: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("generations = 1\nchildren = 2\n")
    message = cli.fail("evolve", tiny_store, "toys", "--data", toy_folder, "--config", file)
    meant = "children_per_generation or first_children or rank_children"
    assert f"unknown key children (did you mean {meant}?); known keys: " in message
    assert "cannot be read" in cli.fail("evolve", tiny_store, "toys", "--data", toy_folder, "--config", tmp_path / "no")


def test_unusable_data(cli: Cli, tmp_path: Path, tiny_store: Path) -> None:
    one_class = tmp_path / "one"
    (one_class / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(one_class / "cat" / "1.png")
    assert "class" in cli.fail(*evolve_words(tiny_store, "toys", one_class))
    assert "no_such_folder" in cli.fail(*evolve_words(tiny_store, "toys", tmp_path / "no_such_folder"))
    damaged = draw_image_folder(tmp_path / "damaged")
    (damaged / "red" / "0.png").write_bytes(b"no image")
    assert "red/0.png" in cli.fail(*evolve_words(tiny_store, "toys", damaged))
    assert Store.open(tiny_store).current().release == 2  # nothing was published


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.csv", "path,label\na.png,caf\xe9\n".encode("cp1252"), "line 2: the byte 0xe9 is not UTF-8"),
        ("t.csv", f"path,label\na.png,{'x' * 300}\n".encode(), "(line 2); a class's name has 1 to 100 printable"),
        ("t.parquet", b"PAR1", "cannot be read as parquet"),
    ],
    ids=["encoding", "label", "parquet"],
)
@pytest.mark.parametrize("command", ["evolve", "evaluate"])
def test_an_unusable_table(
    cli: Cli, tmp_path: Path, tiny_store: Path, command: str, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    said = cli.fail(command, tiny_store, "shapes_a", "--data", tmp_path / name)
    assert f"'{tmp_path / name}'" in said
    assert message in said


def test_wrong_usage_is_exit_code_2(cli: Cli, tiny_store: Path) -> None:
    assert "Missing option '--data'" in cli.fail("evolve", tiny_store, "toys", code=2)
    assert "Missing argument 'TASK'" in cli.fail("evolve", tiny_store, code=2)
    assert "characters names tasks" in cli.fail("evolve", tiny_store, "--suite", "characters", "--data", "x", code=2)
    assert "--data-root" in cli.fail(*evolve_words(tiny_store, "toys", tiny_store), "--data-root", ".", code=2)
    for options in (["--workers", 2], ["--executor", "ray"]):
        refused = cli.fail(*evolve_words(tiny_store, "toys", tiny_store), "--plain", *options, code=2)
        assert "leave --workers and --executor out" in refused.replace("│ ", "")
    for setting in ("generations = 2", "minutes=3"):
        words = ["evolve", tiny_store, "toys", "--data", tiny_store, "--budget", "5m", "--set", setting]
        refused = " ".join(cli.fail(*words, code=2).replace("│", "").split())
        assert f"--set {setting.split('=')[0].strip()}: leave one of them out" in refused
    assert "No such command 'evolv'" in cli.fail("evolv", code=2)


def test_what_the_system_refuses_is_one_line(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = cli.fail("init", tmp_path / "file" / "store", "--root", TINY_ROOT)
    assert "error: the system refused: [Errno 20] Not a directory" in message
    assert "check the path, its permissions and the free space" in message


def test_ctrl_c_before_a_command_runs_ends_with_130(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("models.cli.build_app", interrupted)
    assert "stopped" in cli.fail("tasks", "store", code=130)


def test_a_demo_that_is_told_to_end_cleans_up() -> None:
    code = (
        "import signal; from evolve.demo import unwind_on_sigterm\nunwind_on_sigterm()\n"
        "try:\n print('begun', flush=True); signal.pause()\nfinally:\n print('cleaned up')"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=FOLDER, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.terminate()
        assert process.stdout.read() == "cleaned up\n"
    assert process.returncode == 143


def test_a_store_is_not_made_among_other_files(cli: Cli, toy_folder: Path) -> None:
    message = cli.fail("init", toy_folder, "--root", TINY_ROOT)
    assert "is not empty and no store (it has blue, green, red): choose a new folder" in message
    assert not (toy_folder / "CURRENT").exists()
