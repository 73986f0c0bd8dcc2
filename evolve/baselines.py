"""What a user would do instead of evolving, in the same harness: tuned baselines of the same root.

Fine-tune everything, freeze the bottom k blocks, adapters of width d everywhere, train norm and head alone
(the families of the paper's notebook). Each is a candidate whose trainable parts are fixed, trained as
evolution trains its own. All that a family trains counts: finding its learning rate and image size as well.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from evolve.ancestry import Ancestry
from evolve.candidate import Candidate, Part, seed_candidate
from evolve.hparams import DataHParams, OptimiserHParams
from evolve.mutation import Nursery, new_adapter, resized
from evolve.network import build_network
from evolve.pool import WeightPool
from evolve.run import Executor
from evolve.task import Task
from evolve.train import Trained, TrainPlan, accuracy
from models.errors import InvalidConfig
from models.route import Route
from models.store import Store

DEFAULT_FAMILIES = ("finetune", "freeze:6", "adapters:32", "probe")
LEARNING_RATES = (0.005, 0.02, 0.05)  # .02 was good for all trained, .05 is for few weights; see `Harness.run`
TUNING_SHARE = 0.5  # of a family's images, spent evenly on the grid of learning rates and image sizes
VALIDATIONS = 4
ACTIVATION_BYTES = 4 * 2**30  # on disk, while a family trains


@dataclass(frozen=True, slots=True)
class Family:
    """Which parts a baseline trains. `frozen_blocks` counts from the bottom."""

    name: str
    frozen_blocks: int
    trains_embedding: bool
    adapter_dim: int | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """One training run of a family."""

    learning_rate: float
    image_size: int
    images: int
    validation_accuracy: float


@dataclass(frozen=True, slots=True)
class BaselineResult:
    """The best run of a family, by validation accuracy, and all that it took."""

    family: str
    image_size: int
    learning_rate: float
    validation_accuracy: float
    test_accuracy: float | None
    parameters: int
    own_parameters: int  # trained for this task; the rest is the root's
    flops: int
    trained_images: int
    seconds: float
    trials: tuple[Trial, ...]


def parse_family(text: str, depth: int) -> Family:
    """Return the family of `finetune`, `freeze:K`, `adapters:D` or `probe`; InvalidConfig for all else."""
    kind, _, number = text.partition(":")
    value = int(number) if number.isdecimal() else None
    if text == "finetune":
        return Family(text, 0, trains_embedding=True)
    if text == "probe":
        return Family(text, depth, trains_embedding=False)
    if kind == "freeze" and value is not None and value <= depth:
        return Family(text, value, trains_embedding=False)
    if kind == "adapters" and value:
        return Family(text, depth, trains_embedding=False, adapter_dim=value)
    raise InvalidConfig(
        f"there is no family {text!r}: use finetune, freeze:K with K up to {depth} blocks, adapters:D, or probe"
    )


def start_augmentation(route: Route) -> DataHParams:
    """Return the augmentation that the route's evolution started with, so that baselines get no less."""
    settings = route.lineage.config
    return DataHParams(
        route.image_size,
        crop_area_min=float(settings.get("crop_area_min", 1.0)),
        crop_aspect_min=float(settings.get("crop_aspect_min", 1.0)),
        flip=bool(settings.get("flip", False)),
    )


