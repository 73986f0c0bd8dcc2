"""Random augmentation of a training batch: crop, flip and colour, drawn per image from one generator."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from evolve.device_memory import to_device
from evolve.hparams import DataHParams

# RGB to luma and two chroma axes (YIQ) and back: turning the chroma plane turns the hue.
RGB_TO_YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]], np.float32
)
YIQ_TO_RGB = torch.linalg.inv(torch.from_numpy(RGB_TO_YIQ)).numpy()


def augment(pixels: Tensor, hparams: DataHParams, rng: np.random.Generator) -> Tensor:
    """Return a batch [batch, 3, size, size] of levels 0 to 255 as float32, from uint8 [batch, size, size, 3]."""
    images = pixels.permute(0, 3, 1, 2).to(torch.float32)
    if hparams.is_plain:
        return images
    if hparams.flip or hparams.crop_area_min < 1:
        images = _crop_and_flip(images, hparams, rng)
    if hparams.brightness or hparams.contrast or hparams.saturation or hparams.hue:
        images = _jitter(images, hparams, rng)
    return images


def _crop_and_flip(images: Tensor, hparams: DataHParams, rng: np.random.Generator) -> Tensor:
    """Cut a random box of each image, mirror half of them, and scale back to full size."""
    count = len(images)
    area = rng.uniform(hparams.crop_area_min, 1, count)
    spread = abs(math.log(hparams.crop_aspect_min))  # abs: numpy refuses to draw between 0.0 and -0.0
    aspect = np.exp(rng.uniform(-spread, spread, count))
    width, height = np.minimum(np.sqrt(area * aspect), 1), np.minimum(np.sqrt(area / aspect), 1)
    left, top = rng.uniform(width - 1, 1 - width), rng.uniform(height - 1, 1 - height)
    mirror = np.where(rng.random(count) < 0.5, -1, 1) if hparams.flip else np.ones(count)
    boxes = np.zeros((count, 2, 3), np.float32)
    boxes[:, 0, 0], boxes[:, 0, 2] = width * mirror, left
    boxes[:, 1, 1], boxes[:, 1, 2] = height, top
    grid = F.affine_grid(to_device(boxes, str(images.device)), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _jitter(images: Tensor, hparams: DataHParams, rng: np.random.Generator) -> Tensor:
    def factor(strength: float) -> Tensor:
        drawn = rng.uniform(1 - strength, 1 + strength, (len(images), 1, 1, 1)).astype(np.float32)
        return to_device(drawn, str(images.device))

    images = images * factor(hparams.brightness)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = mean + (images - mean) * factor(hparams.contrast)
    to_yiq = to_device(RGB_TO_YIQ, str(images.device))
    to_rgb = to_device(YIQ_TO_RGB, str(images.device))
    luma, *chroma = torch.einsum("kc,bchw->bkhw", to_yiq, images).unsqueeze(2).unbind(1)
    turn = (factor(hparams.hue) - 1) * 2 * math.pi
    stretch = factor(hparams.saturation)
    in_phase = stretch * (turn.cos() * chroma[0] - turn.sin() * chroma[1])
    quadrature = stretch * (turn.sin() * chroma[0] + turn.cos() * chroma[1])
    yiq = torch.cat([luma, in_phase, quadrature], dim=1)
    return torch.einsum("ck,bkhw->bchw", to_rgb, yiq).clamp(0, 255)
