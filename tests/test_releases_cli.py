"""`mu2net releases`: what each command prints and does."""

import json
from pathlib import Path

import pytest

from models.names import TaskName
from models.store import Current, Store, object_name
from tests.support.command_line import Cli
from tests.support.small_records import publish_toy, toy_store


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = toy_store(str(tmp_path / "store"))
    publish_toy(store, "a", 1)
    publish_toy(store, "b", 2)
    return store


def told(cli: Cli, store: Store, *words: object) -> dict[str, object]:
    found: dict[str, object] = json.loads(cli.succeed("releases", words[0], store.folder, *words[1:], "--json"))
    return found


def test_list_and_show(cli: Cli, store: Store) -> None:
    listed = told(cli, store, "list")
    assert (listed["active"], listed["held"]) == (2, False)
    text = cli.succeed("releases", "list", store.folder)
    assert "release 2 is active; publishing moves on by itself" in " ".join(text.split())
    shown = told(cli, store, "show", 1)
    assert (shown["release"], shown["state"], list(shown["tasks"])) == (1, "", ["a"])  # type: ignore[call-overload]
    assert "Release 1" in cli.succeed("releases", "show", store.folder, 1)
    assert "has no release 9; it has: 0, 1, 2" in cli.fail("releases", "show", store.folder, 9)


def test_activate_and_resume(cli: Cli, store: Store) -> None:
    text = cli.succeed("releases", "activate", store.folder, 1)
    assert text.startswith("release 1 is held; go on with 'mu2net releases resume")
    publish_toy(store, "c", 3)
    assert "release 1 is held; pending: 3" in " ".join(cli.succeed("releases", "list", store.folder).split())
    assert told(cli, store, "resume")["release"] == 3
    assert store.current() == Current(3)


def test_remove_rename_and_diff(cli: Cli, store: Store) -> None:
    assert "published release 3 (a: removed)" in cli.succeed("releases", "remove", store.folder, "a")
    assert told(cli, store, "rename", "b", "new")["release"] == 4
    assert "'No name' is not a task name" in cli.fail("releases", "rename", store.folder, "new", "No name")
    changes = told(cli, store, "diff", 2)["changes"]
    assert [(c["task"], c["what"]) for c in changes] == [  # type: ignore[attr-defined]
        ("a", "removed"),
        ("b", "removed"),
        ("new", "added"),
    ]
    assert "From release 2 to 4: 3 tasks differ" in cli.succeed("releases", "diff", store.folder, 2, 4)


def test_verify_names_what_is_wrong_and_exits_with_1(cli: Cli, store: Store) -> None:
    assert "release 2: whole" in cli.succeed("releases", "verify", store.folder)
    name = object_name(store.release().tasks[TaskName("b")], "json")
    store.files.delete(name)
    code, out, _ = cli.run("releases", "verify", store.folder, "--all")
    assert code == 1
    assert f"{name} is missing; needed by task 'b' of release 2" in " ".join(out.split())
    assert told(cli, store, "verify", 1)["problems"] == []


def test_push_and_gc(cli: Cli, store: Store, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    assert "is there as release 2" in cli.succeed("releases", "push", store.folder, target)
    assert "had this as release 2; 0 objects copied" in cli.succeed("releases", "push", store.folder, target)
    planned = cli.succeed("releases", "gc", store.folder, "--keep", 1, "--dry-run")
    assert planned.startswith("would delete 0 releases, 0 objects and 0 leftovers")  # all is young
    assert told(cli, store, "gc", "--keep", 1)["kept_releases"] == [0, 1, 2]
    assert "keep = 0: at least 1 release must stay" in cli.fail("releases", "gc", store.folder, "--keep", 0)
