"""A linear probe: how far a frozen network gets on a task with nothing but a linear classifier.

Its validation accuracy ranks parents before anything is trained, as a transferability estimate (Renggli et
al., "Which Model to Transfer? Finding the Needle in the Growing Haystack", 2022), and its weights are a
better start for a child's head than zeros. A few hundred images, each seen once, are enough for both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from evolve.activations import CHUNK, run_modules
from evolve.augment import augment
from evolve.candidate import Part
from evolve.hparams import DataHParams
from evolve.network import build_part
from evolve.pool import WeightPool
from evolve.task import LabelledImages, Task
from evolve.train import TrainPlan, scaled
from models.weights import Weights

FIT_IMAGES, JUDGE_IMAGES = 256, 128
WEIGHT_DECAY = 1e-2  # on features that a layer norm has scaled; the ranking hardly depends on it
ITERATIONS = 60  # of L-BFGS, which by then has converged


@dataclass(frozen=True, slots=True)
class Probe:
    """A linear classifier on a frozen network's normalised class tokens."""

    head: Weights
    accuracy: float  # on validation images, 0 to 1
    images: int  # of the training split that were run through the network, once


def fit_probe(
    body: Sequence[Part], image_size: int, task: Task, pool: WeightPool, plan: TrainPlan, rng: np.random.Generator
) -> Probe:
    """Fit a linear classifier behind frozen components.

    Args:
        body: all components but the head, the final norm last.
        image_size: that the position embedding among them is for.
        task: its training images are fitted to, its validation images judge.
        pool: holds the components.
        plan: of the generation that is to come.
        rng: draws the images.
    """
    torch.set_num_threads(plan.threads)
    fit = rng.permutation(len(task.train))[:FIT_IMAGES]
    judge = rng.permutation(len(task.val))[:JUDGE_IMAGES]
    features = _features(body, task.train, fit, image_size, pool, plan)
    weight, bias = _fitted(features, torch.from_numpy(task.train.labels[fit]).to(plan.device), len(task.labels))
    predicted = F.linear(_features(body, task.val, judge, image_size, pool, plan), weight, bias).argmax(dim=1)
    accuracy = float((predicted.cpu().numpy() == task.val.labels[judge]).mean())
    return Probe({"weight": weight.cpu().numpy(), "bias": bias.cpu().numpy()}, accuracy, len(fit))


@torch.no_grad()
def _features(
    body: Sequence[Part], images: LabelledImages, rows: np.ndarray, image_size: int, pool: WeightPool, plan: TrainPlan
) -> Tensor:
    parts = [build_part(part.component.kind, pool.get(part.component.id), plan.network) for part in body]
    *layers, norm = (part.to(plan.device) for part in parts)
    pixels, none = images.pixels(image_size), np.random.default_rng(0)
    found = []
    for start in range(0, len(rows), CHUNK):
        levels = torch.from_numpy(np.array(pixels[rows[start : start + CHUNK]])).to(plan.device)
        values = scaled(augment(levels, DataHParams(image_size), none), plan.preprocessing)
        found.append(norm(run_modules(layers, values, ends_body=True)))
    return torch.cat(found)


def _fitted(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return weight and bias of multinomial logistic regression."""
    weight = torch.zeros(num_classes, features.shape[1], device=features.device, requires_grad=True)
    bias = torch.zeros(num_classes, device=features.device, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(F.linear(features, weight, bias), labels) + WEIGHT_DECAY / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
