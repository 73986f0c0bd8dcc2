"""Image files of a chosen structure."""

import io

import numpy as np
from PIL import Image


def photo(file_format: str = "JPEG", width: int = 40, height: int = 30, **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format, **options)
    return file.getvalue()


def with_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is there again and again."""
    data = photo(progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:-2] + data[start:-2] * (count - data.count(b"\xff\xda")) + b"\xff\xd9"
