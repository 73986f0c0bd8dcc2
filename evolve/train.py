"""Training of one candidate: only what is its own moves, and the best weights of the run are kept.

This is the plain path, the reference that the fast one is held against: one candidate after another,
every forward pass from the pixels on, nothing shared.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evolve.augment import augment
from evolve.candidate import Candidate, Part
from evolve.device_memory import to_device
from evolve.hparams import OptimiserHParams
from evolve.moving_average import MovingAverage
from evolve.network import as_weights, build_network, weights_of
from evolve.pool import WeightPool
from evolve.task import LabelledImages, Task
from evolve.throughput import Phases
from models.component import ComponentRecord
from models.network import NetworkShape
from models.preprocess import Preprocessing, scale_constants
from models.vit import ViT

MAX_GRADIENT_NORM = 1.0  # reference notebook
VALIDATION_BATCH = 256  # large enough to be efficient; results do not depend on it beyond float rounding


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """What all candidates of a generation share."""

    images: int  # that each candidate trains on, repetitions counted
    batch_size: int
    validations: int  # evenly spread over the run, the last one at its end
    seed: tuple[int, ...]  # batches and augmentation follow from it
    network: NetworkShape
    preprocessing: Preprocessing
    device: str
    threads: int
    activation_bytes: int  # most that a generation's shared activations may take on disk
    activation_dtype: str  # that they are kept in
    halving: bool  # whether the worse half is stopped at each validation
    halving_from: int = 1  # the first validation at which it is
    bf16_products: bool = False  # whether the fast path multiplies matrices in bfloat16
    average_weights: bool = False  # whether their moving average is what is validated and kept

    @property
    def steps(self) -> int:
        return max(1, math.ceil(self.images / self.batch_size))


@dataclass(frozen=True, slots=True)
class Trained:
    """A candidate after its training, with the quality of the weights that were kept."""

    candidate: Candidate  # its own parts carry the ids of their trained weights
    quality: float  # validation accuracy, 0 to 1
    curve: tuple[float, ...]  # validation accuracy at each validation
    images: int
    seconds: float
    phases: Phases = Phases()


def train_candidate(candidate: Candidate, task: Task, pool: WeightPool, plan: TrainPlan) -> Trained:
    """Train a candidate and return it with its trained weights stored in `pool`.

    SGD with momentum on cross-entropy, gradient norm clipped at 1, no dropout; of the validated weights the
    best are kept, the later on ties (µ2Net, section 3.2; reference notebook). With `plan.average_weights` their
    moving average stands for the weights wherever they are validated.
    """
    started = time.perf_counter()
    torch.set_num_threads(plan.threads)
    network, modules = build_network(candidate.parts, pool, plan.network)
    network.to(plan.device)
    own = [(part, module) for part, module in zip(candidate.parts, modules, strict=True) if part.is_own]
    optimiser = make_optimiser(candidate.hparams, own, pool)
    average = MovingAverage([module for _, module in own]) if plan.average_weights else None
    checkpoints = validation_steps(plan)
    curve: list[float] = []
    best: list[Part] = []
    pixels = task.train.pixels(candidate.data.image_size)
    for step, batch in enumerate(batches(len(pixels), plan), start=1):
        rng = np.random.default_rng((*plan.seed, step))
        levels = augment(torch.from_numpy(pixels[batch]).to(plan.device), candidate.data, rng)
        labels = torch.from_numpy(task.train.labels[batch]).to(plan.device)
        set_learning_rate(optimiser, candidate.hparams, step, plan)
        _train_step(network, scaled(levels, plan.preprocessing), labels, optimiser)
        if average:
            average.add(step)
        if step in checkpoints:
            with average.in_place() if average else nullcontext():
                curve.append(accuracy(network, task.val, candidate.data.image_size, plan))
                if curve[-1] == max(curve):
                    best = _stored(candidate, modules, optimiser, pool)
    trained = replace(candidate, parts=tuple(best))
    seconds = time.perf_counter() - started
    return Trained(trained, max(curve), tuple(curve), plan.steps * plan.batch_size, seconds)


def batches(count: int, plan: TrainPlan) -> Iterator[np.ndarray]:
    """Yield `plan.steps` batches of indices: a new shuffle every epoch, carried on across epochs."""
    rng = np.random.default_rng(plan.seed)
    queue = np.empty(0, np.int64)
    for _ in range(plan.steps):
        while len(queue) < plan.batch_size:
            queue = np.concatenate([queue, rng.permutation(count)])
        yield queue[: plan.batch_size]
        queue = queue[plan.batch_size :]


def scaled(levels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Scale levels of 0 to 255, [batch, 3, size, size], as the route's first subgraph does."""
    factor, offset = (to_device(values, str(levels.device)) for values in scale_constants(preprocessing))
    return levels * factor.view(3, 1, 1) + offset.view(3, 1, 1)


