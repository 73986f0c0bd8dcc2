"""Training of one candidate from activations that its generation shares: the fast path.

It computes what the plain path (`evolve/train.py`) computes, up to float rounding, but starts where the
candidate's own parts begin, has the training step of a block written out, runs the last block for the class
token alone, and stores weights once, at the end. It can stop at a validation and be taken up from there, as
successive halving does.
"""

import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evolve.activations import CHUNK, run_modules
from evolve.augment import augment
from evolve.candidate import Candidate, Part
from evolve.fast_block import FastBlock
from evolve.hparams import DataHParams
from evolve.moving_average import MovingAverage
from evolve.network import as_weights, build_part, load_weights, weights_of
from evolve.pool import WeightPool
from evolve.prefix import ImageSet, Prefix, Shared, Sharing, frozen_prefix
from evolve.task import Task
from evolve.throughput import Phases, Stopwatch
from evolve.train import (
    MAX_GRADIENT_NORM,
    Trained,
    TrainPlan,
    batches,
    make_optimiser,
    scaled,
    set_learning_rate,
    validation_steps,
)
from models.component import ComponentRecord
from models.names import ComponentId
from models.network import NetworkShape
from models.vit import Block
from models.weights import Weights

FROZEN_BYTES = 2**27  # of the frozen modules last used, that a process keeps for the next candidate: all of ViT-Ti's

_frozen: OrderedDict[tuple[ComponentId, NetworkShape, str, bool], tuple[nn.Module, int]] = OrderedDict()


