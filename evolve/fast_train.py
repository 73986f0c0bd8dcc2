"""Training of one candidate from activations that its generation shares: the fast path.

It computes what the plain path (`evolve/train.py`) computes, up to float rounding, but starts where the
candidate's own parts begin, runs the last block for the class token alone, and stores weights once, at the end.
On a CPU the training step of a block is written out; on a GPU that of the whole network is launched as one, and
what it reads is in the device's memory if that has room. It can stop at a validation and be taken up from there,
as successive halving does.
"""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
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
from evolve.device_memory import INPUTS_SHARE, Kept, free_graphs, give_memory_back, to_device
from evolve.fast_block import FastBlock
from evolve.graphed_step import GraphedStep
from evolve.hparams import DataHParams
from evolve.lanes import Turns
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
from models.vit import Block
from models.weights import Weights

# Of the frozen modules last used, that a process keeps for the next candidate: on a CPU all of ViT-Ti's
FROZEN_BYTES = {"cpu": 2**27, "cuda": 2**31}

_frozen: Kept[nn.Module] = Kept()
_inputs: Kept[Tensor] = Kept()


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
        self._pixels_key = task.digest, images, data.image_size
        self._batches = list(batches(len(task.train), plan)) if self.is_sequence else []
        self._on_device: Tensor | None = None  # all rows, or all pixels

    def load(self, pool: WeightPool) -> "Inputs":
        """Build the frozen components that are still to be run, and have a GPU take in what it has room for."""
        self._modules = [_module(part, pool, self._plan) for part in self._missing]
        if self._plan.device != "cpu":
            self._on_device = self._taken_in()
        return self

    def at(self, rows: np.ndarray | slice) -> Tensor:
        """Return the values of some rows; of a sequence, the rows of one batch."""
        return self.through(self.source(rows))

    @torch.no_grad()
    def source(self, rows: np.ndarray | slice) -> Tensor:
        """Return what is kept of some rows, or else their scaled pixels."""
        if not self._kept:
            return scaled(self._levels(rows), self._plan.preprocessing)
        if self._on_device is None:
            return self._kept.read(rows).to(self._plan.device)
        return self._on_device[self._index(rows)].to(torch.float32)

    @torch.no_grad()
    def through(self, values: Tensor) -> Tensor:
        """Return what comes out of the components that nothing is kept behind."""
        with bf16_products(self._plan):
            return run_modules(self._modules, values, ends_body=self._ends_body)

    def _levels(self, rows: np.ndarray | slice) -> Tensor:
        step = 1
        if self.is_sequence:
            assert isinstance(rows, slice), "a sequence is read batch by batch"
            step = rows.start // self._plan.batch_size + 1
            rows = self._batches[step - 1]
        if self._on_device is None:
            levels = torch.from_numpy(np.array(self._pixels[rows])).to(self._plan.device)
        else:
            levels = self._on_device[self._index(rows)]
        # what is not a sequence has nothing random, so its generator draws nothing
        data = self._data if self.is_sequence else DataHParams(self._data.image_size)
        return augment(levels, data, np.random.default_rng((*self._plan.seed, step)))

    def _index(self, rows: np.ndarray | slice) -> Tensor | slice:
        return rows if isinstance(rows, slice) else to_device(rows, self._plan.device)

    def _taken_in(self) -> Tensor | None:
        """Return all rows, or all pixels, in the device's memory; None if they would take too much of it."""
        room = int(INPUTS_SHARE * torch.cuda.get_device_properties(self._plan.device).total_memory)
        kept, pixels, device = self._kept, self._pixels, self._plan.device
        num_bytes = kept.num_bytes if kept else pixels.nbytes
        if num_bytes > room:
            return None

        def taken_in() -> Tensor:
            return (kept.stored() if kept else torch.from_numpy(np.array(pixels))).to(device)

        return _inputs.get((kept or self._pixels_key, device), taken_in, num_bytes, most_bytes=room)


def forget_inputs() -> None:
    """Give up the inputs that a GPU keeps."""
    if len(_inputs):
        _inputs.clear()
        give_memory_back()


def bf16_products(plan: TrainPlan) -> torch.autocast:
    """Return the context in which matrices are multiplied in bfloat16, if the plan says so."""
    return torch.autocast(torch.device(plan.device).type, torch.bfloat16, enabled=plan.bf16_products)


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
) -> Turns[float]:
    """Compute shared activations for some pieces of rows, a turn each; its result is how many seconds it took."""
    watch = Stopwatch(Phases())
    with watch.phase("frozen"):
        torch.set_num_threads(plan.threads)
        inputs = Inputs(shared.prefix, shared.images, shared.source, data, task, plan).load(pool)
    for piece in rows:
        with watch.phase("frozen"):
            shared.activations.write(unfinished, piece.start, inputs.at(piece))
        yield
    return watch.phases.frozen


