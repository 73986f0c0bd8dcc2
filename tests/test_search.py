"""The rules of the search: steps along ordered lists, mutation, parents, and the score."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evolve.ancestry import Ancestry
from evolve.candidate import Candidate, seed_candidate
from evolve.hparams import ORDERED_VALUES, DataHParams, OptimiserHParams, image_sizes, mutated
from evolve.mutation import Nursery, mutate
from evolve.pool import WeightPool
from evolve.population import Member, Population
from evolve.publish import create_store
from evolve.score import ScoreRule
from models.root import load_root
from models.store import Store

ALWAYS, NEVER = OptimiserHParams(mutation_rate=0.30), OptimiserHParams(mutation_rate=0.02)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = load_root("random:embed_dim=16,depth=3,num_heads=2,patch_size=8,image_size=24")
    return create_store(tmp_path_factory.mktemp("search") / "store", root)


@pytest.fixture
def nursery(store: Store, tmp_path: Path) -> Nursery:
    route = store.root()
    root = seed_candidate("root", route, route.component_ids, OptimiserHParams())
    ancestry = Ancestry(lambda _: None, lambda name, route: root)
    ancestry.add(root)
    return Nursery(root, route.network, ("a", "b"), WeightPool(store, tmp_path), ancestry, min_depth=0, max_depth=3)


def child_of(parent: Candidate, nursery: Nursery, seed: int, *, image_size: int = 24) -> Candidate:
    return mutate(parent, DataHParams(image_size), nursery, f"child {seed}", np.random.default_rng(seed))


def test_a_hyperparameter_moves_one_step_and_stays_in_its_list() -> None:
    rng = np.random.default_rng(0)
    hparams = OptimiserHParams()
    for _ in range(200):
        moved, changes = mutated(hparams, lambda _: bool(rng.random() < 0.5), rng)
        for name, values in ORDERED_VALUES.items():
            if hasattr(hparams, name):
                steps = abs(values.index(getattr(moved, name)) - values.index(getattr(hparams, name)))
                assert steps <= 1
                assert (steps == 1) == any(change.startswith(f"{name}=") for change in changes)
        hparams = moved


def test_image_sizes_are_multiples_of_the_patch_up_to_the_roots() -> None:
    assert image_sizes(patch_size=16, largest=64) == (16, 32, 48, 64)


def test_a_child_of_the_root_owns_its_clones_adapters_norm_and_head_alone(nursery: Nursery) -> None:
    for seed in range(30):
        child = child_of(replace(nursery.root, hparams=ALWAYS), nursery, seed)
        kinds = [part.component.kind for part in child.parts]
        assert kinds[:2] == ["patch_embed", "pos_embed"]
        assert kinds[-2:] == ["norm", "head"]
        clones = sum(change.startswith("clone") for change in child.mutations)
        adapters = sum(change.startswith("adapter before") for change in child.mutations)
        assert sum(part.is_own for part in child.parts) == 2 + clones + adapters
        assert kinds.count("adapter") == adapters
        depth = [change for change in child.mutations if change.startswith("depth")]
        assert kinds.count("block") == (int(depth[0].partition("=")[2]) if depth else 3)


def test_a_grandchild_goes_on_training_what_its_parent_owns(nursery: Nursery) -> None:
    child = child_of(replace(nursery.root, hparams=ALWAYS), nursery, 3)
    grandchild = child_of(replace(child, hparams=NEVER), nursery, 4)
    assert grandchild.parts == child.parts
    assert any(part.is_own for part in child.parts[:-2])


def test_another_image_size_takes_the_roots_positions_resampled(nursery: Nursery) -> None:
    child = child_of(replace(nursery.root, hparams=NEVER), nursery, 0, image_size=16)
    assert nursery.pool.get(child.parts[1].component.id)["pos_embed"].shape == (1, 5, 16)
    back = child_of(child, nursery, 0, image_size=24)
    assert back.parts[1].component == nursery.root.parts[1].component


def test_a_head_for_other_labels_is_not_inherited(nursery: Nursery) -> None:
    child = child_of(nursery.root, nursery, 0)
    other = child_of(child, replace(nursery, labels=("a", "b", "c")), 1)
    assert nursery.pool.get(other.parts[-1].component.id)["weight"].shape == (3, 16)


def seeds(nursery: Nursery, *names: str) -> list[Candidate]:
    return [replace(nursery.root, name=name) for name in names]


def test_the_best_member_is_the_first_parent(nursery: Nursery) -> None:
    population = Population(seeds(nursery, "root"))
    for name, score in (("low", 0.4), ("high", 0.8), ("middle", 0.6)):
        assert population.consider(Member(replace(nursery.root, name=name, parent="root"), score, score))
    rng = np.random.default_rng(0)
    assert population.sample_parent(rng).name == "high"  # no children yet: probability 1
    chosen = [population.sample_parent(rng).name for _ in range(200)]
    assert set(chosen) == {"low", "middle", "high", "root"}


def test_seeds_take_turns(nursery: Nursery) -> None:
    population = Population(seeds(nursery, "one", "two", "three"))
    rng = np.random.default_rng(0)
    assert [population.sample_parent(rng).name for _ in range(3)] == ["one", "two", "three"]


def test_a_child_below_its_parent_is_dropped_and_the_newest_wins_ties(nursery: Nursery) -> None:
    population = Population(seeds(nursery, "root"))
    parent = Member(replace(nursery.root, name="parent", parent="root"), 0.5, 0.5)
    assert population.consider(parent)
    assert not population.consider(Member(replace(nursery.root, name="worse", parent="parent"), 0.49, 0.49))
    assert population.consider(Member(replace(nursery.root, name="equal", parent="parent"), 0.5, 0.5))
    assert population.best is not None
    assert population.best.candidate.name == "equal"


def test_the_score_counts_size_and_compute() -> None:
    rule = ScoreRule(0.9, 0.5, root_parameters=100, root_flops=10)
    assert rule.score(0.8, accounted_parameters=200, flops=5) == pytest.approx(0.8 * 0.9**2 * 0.5**0.5)
    off = ScoreRule(1, 1, root_parameters=100, root_flops=10)
    assert off.score(0.8, accounted_parameters=200, flops=5) == 0.8