@dataclass(frozen=True, slots=True)
class OwnPart:
    """Weights of one of a candidate's own parts, with the optimiser's momentum for them."""

    weights: Weights
    momentum: Weights


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A training that stopped after a validation: all that it takes to go on, or to keep its best."""

    step: int
    present: tuple[OwnPart, ...]  # one for each own part, in order
    averages: tuple[Weights, ...]  # likewise, where the plan has weights averaged
    best: tuple[OwnPart, ...]  # at the best validation so far, the later on ties
    curve: tuple[float, ...]
    seconds: float
    phases: Phases

    @property
    def quality(self) -> float:
        return max(self.curve)


class Inputs:
    """What comes out of a prefix for the images of a set: read where it is kept, else computed.

    Rows are images, or places in the sequence of all batches if those are augmented.
    """

    def __init__(
        self, prefix: Prefix, images: ImageSet, kept: Shared | None, data: DataHParams, task: Task, plan: TrainPlan
    ) -> None:
        self.is_sequence = images == "train" and not data.is_plain
        self._kept = kept.activations if kept else None
        self._missing = prefix.parts[len(kept.prefix.parts) if kept else 0 :]
        self._ends_body = prefix.ends_body
        self._modules: list[nn.Module] = []
        self._data = data
        self._plan = plan
        self._pixels = (task.val if images == "val" else task.train).pixels(data.image_size)
        self._batches = list(batches(len(task.train), plan)) if self.is_sequence else []

    def load(self, pool: WeightPool) -> "Inputs":
        """Build the frozen components that are still to be run."""
        self._modules = [_module(part, pool, self._plan) for part in self._missing]
        return self

    @torch.no_grad()
    def at(self, rows: np.ndarray | slice) -> Tensor:
        """Return the values of some rows; of a sequence, the rows of one batch."""
        if self._kept:
            values = self._kept.read(rows).to(self._plan.device)
        else:
            values = scaled(self._levels(rows), self._plan.preprocessing)
        return run_modules(self._modules, values, ends_body=self._ends_body)

    def _levels(self, rows: np.ndarray | slice) -> Tensor:
        step = 1
        if self.is_sequence:
            assert isinstance(rows, slice), "a sequence is read batch by batch"
            step = rows.start // self._plan.batch_size + 1
            rows = self._batches[step - 1]
        levels = torch.from_numpy(np.array(self._pixels[rows])).to(self._plan.device)
        # what is not a sequence has nothing random, so its generator draws nothing
        data = self._data if self.is_sequence else DataHParams(self._data.image_size)
        return augment(levels, data, np.random.default_rng((*self._plan.seed, step)))


def pieces(shared: Shared, data: DataHParams, plan: TrainPlan) -> list[slice]:
    """Return the pieces in which rows are computed, fixed, so that rounding does not depend on who computes what."""
    is_sequence = shared.images == "train" and not data.is_plain
    size = plan.batch_size if is_sequence else CHUNK
    rows = shared.activations.rows
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def fill(
    shared: Shared,
    rows: Sequence[slice],
    unfinished: Path,
    data: DataHParams,
    task: Task,
    pool: WeightPool,
    plan: TrainPlan,
) -> float:
    """Compute shared activations for some pieces of rows, and return how many seconds it took."""
    started = time.perf_counter()
    torch.set_num_threads(plan.threads)
    inputs = Inputs(shared.prefix, shared.images, shared.source, data, task, plan).load(pool)
    for piece in rows:
        shared.activations.write(unfinished, piece.start, inputs.at(piece))
    return time.perf_counter() - started


def train(
    candidate: Candidate,
    sharing: Sharing,
    task: Task,
    pool: WeightPool,
    plan: TrainPlan,
    *,
    checkpoint: Checkpoint | None = None,
    validations: int,
) -> Checkpoint:
    """Train a candidate until it has been validated `validations` times, from the start or from a checkpoint.

    What is computed is what `evolve.train.train_candidate` computes, and the result of going on from a
    checkpoint is bit by bit that of not having stopped.
    """
    started = time.perf_counter()
    torch.set_num_threads(plan.threads)
    watch = Stopwatch(checkpoint.phases if checkpoint else Phases())
    with watch.phase("data"):
        prefix = frozen_prefix(candidate)
        inputs = Inputs(prefix, "train", sharing.longest(candidate, "train"), candidate.data, task, plan).load(pool)
        val_inputs = Inputs(prefix, "val", sharing.longest(candidate, "val"), candidate.data, task, plan).load(pool)
        network = _Trainable(candidate, len(prefix.parts), pool, plan, checkpoint)
    curve = list(checkpoint.curve) if checkpoint else []
    best = checkpoint.best if checkpoint else ()
    done = checkpoint.step if checkpoint else 0
    checks = sorted(validation_steps(plan))
    last = checks[min(validations, len(checks)) - 1]
    for step, batch in islice(enumerate(batches(len(task.train), plan), start=1), done, last):
        with watch.phase("data"):
            rows = slice((step - 1) * plan.batch_size, step * plan.batch_size) if inputs.is_sequence else batch
            values = inputs.at(rows)
            labels = torch.from_numpy(task.train.labels[batch]).to(plan.device)
        with watch.phase("forward"):
            loss = F.cross_entropy(network.logits(values), labels)
        with watch.phase("backward"):
            network.step(loss, step, plan)
        if step in checks:
            with network.validated():
                with watch.phase("validation"):
                    curve.append(_accuracy(network, val_inputs, task.val.labels))
                with watch.phase("saving"):
                    if curve[-1] == max(curve):
                        best = network.own_parts()
    seconds = time.perf_counter() - started + (checkpoint.seconds if checkpoint else 0.0)
    return Checkpoint(last, network.own_parts(), network.averages(), best, tuple(curve), seconds, watch.phases)


def finished(candidate: Candidate, checkpoint: Checkpoint, pool: WeightPool, plan: TrainPlan) -> Trained:
    """Return the candidate with the best weights of its training, stored in `pool`."""
    started = time.perf_counter()
    own = iter(checkpoint.best)
    parts = [_stored(part, next(own), pool) if part.is_own else part for part in candidate.parts]
    saving = time.perf_counter() - started
    return Trained(
        replace(candidate, parts=tuple(parts)),
        quality=checkpoint.quality,
        curve=checkpoint.curve,
        images=checkpoint.step * plan.batch_size,
        seconds=checkpoint.seconds + saving,
        phases=checkpoint.phases + Phases(saving=saving),
    )


class _Trainable:
    """The components from a candidate's first own one on, with their optimiser."""

    def __init__(
        self, candidate: Candidate, first: int, pool: WeightPool, plan: TrainPlan, checkpoint: Checkpoint | None
    ) -> None:
        parts = candidate.parts[first:]
        modules = [_module(part, pool, plan).requires_grad_(part.is_own) for part in parts]
        *self._layers, self._norm, self._head = modules
        self._own = [(part, module) for part, module in zip(parts, modules, strict=True) if part.is_own]
        self._hparams = candidate.hparams
        if checkpoint:
            for (_, module), state in zip(self._own, checkpoint.present, strict=True):
                load_weights(module, state.weights)
        self._rounds = torch.autocast(torch.device(plan.device).type, torch.bfloat16, enabled=plan.bf16_products)
        self._optimiser = make_optimiser(candidate.hparams, self._own, pool)
        if checkpoint:
            for (_, module), state in zip(self._own, checkpoint.present, strict=True):
                for name, parameter in module.named_parameters():
                    buffer = torch.from_numpy(state.momentum[name].copy()).to(parameter.device)
                    self._optimiser.state[parameter]["momentum_buffer"] = buffer
        averages = checkpoint.averages if checkpoint else ()
        self._average = MovingAverage([module for _, module in self._own], averages) if plan.average_weights else None

    def logits(self, values: Tensor) -> Tensor:
        with self._rounds:
            return self._head(self._norm(run_modules(self._layers, values, ends_body=True))).float()  # type: ignore[no-any-return]

    def step(self, loss: Tensor, step: int, plan: TrainPlan) -> None:
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(
            [weight for _, module in self._own for weight in module.parameters()], MAX_GRADIENT_NORM
        )
        set_learning_rate(self._optimiser, self._hparams, step, plan)
        self._optimiser.step()
        if self._average:
            self._average.add(step)

    def validated(self) -> AbstractContextManager[None]:
        """Let the network have the weights that are to be validated meanwhile."""
        return self._average.in_place() if self._average else nullcontext()

    def averages(self) -> tuple[Weights, ...]:
        return self._average.weights() if self._average else ()

    def own_parts(self) -> tuple[OwnPart, ...]:
        return tuple(OwnPart(weights_of(module), as_weights(self._momentum(module))) for _, module in self._own)

    def _momentum(self, module: nn.Module) -> dict[str, Tensor]:
        state = self._optimiser.state
        return {name: state[parameter]["momentum_buffer"] for name, parameter in module.named_parameters()}


