"""How `format-N` was made: `python -m tests.golden.make FOLDER`. Once a format is released its store stays as it is."""

import shutil
import sys
import tempfile
from pathlib import Path

from evolve.loop import evolve_task
from evolve.publish import create_store
from models.root import load_root
from tests.conftest import TINY_CONFIG, TINY_ROOT, draw_image_folder, load_toy_task


def make(folder: Path) -> None:
    """Make a store with something of everything: journals, a task evolved anew, a hold, a removal that is pending."""
    store = create_store(folder, load_root(TINY_ROOT))
    with tempfile.TemporaryDirectory() as name:
        images = draw_image_folder(Path(name) / "images", images_per_class=5)
        for task in ("first", "second", "first"):
            evolve_task(load_toy_task(task, images, Path(name) / "pixels"), store, TINY_CONFIG)
    store.activate(2)
    store.remove_task("second")
    (folder / "LOCK").unlink()
    shutil.rmtree(folder / "work")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
