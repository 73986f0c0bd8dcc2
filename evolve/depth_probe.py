"""Where a short route would do: one forward pass through the root, with a linear probe after every block."""

from collections.abc import Sequence

import numpy as np
import torch

from evolve.candidate import Candidate
from evolve.network import build_network
from evolve.pool import WeightPool
from evolve.task import LabelledImages, Task
from evolve.train import TrainPlan, scaled
from models.vit import ViT

PROBE_IMAGES = 512  # of each split; enough to see the bend in the curve over depth
PROBE_BATCH = 256
RIDGE = 1e-1  # on standardised features, relative to the number of images


def probe_depths(root: Candidate, task: Task, pool: WeightPool, plan: TrainPlan) -> tuple[float, ...]:
    """Return the validation accuracy of a linear probe on the class token after 0, 1, ... all of the root's blocks."""
    torch.set_num_threads(plan.threads)
    network, _ = build_network([part for part in root.parts if part.component.kind != "head"], pool, plan.network)
    network.to(plan.device)
    size = root.data.image_size
    train_labels, train = _features(network, task.train, size, plan)
    val_labels, val = _features(network, task.val, size, plan)
    return tuple(
        _probe_accuracy(seen, train_labels, new, val_labels, task.num_classes)
        for seen, new in zip(train, val, strict=True)
    )


def shortest_sufficient(accuracies: Sequence[float], num_images: int) -> int:
    """Return the smallest depth whose probe is within one standard error of the best probe's accuracy."""
    best = max(accuracies)
    margin = (best * (1 - best) / num_images) ** 0.5
    return next(depth for depth, accuracy in enumerate(accuracies) if accuracy >= best - margin)


@torch.no_grad()
def _features(
    network: ViT, images: LabelledImages, image_size: int, plan: TrainPlan
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return labels and, for each depth, the normalised class tokens [images, dim] of evenly spread images."""
    chosen = np.unique(np.linspace(0, len(images) - 1, min(len(images), PROBE_IMAGES)).astype(np.int64))
    pixels = images.pixels(image_size)
    chunks: list[list[np.ndarray]] = [[] for _ in range(len(network.layers) + 1)]
    for at in range(0, len(chosen), PROBE_BATCH):
        batch = torch.from_numpy(np.array(pixels[chosen[at : at + PROBE_BATCH]])).to(plan.device)
        levels = batch.permute(0, 3, 1, 2).to(torch.float32)
        tokens = network.pos_embed(network.patch_embed(scaled(levels, plan.preprocessing)))
        for depth in range(len(chunks)):
            if depth:
                tokens = network.layers[depth - 1](tokens)
            chunks[depth].append(network.norm(tokens[:, 0]).cpu().numpy())
    return images.labels[chosen], [np.concatenate(chunk) for chunk in chunks]


def _probe_accuracy(
    train: np.ndarray, train_labels: np.ndarray, val: np.ndarray, val_labels: np.ndarray, num_classes: int
) -> float:
    """Fit ridge regression onto one-hot labels, in closed form, and return its accuracy."""
    mean, spread = train.mean(axis=0), train.std(axis=0) + 1e-6
    seen, new = ((values - mean) / spread for values in (train.astype(np.float64), val.astype(np.float64)))
    targets = np.eye(num_classes)[train_labels]
    offset = targets.mean(axis=0)
    gram = seen.T @ seen + RIDGE * len(seen) * np.eye(seen.shape[1])
    weights = np.linalg.solve(gram, seen.T @ (targets - offset))
    return float(((new @ weights + offset).argmax(axis=1) == val_labels).mean())