def train(
    candidate: Candidate,
    sharing: Sharing,
    task: Task,
    pool: WeightPool,
    plan: TrainPlan,
    *,
    checkpoint: Checkpoint | None = None,
    validations: int,
) -> Turns[Checkpoint]:
    """Train a candidate until it has been validated `validations` times, from the start or from a checkpoint.

    A turn for each step. What is computed is what `evolve.train.train_candidate` computes, and on a CPU the result of
    going on from a checkpoint is bit by bit that of not having stopped.
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
    graphed = GraphedStep(lambda values, labels: network.learn(inputs.through(values), labels))
    with closing(network), closing(graphed):
        for step, batch in islice(enumerate(batches(len(task.train), plan), start=1), done, last):
            with watch.phase("data"):
                rows = slice((step - 1) * plan.batch_size, step * plan.batch_size) if inputs.is_sequence else batch
                values = inputs.source(rows) if network.is_on_gpu else inputs.at(rows)
                labels = to_device(task.train.labels[batch], plan.device)
                network.set_learning_rate(step)
            if network.is_on_gpu:
                with watch.phase("backward"):
                    graphed(values, labels)
            else:
                with watch.phase("forward"):
                    loss = network.loss(values, labels)
                with watch.phase("backward"):
                    network.step(loss)
            network.average(step)
            if step in checks:
                with watch.phase("backward"):
                    network.wait()
                with network.validated():
                    with watch.phase("validation"):
                        curve.append(_accuracy(network, val_inputs, task.val.labels))
                    with watch.phase("saving"):
                        if curve[-1] == max(curve):
                            best = network.own_parts()
            yield
        present, averages = network.own_parts(), network.averages()
    seconds = time.perf_counter() - started + (checkpoint.seconds if checkpoint else 0.0)
    return Checkpoint(last, present, averages, best, tuple(curve), seconds, watch.phases)


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
        self._plan = plan
        self.is_on_gpu = plan.device != "cpu"
        if checkpoint:
            for (_, module), state in zip(self._own, checkpoint.present, strict=True):
                load_weights(module, state.weights)
        self._optimiser = make_optimiser(candidate.hparams, self._own, pool, is_captured=self.is_on_gpu)
        if checkpoint:
            for (_, module), state in zip(self._own, checkpoint.present, strict=True):
                for name, parameter in module.named_parameters():
                    buffer = torch.from_numpy(state.momentum[name].copy()).to(parameter.device)
                    self._optimiser.state[parameter]["momentum_buffer"] = buffer
        averages = checkpoint.averages if checkpoint else ()
        self._average = MovingAverage([module for _, module in self._own], averages) if plan.average_weights else None

    def logits(self, values: Tensor) -> Tensor:
        with bf16_products(self._plan):
            return self._head(self._norm(run_modules(self._layers, values, ends_body=True))).float()  # type: ignore[no-any-return]

    def learn(self, values: Tensor, labels: Tensor) -> None:
        """Take a whole step on a batch."""
        self.step(self.loss(values, labels))

    def loss(self, values: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(values), labels)

    def step(self, loss: Tensor) -> None:
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(
            [weight for _, module in self._own for weight in module.parameters()], MAX_GRADIENT_NORM
        )
        self._optimiser.step()

    def set_learning_rate(self, step: int) -> None:
        set_learning_rate(self._optimiser, self._hparams, step, self._plan)

    def average(self, step: int) -> None:
        if self._average:
            self._average.add(step)

    def close(self) -> None:
        """Forget the last gradients, which on a GPU are in a graph's memory, and let that go."""
        self._optimiser.zero_grad(set_to_none=True)
        if self.is_on_gpu:
            free_graphs()

    def wait(self) -> None:
        """Let the device do what was launched: the time is that of training, not of what comes next."""
        if self.is_on_gpu:
            torch.cuda.current_stream().synchronize()

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
        network.logits(inputs.at(slice(start, start + CHUNK))).argmax(dim=1) for start in range(0, len(labels), CHUNK)
    ]
    return float((torch.cat(predicted).cpu().numpy() == labels).mean())


def _stored(part: Part, trained: OwnPart, pool: WeightPool) -> Part:
    record = ComponentRecord(part.component.kind, pool.put(trained.weights), part.component.parameters)
    return Part(record, is_own=True, momentum=pool.put(trained.momentum))


def _module(part: Part, pool: WeightPool, plan: TrainPlan) -> nn.Module:
    """Return the module of a part; a frozen one from the process's memory, if it is still there."""
    if part.is_own:
        return _built(part, pool, plan)
    key = part.component.id, plan.network, plan.device, plan.bf16_products
    device = torch.device(plan.device).type
    layouts = 2 if device == "cpu" else 1  # at most: a fast block keeps matrices in both
    num_bytes, most_bytes = 4 * layouts * part.component.parameters, FROZEN_BYTES[device]
    return _frozen.get(key, lambda: _built(part, pool, plan), num_bytes, most_bytes=most_bytes)


def _built(part: Part, pool: WeightPool, plan: TrainPlan) -> nn.Module:
    module = build_part(part.component.kind, pool.get(part.component.id), plan.network).to(plan.device)
    if isinstance(module, Block) and plan.device == "cpu":
        return FastBlock(module, bf16_products=plan.bf16_products)
    if plan.device != "cpu" and plan.bf16_products and not part.is_own:
        for layer in module.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                layer.to(torch.bfloat16)  # as autocast would in every step
    return module