@torch.no_grad()
def logits(network: ViT, pixels: np.ndarray, plan: TrainPlan) -> np.ndarray:
    """Return the logits [n, classes] of uint8 pixels [n, size, size, 3]."""
    chunks = []
    for start in range(0, len(pixels), VALIDATION_BATCH):
        chunk = torch.from_numpy(np.array(pixels[start : start + VALIDATION_BATCH])).to(plan.device)
        levels = chunk.permute(0, 3, 1, 2).to(torch.float32)
        chunks.append(network(scaled(levels, plan.preprocessing)).cpu().numpy())
    return np.concatenate(chunks)


def accuracy(network: ViT, images: LabelledImages, image_size: int, plan: TrainPlan) -> float:
    """Return the share of images whose largest logit is their label's."""
    predicted = logits(network, images.pixels(image_size), plan).argmax(axis=1)
    return float((predicted == images.labels).mean())


def learning_rate(hparams: OptimiserHParams, step: int, plan: TrainPlan) -> float:
    """Return the learning rate of a step, counted from 1."""
    warmup = hparams.warmup_ratio * plan.steps
    if step <= warmup:
        return hparams.learning_rate * step / warmup
    if hparams.schedule == "constant":
        return hparams.learning_rate / 2
    progress = (step - warmup) / max(plan.steps - warmup, 1)
    if hparams.schedule == "restarts":
        progress = progress * plan.validations
        progress -= math.ceil(progress) - 1  # each cycle ends at 0, with a validation
    return hparams.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimiser: torch.optim.SGD, hparams: OptimiserHParams, step: int, plan: TrainPlan) -> None:
    rate = learning_rate(hparams, step, plan)
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _train_step(network: ViT, images: Tensor, labels: Tensor, optimiser: torch.optim.SGD) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss = F.cross_entropy(network(images), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    trainable = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    nn.utils.clip_grad_norm_(trainable, MAX_GRADIENT_NORM)
    optimiser.step()


def make_optimiser(
    hparams: OptimiserHParams, own: Sequence[tuple[Part, nn.Module]], pool: WeightPool, *, is_captured: bool = False
) -> torch.optim.SGD:
    """Return SGD over a candidate's own parts; momentum that came along with a part is put back.

    With `is_captured` its step on a GPU can be part of a CUDA graph: the learning rate is in the device's memory, and
    so are all buffers from the start.
    """
    parameters = [parameter for _, module in own for parameter in module.parameters()]
    optimiser = torch.optim.SGD(
        parameters,
        lr=torch.tensor(hparams.learning_rate, device=parameters[0].device) if is_captured else hparams.learning_rate,
        momentum=hparams.momentum,
        nesterov=hparams.nesterov,
        fused=is_captured or None,
    )
    for part, module in own:
        buffers = pool.get(part.momentum) if part.momentum else {}
        for name, parameter in module.named_parameters():
            if name in buffers:
                optimiser.state[parameter]["momentum_buffer"] = torch.from_numpy(buffers[name]).to(parameter.device)
            elif is_captured:
                optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)  # as after no step
    return optimiser


def _stored(candidate: Candidate, modules: list[nn.Module], optimiser: torch.optim.SGD, pool: WeightPool) -> list[Part]:
    """Return the candidate's parts with the present weights and momentum of its own ones taken into the pool."""
    parts = []
    for part, module in zip(candidate.parts, modules, strict=True):
        if part.is_own:
            record = ComponentRecord(part.component.kind, pool.put(weights_of(module)), part.component.parameters)
            buffers = {
                name: optimiser.state[parameter]["momentum_buffer"] for name, parameter in module.named_parameters()
            }
            part = Part(record, is_own=True, momentum=pool.put(as_weights(buffers)))
        parts.append(part)
    return parts


def validation_steps(plan: TrainPlan) -> frozenset[int]:
    return frozenset(math.ceil(plan.steps * part / plan.validations) for part in range(1, plan.validations + 1))
