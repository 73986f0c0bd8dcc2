"""How the stores were made: `python -m tests.golden.make format-N FOLDER`. One that was released stays as it is."""

import shutil
import sys
import tempfile
from pathlib import Path

from evolve.loop import evolve_task
from evolve.publish import create_store
from evolve.variants import lower_release
from models.root import load_root
from tests.support.tiny import TINY_CONFIG, TINY_ROOT, draw_image_folder, load_toy_task


def make_format_1(folder: Path) -> None:
    """Make a store with something of everything: journals, a task evolved anew, a hold, a removal that is pending."""
    store = create_store(folder, load_root(TINY_ROOT))
    with tempfile.TemporaryDirectory() as name:
        images = draw_image_folder(Path(name) / "images", images_per_class=5)
        for task in ("first", "second", "first"):
            evolve_task(load_toy_task(task, images, Path(name) / "pixels"), store, TINY_CONFIG)
    store.activate(2)
    store.remove_task("second")
    _tidy(folder)


def make_format_2(folder: Path) -> None:
    """Make a store with what format 1 cannot say: a release whose routes have int8 beside float32."""
    store = create_store(folder, load_root(TINY_ROOT))
    with tempfile.TemporaryDirectory() as name:
        images = draw_image_folder(Path(name) / "images", images_per_class=5)
        task = load_toy_task("first", images, Path(name) / "pixels")
        evolve_task(task, store, TINY_CONFIG)
        lower_release(store, "int8", {task.name: task.val}, tolerance=100)
    _tidy(folder)


def _tidy(folder: Path) -> None:
    (folder / "LOCK").unlink()
    shutil.rmtree(folder / "work", ignore_errors=True)


if __name__ == "__main__":
    {"format-1": make_format_1, "format-2": make_format_2}[sys.argv[1]](Path(sys.argv[2]))
