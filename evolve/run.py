"""One task iteration: what stays fixed while its candidates come and go, and how it is taken up again."""

import hashlib
import itertools
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from filelock import FileLock, Timeout

from evolve.ancestry import Ancestry
from evolve.candidate import Candidate, Part, seed_candidate
from evolve.config import EvolveConfig
from evolve.depth_probe import PROBE_IMAGES, probe_depths, shortest_sufficient
from evolve.hparams import DataHParams, image_sizes, mutated
from evolve.journal import CandidateRecord, IterationEnd, IterationStart, Journal, iterations, trained_whole
from evolve.mutation import Nursery, changes_nothing, mutate, resized, shortened
from evolve.network import build_network
from evolve.pool import WeightPool
from evolve.population import Member, Population
from evolve.probe import Probe, fit_probe, transferability
from evolve.publish import Winner, publish
from evolve.recipes import Examples, earlier_examples, examples, expected_accuracies
from evolve.score import ScoreRule
from evolve.selection import Finalist, choose, contenders, expected_accuracy
from evolve.task import Task
from evolve.throughput import Throughput
from evolve.train import Trained, TrainPlan, accuracy, logits
from models.errors import InvalidConfig, TaskBusy
from models.files import folder_mode, make_folder
from models.names import ComponentId, RouteId, TaskName
from models.release import Release
from models.route import Route, accounted_parameters, component_usage
from models.store import Store

LEARNT_FROM = 32  # other tasks whose candidates tell what to expect: so the cost stays the same however many there are
RANKED_SEEDS = 12  # most that are looked at, a hundred images each: a small part of what one candidate trains on

# Trains a generation's candidates and gives them back in the same order, each as soon as it is done.
Executor = Callable[[Sequence[Candidate], Task, WeightPool, TrainPlan], Iterator[Trained]]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where an iteration stands after a candidate."""

    task: TaskName
    record: CandidateRecord
    generation: int
    place: int
    best_quality: float
    best_score: float
    is_replayed: bool  # read from the journal of an interrupted run instead of trained
    throughput: Throughput  # so far, without what was replayed
    seconds: float  # since the iteration began, see `TaskRun.seconds`
    release: int | None  # that the candidate was published in at once


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an iteration came to. Without a better candidate than before the task keeps its route."""

    release: Release
    route_id: RouteId
    route: Route
    is_new: bool
    trained_images: int
    probed_images: int  # training images seen once, by linear probes and by the ranking of parents
    candidates: int
    stopped: int  # of the candidates, before the end of their training
    learnt_from: int | None  # candidates of earlier iterations whose recipes ranked these; None: they were not ranked
    throughput: Throughput


