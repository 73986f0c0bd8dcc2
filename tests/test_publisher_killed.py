"""A publisher killed by SIGKILL before any step of a publish leaves a store that opens, with a whole release."""

import subprocess
import sys
from pathlib import Path

from models.store import Store
from models.verify import verify
from tests.support.small_records import publish_toy, toy_store

# Counts every call that changes the disk, and kills itself before the one it is told. One child process
# forks for each step, so that each publisher is a real process; it imports no torch and starts no thread.
PUBLISHER = """
import os, shutil, signal, sys
from pathlib import Path
from models import files
from models.store import Store
from tests.support.small_records import publish_toy

def killed_before(step, call):
    def counted(*arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return counted

source, folder = Path(sys.argv[1]), Path(sys.argv[2])
for step in range(1, 1000):
    target = folder / str(step)
    shutil.copytree(source, target)
    child = os.fork()
    if child == 0:
        left = [step]
        for module, name in ((os, "fsync"), (os, "link"), (os, "replace"), (os, "utime"), (Path, "unlink")):
            setattr(module, name, killed_before(step, getattr(module, name)))
        publish_toy(Store.open(target), "new", 7)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        print(step)
        break
"""


def test_a_publisher_killed_at_any_step_leaves_the_last_complete_release(tmp_path: Path) -> None:
    source = tmp_path / "source"
    publish_toy(toy_store(str(source)), "old", 1)
    runs = tmp_path / "runs"
    runs.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PUBLISHER, source, runs],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    steps = int(done.stdout)
    assert steps > 20  # 4 objects, a release and the pointer, each with several steps
    active = []
    for step in range(1, steps + 1):
        store = Store.open(runs / str(step))
        active.append(store.current().release)
        assert not verify(store, store.release_numbers()).problems, step
        assert set(store.release().tasks) == ({"old"} if active[-1] == 1 else {"old", "new"})
        again = publish_toy(store, "new", 7)  # nothing is locked, and what is half done is in nobody's way
        assert set(again.tasks) == {"old", "new"}
    assert sorted(active) == active
    assert {1, 2} == set(active)
