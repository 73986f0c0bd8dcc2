"""Who may read what is written: its user alone whatever the umask says, or the group that the operator chose."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from evolve.loop import evolve_task
from evolve.publish import create_store
from models.errors import InvalidConfig
from models.files import LocalFiles, folder_mode
from models.jobs import JobQueue, JobRequest, queue_url
from models.key_list import KEYS_FILE, find_keys
from models.names import TaskName
from models.release_commands import app
from models.root import load_root
from models.store import Store
from models.uploads import Uploads
from service.cli import reserve
from service.keys import add_key, new_key
from tests.support.in_process import PATH, problem, send, served, wait_for
from tests.support.stores import TaskPlan, make_store
from tests.support.tiny import TINY_CONFIG, TINY_ROOT, load_toy_task


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    """The umask of most systems, by which others may read whatever is made."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """Return the modes of all that lies in a folder and of itself."""
    return {str(path): stat.S_IMODE(path.lstat().st_mode) for path in [folder, *folder.rglob("*")]}


def fill(folder: Path, toy_folder: Path, scratch: Path) -> Store:
    """Do to a store whatever writes into it: evolve, take uploads, queue jobs, make keys."""
    store = create_store(folder, load_root(TINY_ROOT))
    evolve_task(load_toy_task("shapes", toy_folder, folder / "work" / "pixels"), store, TINY_CONFIG)
    upload = scratch / "images.zip"
    upload.write_bytes(b"images")
    digest = Uploads(store).put(TaskName("shapes"), upload)
    Uploads(store).local_copy(TaskName("shapes"), digest)
    queue = JobQueue(queue_url(store, None))
    with queue._connected():  # the files beside the database are there while it is open
        queue.submit(JobRequest(TaskName("shapes"), "iterate", digest, None, True, ()))
        assert {stat.S_IMODE(path.stat().st_mode) & 0o007 for path in folder.glob("jobs.sqlite*")} == {0}
    add_key(store.files, new_key("a test", classify=("all",), manages=(), rate=None)[0])
    return store


def test_all_that_is_written_is_its_users_alone(tmp_path: Path, toy_folder: Path) -> None:
    fill(tmp_path / "store", toy_folder, tmp_path)
    found = modes(tmp_path / "store")
    assert {path: oct(mode) for path, mode in found.items() if mode & 0o077} == {}
    names = {Path(path).name for path in found}
    assert {"keys.json", "jobs.sqlite", "LOCK", "CURRENT", "pixels", "uploads", "objects"} <= names


@pytest.mark.parametrize(
    ("chosen", "folders", "files"), [(0o2750, 0o750, 0o640), (0o2770, 0o770, 0o660), (0o770, 0o770, 0o660)]
)
def test_a_store_is_shared_with_the_group_that_its_folder_is_given_to(
    tmp_path: Path, chosen: int, folders: int, files: int
) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    folder.chmod(chosen)
    store = make_store(folder, TaskPlan("first"))
    JobQueue(queue_url(store, None)).jobs(limit=1)
    assert stat.S_IMODE(folder.stat().st_mode) == chosen
    found = {(Path(path).is_dir(), mode & 0o777) for path, mode in modes(folder).items() if Path(path).name != "LOCK"}
    assert found == {(True, folders), (False, files)}
    assert all(mode & stat.S_ISGID for path, mode in modes(folder).items() if Path(path).is_dir()) == (chosen > 0o777)


@pytest.mark.parametrize(("mode", "wanted"), [(0o755, 0o700), (0o775, 0o700), (0o777, 0o700), (0o2755, 0o2750)])
def test_what_a_umask_gave_is_no_choice_and_is_taken_back(
    tmp_path: Path, mode: int, wanted: int, caplog: pytest.LogCaptureFixture
) -> None:
    store = make_store(tmp_path / "store", TaskPlan("first"))
    add_key(store.files, new_key("a test", classify=("all",), manages=(), rate=None)[0])
    JobQueue(queue_url(store, None)).jobs(limit=1)
    store.folder.chmod(mode)
    for name in (KEYS_FILE, "jobs.sqlite"):
        (store.folder / name).chmod(0o644)
    store.remove_task("first")
    assert stat.S_IMODE(store.folder.stat().st_mode) == wanted
    assert {stat.S_IMODE((store.folder / name).stat().st_mode) for name in (KEYS_FILE, "jobs.sqlite")} == {
        0o600 | (wanted & 0o060)
    }
    assert f"store was open to other users (mode {mode:04o}) and is not any more" in caplog.text
    assert folder_mode(store.folder) == wanted


def test_a_servers_own_folder_is_its_users_alone(tmp_path: Path) -> None:
    home = tmp_path / "cache" / "serve-1"
    reserve(home, "127.0.0.1", 1)
    assert {mode & 0o077 for mode in modes(tmp_path / "cache").values()} == {0}
    LocalFiles(tmp_path / "copy").replace("objects/x.json", b"")
    assert {mode & 0o077 for mode in modes(tmp_path / "copy").values()} == {0}


def test_the_lock_of_a_shared_store_is_shared(tmp_path: Path) -> None:
    tmp_path.chmod(0o2770)
    files = LocalFiles(tmp_path)
    with files.lock():
        assert stat.S_IMODE((tmp_path / "LOCK").stat().st_mode) == 0o660
        assert not FileLock(tmp_path / "other").is_locked


def test_a_pushed_copy_of_a_store_with_keys_stays_shut_until_it_has_some(tmp_path: Path) -> None:
    source = make_store(tmp_path / "store", TaskPlan("first"))
    add_key(source.files, new_key("a test", classify=("all",), manages=(), rate=None)[0])
    copy = tmp_path / "copy"
    pushed = CliRunner().invoke(app, ["push", str(source.folder), str(copy)])
    assert pushed.exit_code == 0
    assert pushed.stderr == (
        f"keys are not copied, since they are secrets of {source.folder}; {copy} lets nobody in until it has keys: "
        f"make some with 'mu2net keys create {copy} NAME'\n"
    )
    again = json.loads(CliRunner().invoke(app, ["push", str(source.folder), str(copy), "--json"]).stdout)
    assert (again["is_new"], again["needs_keys"], again["is_shut"]) == (False, True, True)
    with served(copy) as (client, server):
        for request in ({}, {"authorization": f"Bearer {server.own_token}"}):
            message = problem(send(client, PATH, headers=request), 401, "key-needed")
            assert message == (
                "this server needs an API key, and its store has none: it is a copy of a store with keys, which are "
                "not copied; make keys with 'mu2net keys create'"
            )
        assert client.get("/v1/tasks").status_code == 401
        key, token = new_key("of the copy", classify=("all",), manages=(), rate=None)
        add_key(Store.open(copy).files, key)
        wait_for(lambda: server.keys.holder(token) is not None)
        assert send(client, PATH, headers={"authorization": f"Bearer {token}"}).status_code == 200
    done = json.loads(CliRunner().invoke(app, ["push", str(source.folder), str(copy), "--json"]).stdout)
    assert (done["needs_keys"], done["is_shut"]) == (False, False)


def test_a_copy_of_a_store_without_keys_is_as_open_as_that(tmp_path: Path) -> None:
    source = make_store(tmp_path / "store", TaskPlan("first"))
    pushed = CliRunner().invoke(app, ["push", str(source.folder), str(tmp_path / "copy")])
    assert (pushed.exit_code, pushed.stderr) == (0, "")
    assert find_keys(Store.open(tmp_path / "copy").files) is None
    add_key(source.files, new_key("a test", classify=("all",), manages=(), rate=None)[0])
    later = CliRunner().invoke(app, ["push", str(source.folder), str(tmp_path / "copy")])
    assert "copy has none: its servers answer without a key: make some with 'mu2net keys create" in later.stderr


def test_keys_that_come_and_go_are_in_the_audit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = make_store(tmp_path / "store", TaskPlan("first"))
    caplog.set_level("INFO", "mu2net.audit")
    with served(store.folder) as (_, server):
        key, token = new_key("shop", classify=("all",), manages=("tasks",), rate=None)
        add_key(store.files, key)
        wait_for(lambda: server.keys.holder(token) is not None)
    (line,) = [record.__dict__ for record in caplog.records if record.name == "mu2net.audit"]
    assert (line["message"], line["key"], line["key_name"], line["manages"]) == ("key made", key.id, "shop", ("tasks",))
    assert token not in caplog.text


def test_serve_needs_a_place_for_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.cli import serve

    store = make_store(tmp_path / "store", TaskPlan("first"))
    (tmp_path / "file").touch()
    monkeypatch.setenv("MU2NET_CACHE", str(tmp_path / "file"))
    with pytest.raises(InvalidConfig, match=r"the token of this machine's user cannot be kept in .*file \(Not a dir"):
        serve(str(store.folder), port=65_000, host="127.0.0.1", with_worker=False)
