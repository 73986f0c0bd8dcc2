"""One task iteration: what stays fixed while its candidates come and go, and how it is taken up again."""

import hashlib
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from evolve.candidate import Candidate, seed_candidate
from evolve.config import EvolveConfig
from evolve.hparams import DataHParams, image_sizes, mutated
from evolve.journal import CandidateRecord, IterationEnd, IterationStart, Journal, iterations
from evolve.mutation import Nursery, mutate
from evolve.network import build_network
from evolve.pool import WeightPool
from evolve.population import Member, Population
from evolve.publish import Winner, publish
from evolve.score import ScoreRule
from evolve.task import Task
from evolve.train import Trained, TrainPlan, accuracy
from models.errors import InvalidConfig
from models.names import RouteId, TaskName
from models.release import Release
from models.route import Route, accounted_parameters, component_usage
from models.store import Store

# Trains a generation's candidates and gives them back in the same order, each as soon as it is done.
Executor = Callable[[Sequence[Candidate], Task, WeightPool, TrainPlan], Iterator[Trained]]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where an iteration stands after a candidate."""

    record: CandidateRecord
    generation: int
    place: int
    best_quality: float
    is_replayed: bool  # read from the journal of an interrupted run instead of trained


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an iteration came to. Without a better candidate than before the task keeps its route."""

    release: Release
    route_id: RouteId
    route: Route
    is_new: bool
    trained_images: int


