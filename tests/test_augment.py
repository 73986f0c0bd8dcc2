"""Augmentation: every step of every list works, nothing happens unless asked, and draws follow the generator."""

import itertools

import numpy as np
import pytest
import torch

from evolve.augment import augment
from evolve.hparams import ORDERED_VALUES, DataHParams

PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8))
CROPS = itertools.product(ORDERED_VALUES["crop_area_min"], ORDERED_VALUES["crop_aspect_min"], (False, True))


def test_plain_data_is_only_laid_out_anew() -> None:
    levels = augment(PIXELS, DataHParams(16), np.random.default_rng(0))
    assert torch.equal(levels, PIXELS.permute(0, 3, 1, 2).float())


@pytest.mark.parametrize(("area", "aspect", "flip"), list(CROPS))
def test_every_crop_gives_levels_of_the_same_shape(area: float, aspect: float, flip: bool) -> None:
    hparams = DataHParams(16, crop_area_min=area, crop_aspect_min=aspect, flip=flip)
    levels = augment(PIXELS, hparams, np.random.default_rng(0))
    assert levels.shape == (4, 3, 16, 16)
    assert levels.min() >= 0
    assert levels.max() <= 255.001


def test_a_flip_alone_mirrors_or_leaves_each_image() -> None:
    levels = augment(PIXELS, DataHParams(16, flip=True), np.random.default_rng(0))
    plain = PIXELS.permute(0, 3, 1, 2).float()
    for image, original in zip(levels, plain, strict=True):
        choices = (original, original.flip(-1))
        assert any(torch.allclose(image, choice, atol=0.01) for choice in choices)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_colour_setting_changes_colours(name: str) -> None:
    hparams = DataHParams(16, **{name: 0.2})  # type: ignore[arg-type]  # each is a number
    first, second = (augment(PIXELS, hparams, np.random.default_rng(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.allclose(first, PIXELS.permute(0, 3, 1, 2).float(), atol=0.5)
