"""The method's rules: where weights come from, what may happen to a child, who is chosen in the end."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evolve.candidate import Candidate, Part, seed_candidate
from evolve.config import EvolveConfig, load_config, preset_names
from evolve.hparams import MUTATION_RATES, DataHParams, OptimiserHParams
from evolve.journal import Journal, iterations
from evolve.loop import evolve_task, one_after_another
from evolve.mutation import Nursery, mutate
from evolve.pool import WeightPool
from evolve.population import Member
from evolve.rates import Draws, MutationRates
from evolve.run import TaskRun
from evolve.selection import Finalist, choose, contenders, expected_accuracy
from evolve.task import Task
from evolve.train import Trained, TrainPlan
from models.errors import InvalidConfig, UnknownRelease
from models.names import TaskName
from models.store import Store
from tests.support.tiny import COLOURS, TINY_CONFIG, draw_image_folder, load_toy_task


@pytest.fixture
def nursery(opened_store: Store, toy_task: Task) -> Nursery:
    run = TaskRun.begin(toy_task, opened_store, TINY_CONFIG, private=False)
    return run.nursery


def child_of(parent: Candidate, nursery: Nursery, *, image_size: int, name: str, seed: int = 0) -> Candidate:
    child = mutate(parent, DataHParams(image_size), nursery, name, np.random.default_rng(seed))
    nursery.ancestry.add(child)
    return child


def own_pos_embed(candidate: Candidate) -> Candidate:
    """Return the candidate as if it had trained a position embedding of its own."""
    record = replace(candidate.parts[1].component, id="trained")  # type: ignore[arg-type]  # any id will do
    return replace(candidate, parts=(candidate.parts[0], Part(record, is_own=True), *candidate.parts[2:]))


def test_a_position_embedding_comes_from_the_nearest_ancestor_of_that_size(nursery: Nursery) -> None:
    first = own_pos_embed(child_of(nursery.root, nursery, image_size=8, name="first"))
    nursery.ancestry.add(first)
    second = child_of(first, nursery, image_size=16, name="second")
    assert second.parts[1].component == nursery.root.parts[1].component
    third = child_of(second, nursery, image_size=8, name="third")
    assert third.parts[1].component.id == "trained"


def test_an_ancestor_may_be_a_published_route(opened_store: Store, toy_task: Task) -> None:
    at_8 = evolve_task(toy_task, opened_store, replace(TINY_CONFIG, image_size=8, mutation_rate=0.3, seed=2))
    run = TaskRun.begin(toy_task, opened_store, TINY_CONFIG, private=False)
    own = run._own
    assert own is not None
    sizes = [ancestor.data.image_size for ancestor in run._ancestry.of(own)]
    assert sizes[0] == at_8.route.image_size
    assert sizes[-1] == 16  # the root's, where all lineages end


def test_rates_that_are_learnt_travel_and_move_along_the_list() -> None:
    rng = np.random.default_rng(0)
    rates = MutationRates(0.3, {"depth": 0.1}, is_learned=True)
    seen = set()
    for _ in range(200):
        draws = Draws(rates, rng)
        draws.happens("depth")
        seen.add(draws.own["depth"])
    assert seen == {0.08, 0.1, 0.12}
    assert seen <= set(MUTATION_RATES)


def test_learnt_rates_are_published_and_inherited(opened_store: Store, toy_task: Task) -> None:
    config = replace(TINY_CONFIG, mutation="learned", mutation_rate=0.3, epochs=0.3)
    route = evolve_task(toy_task, opened_store, config).route
    learnt = {name: rate for name, rate in route.hparams.items() if name.startswith("rate of ")}
    assert learnt
    seed = seed_candidate("seed", route, frozenset(), OptimiserHParams())
    assert {f"rate of {action}": rate for action, rate in seed.rates.items()} == learnt


def test_cloning_may_have_a_rate_of_its_own(nursery: Nursery) -> None:
    always = replace(nursery, clone_rate=1.0).draws(nursery.root, np.random.default_rng(0))
    assert all(always.happens(f"clone block {at}") for at in range(100))
    never = replace(nursery, clone_rate=0.0).draws(nursery.root, np.random.default_rng(0))
    assert not any(never.happens(f"clone block {at}") for at in range(100))
    assert {never.happens("depth") for _ in range(100)} == {False, True}  # all else follows µ


def test_learnt_rates_leave_no_room_for_a_fixed_one() -> None:
    with pytest.raises(InvalidConfig, match=r"clone_rate = 0.5: use a number from 0 to 1, with mutation = "):
        EvolveConfig(mutation="learned", clone_rate=0.5)


def test_later_generations_may_train_longer(opened_store: Store, toy_task: Task) -> None:
    config = replace(TINY_CONFIG, generations=3, children_per_generation=1, batch_size=8, max_images=16, growth=2.0)
    evolve_task(toy_task, opened_store, config)
    journal = Journal(opened_store, toy_task.name, 1)
    assert [records[0].images for at in range(3) if (records := journal.generation(at))] == [16, 32, 64]


def test_the_configuration_is_stored_with_the_route(opened_store: Store, toy_task: Task) -> None:
    config = replace(TINY_CONFIG, epochs=0.5)
    route = evolve_task(toy_task, opened_store, config).route
    assert EvolveConfig(**route.lineage.config) == config  # type: ignore[arg-type]


def test_depth_stays_within_its_bounds(opened_store: Store, toy_task: Task) -> None:
    config = replace(TINY_CONFIG, children_per_generation=8, epochs=0.2, mutation_rate=0.3)
    config = replace(config, depth=0, max_depth=1, inserts_adapters=False)
    evolve_task(toy_task, opened_store, config)
    records = Journal(opened_store, toy_task.name, 1).generation(0)
    assert records is not None
    assert all(record.candidate.depth <= 1 for record in records)


def test_a_longer_route_is_no_parent_unless_it_is_named(opened_store: Store, toy_task: Task) -> None:
    assert opened_store.routes(opened_store.release())[TaskName("shapes_a")].depth == 2
    config = replace(TINY_CONFIG, generations=1, children_per_generation=6, epochs=0.2)
    for parents, expected in (("", {"root"}), ("shapes_a", {"root", "shapes_a"})):
        evolve_task(toy_task, opened_store, replace(config, max_depth=1, parents=parents), from_release=2)
        iteration = iterations(opened_store, toy_task.name)[-1]
        records = Journal(opened_store, toy_task.name, iteration).generation(0)
        assert records is not None
        assert {record.candidate.parent.partition("@")[0] for record in records} - {toy_task.name} == expected


def test_a_depth_beyond_the_root_is_refused(opened_store: Store, toy_task: Task) -> None:
    with pytest.raises(InvalidConfig, match="depth = 3: this root has 2 blocks, use at most as many"):
        evolve_task(toy_task, opened_store, replace(TINY_CONFIG, depth=3))


def test_a_start_may_jump_to_a_shorter_route(opened_store: Store, toy_task: Task) -> None:
    outcome = evolve_task(toy_task, opened_store, replace(TINY_CONFIG, depth_jump=True))
    records = Journal(opened_store, toy_task.name, 1).generation(0)
    assert records is not None
    assert records[0].candidate.parent.startswith("root to block ")
    assert outcome.route.quality is not None


def test_evolving_from_a_release_takes_its_routes(opened_store: Store, toy_task: Task) -> None:
    evolve_task(toy_task, opened_store, replace(TINY_CONFIG, children_per_generation=6, epochs=0.2), from_release=1)
    records = Journal(opened_store, toy_task.name, 1).generation(0)
    assert records is not None
    parents = {record.candidate.parent.partition("@")[0] for record in records}
    assert parents == {"root", "shapes_a"}  # shapes_b came with release 2
    assert {"shapes_a", "shapes_b", "shapes_c"} == set(opened_store.release().tasks)


def test_an_unknown_release_is_refused(opened_store: Store, toy_task: Task) -> None:
    with pytest.raises(UnknownRelease, match="has no release 9; it has: 0, 1, 2"):
        evolve_task(toy_task, opened_store, TINY_CONFIG, from_release=9)


def test_changed_labels_make_a_new_head_and_leave_the_old_release_alone(
    opened_store: Store, toy_folder: Path, tmp_path: Path
) -> None:
    before = opened_store.release()
    folder = draw_image_folder(tmp_path / "images", seed=4)
    (folder / "blue").rename(folder / "violet")
    task = load_toy_task("shapes_a", folder, tmp_path / "pixels")
    parents: list[str] = []

    def watching(candidates: Sequence[Candidate], task: Task, pool: WeightPool, plan: TrainPlan) -> Iterator[Trained]:
        parents.extend(candidate.parent for candidate in candidates)
        yield from one_after_another(candidates, task, pool, plan)

    outcome = evolve_task(task, opened_store, replace(TINY_CONFIG, epochs=0.3), execute=watching)
    assert parents[0].startswith("shapes_a@")  # the nearest relative is tried first
    assert outcome.is_new  # there is nothing that it could be compared with
    assert outcome.route.labels == ("green", "red", "violet")
    old = opened_store.routes(before)[TaskName("shapes_a")]
    assert old.labels == tuple(sorted(COLOURS))
    assert old.components[-1].id != outcome.route.components[-1].id


# choosing


def finalist(name: str, is_right: Sequence[int] | np.ndarray, *, cost: float) -> Finalist:
    right = np.array(is_right, dtype=bool)
    quality = float(right.mean())
    candidate = Candidate(name, "", (), (), OptimiserHParams(), DataHParams(16))
    return Finalist(Member(candidate, quality, quality), right, cost)


def test_a_cheaper_candidate_is_chosen_within_the_margin_only() -> None:
    best = finalist("best", [1] * 9 + [0], cost=1.0)
    near = finalist("near", [1] * 8 + [0, 0], cost=0.5)
    far = finalist("far", [0] * 10, cost=0.1)
    assert choose([best, near, far], 0) is best
    assert choose([best, near, far], 1.1) is near  # one image of ten is 1.05 standard errors


def test_the_best_of_many_by_luck_is_expected_to_be_as_good_as_the_others() -> None:
    rng = np.random.default_rng(0)
    drawn = [finalist(str(index), rng.random(100) < 0.8, cost=1.0) for index in range(20)]
    ranked = sorted(drawn, key=lambda f: -f.member.score)
    expected = expected_accuracy(ranked, ranked[0], 0, rng)
    assert ranked[0].member.quality > 0.85
    assert expected == pytest.approx(0.8, abs=0.04)
    drawn_again = [expected_accuracy(ranked[:1], ranked[0], 0, np.random.default_rng(seed)) for seed in range(6)]
    assert max(drawn_again) <= ranked[0].member.quality  # noise of the drawing never makes it better than measured
    alone = expected_accuracy(ranked[:1], ranked[0], 0, rng)
    assert alone == pytest.approx(ranked[0].member.quality, abs=0.01)  # nothing chosen, nothing flattered


def test_those_without_a_chance_are_not_judged() -> None:
    members = [finalist(str(right), [1] * right + [0] * (100 - right), cost=1.0).member for right in (90, 85, 40)]
    assert contenders(members, 100, 0) == tuple(members[:2])


# configuration


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_a_configuration_and_says_where_it_is_from(name: str) -> None:
    assert load_config(None, preset=name) != EvolveConfig()


def test_a_file_stands_above_a_preset_and_a_setting_above_both(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("batch_size = 32\nseed = 1\n")
    config = load_config(tmp_path / "mine.toml", ["seed=2", "mutation=learned"], preset="ti-cmaterdb")
    assert (config.depth, config.batch_size, config.seed, config.mutation) == (0, 32, 2, "learned")


@pytest.mark.parametrize("assignment", ["parents=flowers,dry-birds", 'parents="flowers,dry-birds"'])
def test_a_text_may_go_without_quotes(assignment: str) -> None:
    assert load_config(None, [assignment]).parents == "flowers,dry-birds"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("generation=1", "--set generation=1: unknown key generation (did you mean generations or "),
        ("depth=1.5", "--set depth=1.5: depth = 1.5: a whole number is needed"),
        ("flip=1", "--set flip=1: flip = 1: true or false is needed"),
        ("flip=yes", "--set flip=yes: flip = 'yes': true or false is needed"),
        ("minutes=abc", "--set minutes=abc: minutes = 'abc': a number is needed"),
        ("seed=", "--set seed=: seed = '': a whole number is needed"),
        ("a b=1", "--set a b=1 is not TOML: "),
        ("quite=wrong", "--set quite=wrong: unknown key quite; known keys: "),
        ("mutation=2", "mutation = 2: use rate or learned"),
        ("mutation=wild", "mutation = wild: use rate or learned"),
        ("depth=-1", "depth = -1: use a whole number between min_depth and max_depth"),
        ("max_image_size=-1", "max_image_size = -1: use a whole number from min_image_size = 0"),
        ("crop_area_min=0.3", "crop_area_min = 0.3: use one of 0.05, 0.2"),
    ],
)
def test_a_mistake_in_a_setting_is_refused(assignment: str, message: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        load_config(None, [assignment])
    assert message in str(caught.value)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="there is no preset 'ti'; presets: b-decathlon, few-images, l-suites, "):
        load_config(None, preset="ti")
    with pytest.raises(InvalidConfig, match=r"'few-image' \(did you mean few-images\?\); presets: "):
        load_config(None, preset="few-image")