@contextmanager
def alone(store: Store, task: TaskName) -> Iterator[None]:
    """Hold a task's evolution in a store for this process; the system frees it if the process dies.

    Raises:
        TaskBusy: another process on this machine evolves the task.
    """
    folder = store.folder / "work"
    mode = folder_mode(store.folder)
    make_folder(folder, mode)
    lock = FileLock(folder / f"{task}.lock", mode=mode & 0o666)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise TaskBusy(
            f"task {task!r} is being evolved in {store.folder} by another process: wait for it, or stop it with "
            "Ctrl-C; other tasks can be evolved meanwhile"
        ) from None
    try:
        yield
    finally:
        lock.release()


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
        self._probes: dict[tuple[ComponentId, ...], Probe] = {}
        self._probed_images = 0
        self._tried_first: set[str] = set()
        self._stopped = 0
        self._throughput = Throughput()
        self._began = self._last_done = time.perf_counter()
        self._replayed_seconds = 0.0
        self._live_score: float | None = None  # of what the task answers with, as far as it is comparable

    @classmethod
    def begin(
        cls, task: Task, store: Store, config: EvolveConfig, *, private: bool, from_release: int | None = None
    ) -> "TaskRun":
        """Start an iteration, or take up the last one if it was interrupted here and asked for the same.

        On another machine the weights of its candidates are missing; what it published is there.

        Raises:
            UnknownRelease: `from_release` is none of the store's.
        """
        numbers = iterations(store, task.name)
        last = Journal(store, task.name, numbers[-1]) if numbers else None
        found = last.start() if last and last.end() is None else None
        is_same_release = found is not None and from_release in {None, found.release}
        asked = (config, task.digest, private)
        if found and is_same_release and (found.config, found.data_digest, found.private) == asked:
            run = cls(task, store, found)
            if run._folder.exists() or run._journal.generation(0) is None:
                return run
        active = store.release()
        start = IterationStart(
            task=task.name,
            iteration=numbers[-1] + 1 if numbers else 1,
            release=active.number if from_release is None else store.release(from_release).number,
            data_digest=task.digest,
            labels=task.labels,
            device="cuda" if torch.cuda.is_available() else "cpu",
            private=private,
            config=config,
            replaces=task.name in active.tasks,
        )
        run = cls(task, store, start)
        run._journal.write_start(start)
        return run

    def start_population(self) -> Population:
        """Return the seeds shuffled, and the task's present route, judged anew, as the first to beat.

        Seeds are the root and the routes of other tasks that are not private and have as many blocks as a candidate
        may have, or are wanted by name, which are tried first. Tried before the rest: the root cut
        to where a probe is good enough, if asked for, and a present route for other labels, which can be no
        rival but is the nearest relative. If the configuration says so, only those that rank best are tried, beside
        those that are wanted: as many as the first generation has children.
        """
        wanted = self._wanted()
        shortest, longest = self.nursery.min_depth, self.nursery.max_depth
        others = [other for other in self._others if other.name in wanted or shortest <= other.depth <= longest]
        seeds = [self._root, *others]
        seeds = [seeds[at] for at in self._rng("seeds").permutation(len(seeds))]
        ahead = [self._jumped()] if self.config.depth_jump else []
        if self._own and self._own.labels != self.task.labels:
            ahead.insert(0, self._own)
        seeds = [*ahead, *seeds]
        self._tried_first = {*wanted, *(seed.name for seed in ahead)}
        first = sorted((seed for seed in seeds if seed.name in wanted), key=lambda seed: wanted.index(seed.name))
        rest = [seed for seed in seeds if seed.name not in wanted]
        if self.config.rank_parents:
            rest = self._best_ranked(rest)
        population = Population([*first, *rest])
        if self._own and self._own.labels == self.task.labels:
            own = self._judged(self._own)
            self._live_score = own.score
            population.consider(own)
        return population

    def generations(self) -> Iterator[int]:
        """Yield the numbers of the generations to run: as many as set or, in a budget of time, while one more fits.

        What an interrupted run did before counts as well, and what it journaled is never left out.
        """
        minutes = self.config.minutes
        if minutes is None:
            yield from range(self.config.generations)
            return
        took = 0.0
        for generation in itertools.count():
            started = self.seconds
            if started + took > 60 * minutes and generation and self._journal.generation(generation) is None:
                return
            yield generation
            took = self.seconds - started

    @property
    def seconds(self) -> float:
        """How long this iteration has run, in all processes that took it up."""
        return self._replayed_seconds + time.perf_counter() - self._began

    def sample_data(self, population: Population, generation: int) -> DataHParams:
        """Return the data hyperparameters of a generation: the best member's, moved; the start's at first."""
        sizes = self._image_sizes()
        first_size = self._first_image_size(sizes)  # checked also where the search goes on from another
        best = population.best
        if best is None:
            return self.config.first_data(first_size)
        rng = self._rng("data", generation)
        data = best.candidate.data
        if data.image_size not in sizes:  # the task's present route is from before the bounds
            data = replace(data, image_size=first_size)
        moved, _ = mutated(data, self.nursery.draws(best.candidate, rng).happens, rng, sizes=sizes)
        return moved

    def sample_children(self, population: Population, data: DataHParams, generation: int) -> list[Candidate]:
        """Return the generation's candidates, untrained."""
        children = []
        for place in range(self.config.children(generation)):
            rng = self._rng("child", generation, place)
            name = f"{self.task.name}/{self.start.iteration}/{generation}/{place}"
            if self.config.rank_children == 1:
                child = mutate(population.sample_parent(rng), data, self.nursery, name, rng)
            else:
                child = self._most_promising(population, data, name, rng)
            children.append(self._with_probed_head(child) if self.config.probe_head else child)
        return children

    def train(
        self,
        children: Sequence[Candidate],
        generation: int,
        execute: Executor,
        report: Callable[[Progress], None],
    ) -> list[Member]:
        """Train a generation and journal it; what the journal has already is not trained again.

        Args:
            children: as sampled.
            generation: its number.
            execute: trains them.
            report: told after each.

        Returns:
            All but those that halving stopped.
        """
        found = self._journal.generation(generation)
        plan = self.plan(generation)
        trained = execute(children, self.task, self.pool, plan)
        records: list[CandidateRecord] = []
        self._last_done = time.perf_counter()
        for place, record in enumerate(found if found is not None else map(self._record, trained)):
            records.append(record)
            self._parents[record.candidate.name] = record
            self._ancestry.add(record.candidate)
            if found is None:
                self._throughput = self._throughput.after(
                    images=record.images, wall_seconds=record.wall_seconds, phases=record.phases
                )
            else:
                self._replayed_seconds += record.wall_seconds
            release = self._publish_early(record) if self.config.anytime else None
            report(self._progress(record, generation, place, is_replayed=found is not None, release=release))
        if found is None:
            self._journal.write_generation(generation, records)
        whole = trained_whole(records)
        self._stopped += len(records) - len(whole)
        return [record.member for record in whole]

    def _progress(
        self, record: CandidateRecord, generation: int, place: int, *, is_replayed: bool, release: int | None
    ) -> Progress:
        known = self._parents.values()
        return Progress(
            task=self.task.name,
            record=record,
            generation=generation,
            place=place,
            best_quality=max(other.quality for other in known),
            best_score=max(other.score for other in known),
            is_replayed=is_replayed,
            throughput=self._throughput,
            seconds=self.seconds,
            release=release,
        )

    def _publish_early(self, record: CandidateRecord) -> int | None:
        """Publish a candidate that betters what is live, and return the release.

        The first one must beat the largest class by two standard errors of guessing that class. A route for
        other labels is not replaced early: its clients would get a worse one meanwhile.
        """
        if self._own and self._own.labels != self.task.labels:
            return None
        if self._live_score is None:
            self._live_score = self._published_before()
        if self._live_score is None:
            guessed = float(np.bincount(self.task.val.labels).max() / len(self.task.val))
            is_better = record.quality > guessed + 2 * (guessed * (1 - guessed) / len(self.task.val)) ** 0.5
        else:
            is_better = record.score > self._live_score
        if not is_better:
            return None
        images = sum(known.images for known in self._parents.values())
        release = self._publish(record.member, None, images)
        self._live_score = record.score
        return release.number

    def _published_before(self) -> float | None:
        """Return the score of what this iteration published before it was interrupted."""
        route_id = self._store.release().tasks.get(self.task.name)
        route = route_id and self._store.route(route_id, needed_by=f"task {self.task.name!r}")
        is_ours = route and route.lineage.candidate.startswith(f"{self.task.name}/{self.start.iteration}/")
        return route.quality.score if route and is_ours and route.quality else None

    def finish(self, population: Population) -> Outcome:
        """Publish the member that is chosen, unless it is the route that the task has already; then clean up."""
        images = sum(record.images for record in self._parents.values())
        best, expected = self._chosen(population)
        if self._own and best.candidate.name == self._own.name:
            route_id = self._seed_routes[self._own.name]
            outcome = self._outcome(self._store.release(), route_id, is_new=False, images=images)
        else:
            release = self._publish(best, expected, images)
            outcome = self._outcome(release, release.route_id(self.task.name), is_new=True, images=images)
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
        self._ancestry = Ancestry(
            self._ancestor,
            lambda name, route: seed_candidate(name, route, locked, first),
        )
        self._root = seed_candidate("root", self._root_route, locked, first)
        self._seed_routes: dict[str, RouteId] = {"root": release.root}
        self._others = []
        for task, route in routes.items():
            if not route.private:
                self._others.append(seed_candidate(self._seed_name(task, release), route, locked, first))
                self._ancestry.add_seed(self._others[-1], route)
        self._earlier = self._learnt(release, routes | ({self.task.name: own} if own else {}))
        self._own = seed_candidate(self._seed_name(self.task.name, release), own, locked, first) if own else None
        if self._own and own:
            self._ancestry.add_seed(self._own, own)
        self.nursery = self._made_nursery(self._root)
        self._root = self._started(self._root)
        self._ancestry.add(self._root)
        body = [component for component in self._root_route.components if component.kind != "head"]
        self._rule = ScoreRule(
            self.config.size_penalty,
            self.config.compute_penalty,
            root_parameters=sum(component.parameters for component in body),
            root_flops=self._root_route.flops,
        )

    def _learnt(self, release: Release, routes: Mapping[TaskName, Route]) -> Examples:
        """Return what the journal teaches of the task itself and of some others that are not private."""
        if self.config.rank_children == 1:
            return Examples()
        names = [name for name, route in sorted(routes.items()) if name != self.task.name and not route.private]
        names = [names[at] for at in self._rng("predictor").permutation(len(names))[:LEARNT_FROM]]
        learnt_from = {name: routes[name] for name in [*names, self.task.name] if name in routes}
        return earlier_examples(self._store, release, learnt_from, own=self.task.name)

    def _seed_name(self, task: TaskName, release: Release) -> str:
        name = f"{task}@{release.tasks[task]}"
        self._seed_routes[name] = release.tasks[task]
        return name

    def _ancestor(self, route_id: RouteId) -> Route | None:
        """Return a route that others descend from; what no release has any more may be gone."""
        if not self._store.has_object(route_id, "json"):
            return None
        return self._store.route(route_id, needed_by=f"task {self.task.name!r} as an ancestor")

    def _made_nursery(self, root: Candidate) -> Nursery:
        network = self._root_route.network
        return Nursery(
            root,
            network,
            self.task.labels,
            self.pool,
            self._ancestry,
            min_depth=self.config.min_depth,
            max_depth=network.depth if self.config.max_depth is None else self.config.max_depth,
            inserts_adapters=self.config.inserts_adapters,
            learns_rates=self.config.mutation == "learned",
            clone_rate=self.config.clone_rate,
        )

    def _started(self, root: Candidate) -> Candidate:
        """Return the root as the search starts from it: with the blocks that the configuration allows."""
        full = self._root_route.depth
        for name in ("depth", "min_depth", "max_depth"):
            value = getattr(self.config, name)
            if value is not None and value > full:
                raise InvalidConfig(f"{name} = {value}: this root has {full} blocks, use at most as many")
        bounds = [bound for bound in (self.config.depth, self.config.max_depth) if bound is not None]
        start = min([full, *bounds])
        return root if start == full else shortened(root, start, root.name)

    def _jumped(self) -> Candidate:
        """Return the root, cut where a linear probe says that a shorter route would do."""
        size = self._first_image_size(self._image_sizes())
        placed = resized(self.nursery.root, self.config.first_data(size), self.nursery)
        curve = probe_depths(placed, self.task, self.pool, self.plan(0))
        self._probed_images += min(len(self.task.train), PROBE_IMAGES)
        depth = min(max(shortest_sufficient(curve, len(self.task.val)), self.config.min_depth), self.nursery.max_depth)
        jumped = shortened(self.nursery.root, depth, f"root to block {depth}")
        self._seed_routes[jumped.name] = self._seed_routes["root"]
        self._ancestry.add(jumped)
        return jumped

    def _wanted(self) -> list[str]:
        """Return the names of the seeds that the configuration wants to be tried first."""
        name_of = {seed.name.partition("@")[0]: seed.name for seed in self._others}
        wanted = [name.strip() for name in self.config.parents.split(",") if name.strip()]
        for task in wanted:
            if task not in name_of:
                raise InvalidConfig(
                    f"parents = {self.config.parents!r}: {task!r} is no other task of release {self.start.release}, "
                    f"or private; known: {', '.join(sorted(name_of)) or 'none'}"
                )
        return [name_of[task] for task in wanted]

    def _best_ranked(self, seeds: Sequence[Candidate]) -> list[Candidate]:
        """Return those whose features suit the task best, best first, as many as the first generation has children.

        The root and the first of the others are looked at, so the cost stays the same however many tasks there are.
        """
        data = self.config.first_data(self._first_image_size(self._image_sizes()))
        score: dict[str, float] = {}
        looked_at = sorted(seeds, key=lambda seed: seed is not self._root)[:RANKED_SEEDS]
        for seed in looked_at:
            body = [part for part in resized(seed, data, self.nursery).parts if part.component.kind != "head"]
            score[seed.name], images = transferability(
                body, data.image_size, self.task, self.pool, self.plan(0), self._rng("probe"), self.config.rank_images
            )
            self._probed_images += images
        return sorted(looked_at, key=lambda seed: -score[seed.name])[: self.config.children(0)]

    def _most_promising(
        self, population: Population, data: DataHParams, name: str, rng: np.random.Generator
    ) -> Candidate:
        """Return, of many children drawn, the one of which the best score may be expected, the first of equals."""
        kept = {member.candidate.name: member for member in population.ranked}
        parents = self._comparable(population.propose_parents(rng, self.config.rank_children), population, kept)
        drawn = [mutate(parent, data, self.nursery, name, rng) for parent in parents]
        records = list(self._parents.values())
        own = examples(records, kept)
        chosen = drawn[0]
        if own or self._earlier:
            expected = expected_accuracies(drawn, kept, records, own=own, earlier=self._earlier)
            scores = [self._score_if(accuracy, child) for accuracy, child in zip(expected, drawn, strict=True)]
            chosen = drawn[scores.index(max(scores))]
        population.count_child(chosen.parent)
        return chosen

    def _comparable(
        self, parents: Sequence[Candidate], population: Population, kept: Mapping[str, Member]
    ) -> Sequence[Candidate]:
        """Return those parents whose children can be held against each other.

        What is to be tried first is tried. And as long as none of the seeds' children was trained, none can be held
        against those of the task's present route.
        """
        first = parents[0]
        if first.name in self._tried_first and not population.has_child(first.name):
            return [first] * len(parents)
        if any(record.candidate.parent not in kept for record in self._parents.values()):
            return parents
        return [parent for parent in parents if (parent.name in kept) == (first.name in kept)]

    def _score_if(self, accuracy: float, child: Candidate) -> float:
        """Return the score of an untrained child if it comes to an accuracy: by then what is its own counts whole."""
        own = sum(part.component.parameters for part in child.parts if part.is_own)
        shared = accounted_parameters([part.component for part in child.parts if not part.is_own], self._usage)
        flops = child.flops(self._root_route.network)
        return self._rule.score(accuracy, accounted_parameters=own + shared, flops=flops)

    def _with_probed_head(self, child: Candidate) -> Candidate:
        """Return the child with a linear probe's weights in place of a head of zeros."""
        *body, head = child.parts
        if head.component.id != self.nursery.new_head().component.id:
            return child
        # without the adapters that change nothing yet: so most children share their parent's probe
        probe = self._probe([part for part in body if not changes_nothing(part, self.pool)], child.data)
        return replace(child, parts=(*body, self.nursery.new_part("head", probe.head)))

    def _probe(self, body: Sequence[Part], data: DataHParams) -> Probe:
        key = tuple(part.component.id for part in body)  # the position embedding tells the image size
        if key not in self._probes:
            rng = self._rng("probe")
            self._probes[key] = fit_probe(body, data.image_size, self.task, self.pool, self.plan(0), rng)
            self._probed_images += self._probes[key].images
        return self._probes[key]

    def _image_sizes(self) -> tuple[int, ...]:
        network = self._root_route.network
        return self.config.allowed(image_sizes(patch_size=network.patch_size, largest=network.image_size))

    def _first_image_size(self, sizes: tuple[int, ...]) -> int:
        size = sizes[-1] if self.config.image_size is None else self.config.image_size
        if size not in sizes:
            raise InvalidConfig(
                f"image_size = {size}: this root takes one of {', '.join(map(str, sizes))}, within min_image_size and "
                "max_image_size"
            )
        return size

    def plan(self, generation: int) -> TrainPlan:
        """Return how a generation trains."""
        count = len(self.task.train)
        return TrainPlan(
            images=math.ceil(min(self.config.epochs * count, self.config.max_images) * self.config.growth**generation),
            batch_size=min(self.config.batch_size, count),
            validations=self.config.validations,
            seed=self._seed("train", generation),
            network=self._root_route.network,
            preprocessing=self._root_route.preprocessing,
            device=self.start.device,
            threads=self.config.threads,
            activation_bytes=self.config.activation_mib * 2**20,
            activation_dtype="bfloat16" if self.config.bf16_activations else "float32",
            halving=self.config.halving,
            halving_from=self.config.halving_from,
            bf16_products=self.config.bf16_products,
            average_weights=self.config.average_weights,
        )

    def _judged(self, candidate: Candidate) -> Member:
        network, _ = build_network(candidate.parts, self.pool, self._root_route.network)
        plan = self.plan(0)
        quality = accuracy(network.to(plan.device), self.task.val, candidate.data.image_size, plan)
        return Member(candidate, quality, self._score(candidate, quality))

    def _chosen(self, population: Population) -> tuple[Member, float]:
        """Return the member to publish and the accuracy that may be expected of it on new images."""
        margin = self.config.selection_margin
        members = contenders(population.ranked, len(self.task.val), margin)
        finalists = [self._finalist(member) for member in members]
        chosen = choose(finalists, margin)
        return chosen.member, expected_accuracy(finalists, chosen, margin, self._rng("selection"))

    def _finalist(self, member: Member) -> Finalist:
        candidate, plan = member.candidate, self.plan(0)
        network, _ = build_network(candidate.parts, self.pool, self._root_route.network)
        predicted = logits(network.to(plan.device), self.task.val.pixels(candidate.data.image_size), plan)
        size = accounted_parameters(candidate.components, self._usage) / self._rule.root_parameters
        cost = size + candidate.flops(self._root_route.network) / self._rule.root_flops
        return Finalist(member, predicted.argmax(axis=1) == self.task.val.labels, cost)

    def _score(self, candidate: Candidate, quality: float) -> float:
        size = accounted_parameters(candidate.components, self._usage)
        return self._rule.score(quality, accounted_parameters=size, flops=candidate.flops(self._root_route.network))

    def _record(self, trained: Trained) -> CandidateRecord:
        candidate = trained.candidate
        wall_seconds = time.perf_counter() - self._last_done
        self._last_done += wall_seconds
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
            phases=trained.phases,
            wall_seconds=wall_seconds,
        )

    def _publish(self, best: Member, expected: float | None, images: int) -> Release:
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
            replaces=self.start.replaces or self._live_score is not None,
            config=self.config.settings(),
            expected_accuracy=expected,
        )
        return publish(winner, self.task, self._store, self.pool, self.plan(0))

    def _lineage(self, candidate: Candidate) -> tuple[str, tuple[str, ...]]:
        """Return the seed that the candidate descends from, and all mutations since then."""
        mutations = candidate.mutations
        name = candidate.parent
        while name in self._parents:
            mutations = (*self._parents[name].candidate.mutations, *mutations)
            name = self._parents[name].candidate.parent
        return name, (*self._ancestry.named(name).mutations, *mutations)

    def _outcome(self, release: Release, route_id: RouteId, *, is_new: bool, images: int) -> Outcome:
        route = self._store.route(route_id, needed_by=f"task {self.task.name!r}")
        return Outcome(
            release=release,
            route_id=route_id,
            route=route,
            is_new=is_new,
            trained_images=images,
            probed_images=self._probed_images,
            candidates=len(self._parents),
            stopped=self._stopped,
            learnt_from=None if self.config.rank_children == 1 else len(self._earlier),
            throughput=self._throughput,
        )

    def _seed(self, purpose: str, *numbers: int) -> tuple[int, ...]:
        """Return what every draw derives from: seed, task, iteration, purpose, and where in the iteration."""
        named = (_number_of(self.task.name), self.start.iteration, _number_of(purpose))
        return (self.config.seed, *named, *numbers)

    def _rng(self, purpose: str, *numbers: int) -> np.random.Generator:
        return np.random.default_rng(self._seed(purpose, *numbers))


def _number_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