@torch.no_grad()
def _accuracy(network: _Trainable, inputs: Inputs, labels: np.ndarray) -> float:
    predicted = [
        network.logits(inputs.at(slice(start, start + CHUNK))).argmax(dim=1).cpu().numpy()
        for start in range(0, len(labels), CHUNK)
    ]
    return float((np.concatenate(predicted) == labels).mean())


def _stored(part: Part, trained: OwnPart, pool: WeightPool) -> Part:
    record = ComponentRecord(part.component.kind, pool.put(trained.weights), part.component.parameters)
    return Part(record, is_own=True, momentum=pool.put(trained.momentum))


def _module(part: Part, pool: WeightPool, plan: TrainPlan) -> nn.Module:
    """Return the module of a part; a frozen one from the process's cache, if it is still there."""
    key = part.component.id, plan.network, plan.device, plan.bf16_products
    if not part.is_own and key in _frozen:
        _frozen.move_to_end(key)
        return _frozen[key][0]
    module = build_part(part.component.kind, pool.get(part.component.id), plan.network).to(plan.device)
    if isinstance(module, Block) and plan.device == "cpu" and not plan.bf16_products:
        module = FastBlock(module)
    if not part.is_own:
        layouts = 2 if isinstance(module, FastBlock) else 1  # at most
        _frozen[key] = module, 4 * layouts * part.component.parameters
        while sum(num_bytes for _, num_bytes in _frozen.values()) > FROZEN_BYTES:
            _frozen.popitem(last=False)
    return module
