"""Settings of an evolution that has a budget of time: live early, and better from then on.

The first candidates are small, so that one is soon good enough to be published: a quarter of the root's
blocks, and no more pixels than the images have. From there the search grows what pays.
"""

import io
import math
from dataclasses import replace
from statistics import median_low

from PIL import Image

from evolve.config import EvolveConfig
from evolve.hparams import image_sizes
from evolve.task import LabelledImages
from models.budget import parse_budget
from models.image_folder import open_image_folder
from models.route import Route

LOOKED_AT = 50  # images whose size is looked at


def anytime_config(config: EvolveConfig, budget: str, root: Route, images: LabelledImages) -> EvolveConfig:
    """Return `config` for a budget such as `5m`; image size and depth stay where they are set.

    Raises:
        InvalidConfig: the budget is no time.
    """
    network = root.network
    sizes = config.allowed(image_sizes(patch_size=network.patch_size, largest=network.image_size))
    start = first_size(sizes, native_size(images))
    return replace(
        config,
        minutes=parse_budget(budget) / 60,
        anytime=True,
        image_size=start if config.image_size is None else config.image_size,
        depth=max(config.min_depth, math.ceil(network.depth / 4)) if config.depth is None else config.depth,
    )


def first_size(sizes: tuple[int, ...], native: int) -> int:
    """Return the smallest size that loses nothing of the images, but at most half of the largest."""
    enough = next((size for size in sizes if size >= native), sizes[-1])
    half = max([size for size in sizes if 2 * size <= sizes[-1]], default=sizes[0])
    return min(enough, half)


def native_size(images: LabelledImages) -> int:
    """Return the usual number of pixels of the images' shorter side."""
    wanted = set(images.names[:: max(1, len(images) // LOOKED_AT)])
    with open_image_folder(images.source, images.limits) as folder:
        found = [folder.read(entry) for entry in folder.entries if entry.name in wanted]
    return median_low(min(Image.open(io.BytesIO(data)).size) for data in found)
