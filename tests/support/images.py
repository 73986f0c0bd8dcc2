"""Labelled images for tests, drawn by Pillow: each class has its own colour, each image its own shade."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def draw(path: Path, *, hue: int, number: int, size: int = 12) -> None:
    """Write one image; no two of different `hue` (0 to 255) or `number` (0 to 10,000) are the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size, size, 3), dtype=np.uint8)
    pixels[..., 0] = hue
    pixels[:, :, 1], pixels[:, :, 2] = divmod(number, 256)
    Image.fromarray(pixels).save(path, "PNG")


def draw_folder(folder: Path, counts: Mapping[str, int]) -> Path:
    """Write `counts` images below `folder`, where a key is a class folder such as `cat` or `train/cat`."""
    classes = sorted({Path(key).name for key in counts})
    number = 0
    for key, count in counts.items():
        (folder / key).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            draw(folder / key / f"{index:03d}.png", hue=20 * classes.index(Path(key).name), number=number)
            number += 1
    return folder


def zipped(folder: Path, *, below: str = "") -> Path:
    """Pack a folder into a zip beside it, perhaps below a wrapping folder `below`, with entries for folders."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, f"{below}{file.relative_to(folder)}")
    return path


def picture(seed: int = 0, size: int = 24, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()