class Harness:
    """Trains baselines of a store's root on one task; nothing of them is published or kept."""

    def __init__(
        self,
        store: Store,
        task: Task,
        *,
        image_sizes: tuple[int, ...],
        images: int,
        execute: Executor,
        augmentation: DataHParams | None = None,
        seed: int = 0,
        threads: int = 1,
    ) -> None:
        """Prepare to train baselines.

        Args:
            store: has the root.
            task: what is learnt.
            image_sizes: pixels; the grid that is tuned over.
            images: that each family may train on in all.
            execute: trains candidates side by side or one after another.
            augmentation: of all training images, at whatever size; None for none.
            seed: of batches, augmentation and adapters.
            threads: of each run.

        Raises:
            InvalidConfig: no images.
        """
        if images < 1:
            raise InvalidConfig(f"{task.name!r} has no route that says how many images to train on: give --images")
        self._store = store
        self._task = task
        self._images = images
        self._sizes = image_sizes
        self._execute = execute
        self._augmentation = augmentation
        self._threads = threads
        self._seed = seed
        self._route = store.root()

    def run(self, family: Family) -> BaselineResult:
        """Tune and train a family.

        Half of its images are spent evenly on all learning rates and image sizes, the other half on the best
        setting, from the start; the best of all runs by validation accuracy is the result.
        """
        folder = self._store.folder / "work" / f"{self._task.name}-baselines" / family.name.replace(":", "-")
        pool = WeightPool(self._store, folder)
        images = self._images * TUNING_SHARE / (len(self._sizes) * len(LEARNING_RATES))
        runs = [run for size in self._sizes for run in self._trained(family, pool, LEARNING_RATES, size, images)]
        found = max(runs, key=lambda run: run.quality).candidate
        left = self._images - sum(run.images for run in runs)
        runs += self._trained(family, pool, [found.hparams.learning_rate], found.data.image_size, left)
        best = max(reversed(runs), key=lambda run: run.quality)
        result = self._result(family, pool, best, runs)
        shutil.rmtree(folder)
        return result

    def _trained(
        self, family: Family, pool: WeightPool, rates: Sequence[float], image_size: int, images: float
    ) -> list[Trained]:
        """Train a family with some learning rates, as a generation of candidates is trained."""
        candidates = [self._candidate(family, pool, rate, image_size) for rate in rates]
        return list(self._execute(candidates, self._task, pool, self._plan(int(images))))

    def _nursery(self, pool: WeightPool) -> Nursery:
        root = seed_candidate("root", self._route, self._route.component_ids, OptimiserHParams())
        ancestry = Ancestry(lambda _: None, lambda name, route: root)
        ancestry.add(root)
        return Nursery(root, self._route.network, self._task.labels, pool, ancestry, 0, self._route.depth)

    def _candidate(self, family: Family, pool: WeightPool, rate: float, image_size: int) -> Candidate:
        nursery = self._nursery(pool)
        plain = DataHParams(image_size)
        data = plain if self._augmentation is None else replace(self._augmentation, image_size=image_size)
        root = resized(nursery.root, data, nursery)
        patch_embed, pos_embed, *blocks, norm = (part for part in root.parts if part.component.kind != "head")
        rng = np.random.default_rng(self._seed)
        parts = [replace(part, is_own=family.trains_embedding) for part in (patch_embed, pos_embed)]
        for at, block in enumerate(blocks):
            if family.adapter_dim is not None:
                weights = new_adapter(self._route.network.embed_dim, family.adapter_dim, rng)
                parts.append(nursery.new_part("adapter", weights))
            parts.append(Part(block.component, is_own=at >= family.frozen_blocks))
        parts += [Part(norm.component, is_own=True), nursery.new_head()]
        hparams = OptimiserHParams(learning_rate=rate)
        name = f"{family.name} {rate:g} {image_size}"
        return Candidate(name, "root", tuple(parts), self._task.labels, hparams, root.data)

    def _plan(self, images: int) -> TrainPlan:
        batch_size = min(64, len(self._task.train))
        return TrainPlan(
            images=max(batch_size, images // batch_size * batch_size),  # never more than is allowed, but one batch
            batch_size=batch_size,
            validations=VALIDATIONS,
            seed=(self._seed, 0),
            network=self._route.network,
            preprocessing=self._route.preprocessing,
            device="cuda" if torch.cuda.is_available() else "cpu",
            threads=self._threads,
            activation_bytes=ACTIVATION_BYTES,
            activation_dtype="float32",
            halving=False,
        )

    def _result(self, family: Family, pool: WeightPool, best: Trained, runs: list[Trained]) -> BaselineResult:
        candidate = best.candidate
        network, _ = build_network(candidate.parts, pool, self._route.network)
        plan = self._plan(1)
        size = candidate.data.image_size
        test = self._task.test
        return BaselineResult(
            family=family.name,
            image_size=size,
            learning_rate=candidate.hparams.learning_rate,
            validation_accuracy=best.quality,
            test_accuracy=accuracy(network.to(plan.device), test, size, plan) if test is not None else None,
            parameters=sum(part.component.parameters for part in candidate.parts),
            own_parameters=sum(part.component.parameters for part in candidate.parts if part.is_own),
            flops=candidate.flops(self._route.network),
            trained_images=sum(run.images for run in runs),
            seconds=sum(run.seconds for run in runs),
            trials=tuple(_trial(run) for run in runs),
        )


def _trial(run: Trained) -> Trial:
    candidate = run.candidate
    return Trial(candidate.hparams.learning_rate, candidate.data.image_size, run.images, run.quality)