class TaskRun:
    """A task iteration over the routes of one release."""

    def __init__(self, task: Task, store: Store, start: IterationStart) -> None:
        self.task = task
        self.start = start
        self.config = start.config
        self._store = store
        self._journal = Journal(store, task.name, start.iteration)
        self._folder = store.folder / "work" / f"{task.name}-{start.iteration:04d}"
        self.pool = WeightPool(store, self._folder)
        self._load_routes(store.release(start.release))
        self._parents: dict[str, CandidateRecord] = {}

    @classmethod
    def begin(cls, task: Task, store: Store, config: EvolveConfig, *, private: bool) -> "TaskRun":
        """Start an iteration, or take up the last one if it was interrupted and asked for the same."""
        numbers = iterations(store, task.name)
        last = Journal(store, task.name, numbers[-1]) if numbers else None
        found = last.start() if last and last.end() is None else None
        if found and (found.config, found.data_digest, found.private) == (config, task.digest, private):
            return cls(task, store, found)
        start = IterationStart(
            task=task.name,
            iteration=numbers[-1] + 1 if numbers else 1,
            release=store.current().release,
            data_digest=task.digest,
            labels=task.labels,
            device="cuda" if torch.cuda.is_available() else "cpu",
            private=private,
            config=config,
        )
        run = cls(task, store, start)
        run._journal.write_start(start)
        return run

    def start_population(self) -> Population:
        """Return the seeds shuffled, and the task's present route, judged anew, as the first to beat.

        Seeds are the root and the routes of other tasks that are not private. A present route for other
        labels cannot be judged and is one more seed.
        """
        seeds = [self._root, *self._others]
        if self._own and self._own.labels != self.task.labels:
            seeds.append(self._own)
        population = Population([seeds[at] for at in self._rng("seeds").permutation(len(seeds))])
        if self._own and self._own.labels == self.task.labels:
            population.consider(self._judged(self._own))
        return population

    def sample_data(self, population: Population, generation: int) -> DataHParams:
        """Return the data hyperparameters of a generation: the best member's, moved; the start's at first."""
        network = self._root_route.network
        sizes = image_sizes(patch_size=network.patch_size, largest=network.image_size)
        best = population.best
        if best is None:
            return DataHParams(self._first_image_size(sizes))
        rng = self._rng("data", generation)
        data, _ = mutated(best.candidate.data, best.candidate.hparams.mutation_rate, rng, sizes=sizes)
        return data

    def sample_children(self, population: Population, data: DataHParams, generation: int) -> list[Candidate]:
        """Return the generation's candidates, untrained."""
        children = []
        for place in range(self.config.children_per_generation):
            rng = self._rng("child", generation, place)
            parent = population.sample_parent(rng)
            name = f"{self.task.name}/{self.start.iteration}/{generation}/{place}"
            children.append(mutate(parent, data, self._nursery, name, rng))
        return children

    def train(
        self, children: Sequence[Candidate], generation: int, execute: Executor, report: Callable[[Progress], None]
    ) -> list[Member]:
        """Train a generation and journal it; what the journal has already is not trained again."""
        found = self._journal.generation(generation)
        trained = execute(children, self.task, self.pool, self._plan(generation))
        records: list[CandidateRecord] = []
        for place, record in enumerate(found if found is not None else map(self._record, trained)):
            records.append(record)
            self._parents[record.candidate.name] = record
            best = max(known.quality for known in self._parents.values())
            report(Progress(record, generation, place, best, is_replayed=found is not None))
        if found is None:
            self._journal.write_generation(generation, records)
        return [Member(record.candidate, record.quality, record.score) for record in records]

    def finish(self, best: Member) -> Outcome:
        """Publish the best member, unless it is the route that the task has already; then clean up."""
        images = sum(record.images for record in self._parents.values())
        if self._own and best.candidate.name == self._own.name:
            outcome = self._outcome(self._store.release(), is_new=False, images=images)
        else:
            release = self._publish(best, images)
            outcome = self._outcome(release, is_new=True, images=images)
        self._journal.write_end(IterationEnd(best.candidate.name, outcome.route_id, outcome.release.number))
        shutil.rmtree(self._folder, ignore_errors=True)
        return outcome

    def _load_routes(self, release: Release) -> None:
        routes = self._store.routes(release)
        own = routes.pop(self.task.name, None)
        self._root_route = self._store.root()
        root_ids = self._root_route.component_ids
        self._usage = component_usage(routes.values())
        locked = frozenset(self._usage) | root_ids
        first = self.config.first_hparams()
        self._root = seed_candidate("root", self._root_route, locked, first)
        self._seed_routes: dict[str, RouteId] = {"root": release.root}
        self._others = []
        for task, route in routes.items():
            if not route.private:
                self._others.append(seed_candidate(self._seed_name(task, release), route, locked, first))
        self._own = seed_candidate(self._seed_name(self.task.name, release), own, locked, first) if own else None
        self._nursery = Nursery(self._root, self._root_route.network, self.task.labels, self.pool)
        body = [component for component in self._root_route.components if component.kind != "head"]
        self._rule = ScoreRule(
            self.config.size_penalty,
            self.config.compute_penalty,
            root_parameters=sum(component.parameters for component in body),
            root_flops=self._root_route.flops,
        )

    def _seed_name(self, task: TaskName, release: Release) -> str:
        name = f"{task}@{release.tasks[task]}"
        self._seed_routes[name] = release.tasks[task]
        return name

    def _first_image_size(self, sizes: tuple[int, ...]) -> int:
        size = self.config.image_size or sizes[-1]
        if size not in sizes:
            raise InvalidConfig(f"image_size = {size}: this root takes one of {', '.join(map(str, sizes))}")
        return size

    def _plan(self, generation: int) -> TrainPlan:
        count = len(self.task.train)
        return TrainPlan(
            images=min(math.ceil(self.config.epochs * count), self.config.max_images),
            batch_size=min(self.config.batch_size, count),
            validations=self.config.validations,
            seed=self._seed("train", generation),
            network=self._root_route.network,
            preprocessing=self._root_route.preprocessing,
            device=self.start.device,
            threads=self.config.threads,
        )

    def _judged(self, candidate: Candidate) -> Member:
        network, _ = build_network(candidate.parts, self.pool, self._root_route.network)
        plan = self._plan(0)
        quality = accuracy(network.to(plan.device), self.task.val, candidate.data.image_size, plan)
        return Member(candidate, quality, self._score(candidate, quality))

    def _score(self, candidate: Candidate, quality: float) -> float:
        size = accounted_parameters(candidate.components, self._usage)
        return self._rule.score(quality, accounted_parameters=size, flops=candidate.flops(self._root_route.network))

    def _record(self, trained: Trained) -> CandidateRecord:
        candidate = trained.candidate
        return CandidateRecord(
            candidate=candidate,
            quality=trained.quality,
            score=self._score(candidate, trained.quality),
            accounted_parameters=accounted_parameters(candidate.components, self._usage),
            flops=candidate.flops(self._root_route.network),
            curve=trained.curve,
            images=trained.images,
            seconds=trained.seconds,
            device=self.start.device,
        )

    def _publish(self, best: Member, images: int) -> Release:
        seed, mutations = self._lineage(best.candidate)
        winner = Winner(
            candidate=best.candidate,
            quality=best.quality,
            score=best.score,
            iteration=self.start.iteration,
            trained_images=images,
            private=self.start.private,
            parent=self._seed_routes[seed],
            mutations=mutations,
            replaces=self._own is not None,
        )
        return publish(winner, self.task, self._store, self.pool, self._plan(0))

    def _lineage(self, candidate: Candidate) -> tuple[str, tuple[str, ...]]:
        """Return the seed that the candidate descends from, and all mutations since then."""
        mutations = candidate.mutations
        name = candidate.parent
        while name in self._parents:
            mutations = (*self._parents[name].candidate.mutations, *mutations)
            name = self._parents[name].candidate.parent
        return name, mutations

    def _outcome(self, release: Release, *, is_new: bool, images: int) -> Outcome:
        route_id = release.route_id(self.task.name)
        route = self._store.route(route_id, needed_by=f"task {self.task.name!r}")
        return Outcome(release, route_id, route, is_new, images)

    def _seed(self, purpose: str, *numbers: int) -> tuple[int, ...]:
        """Return what every draw derives from: seed, task, iteration, purpose, and where in the iteration."""
        named = (_number_of(self.task.name), self.start.iteration, _number_of(purpose))
        return (self.config.seed, *named, *numbers)

    def _rng(self, purpose: str, *numbers: int) -> np.random.Generator:
        return np.random.default_rng(self._seed(purpose, *numbers))


def _number_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
