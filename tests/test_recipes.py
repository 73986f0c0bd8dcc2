"""Children are chosen by their recipes, from what the journal tells of candidates that were trained."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evolve import recipes
from evolve.candidate import Candidate, Part
from evolve.config import EvolveConfig
from evolve.hparams import DataHParams, OptimiserHParams
from evolve.journal import CandidateRecord, Journal, trained_whole
from evolve.loop import evolve_task
from evolve.mutation import mutate
from evolve.population import Member, Population
from evolve.publish import create_store
from evolve.recipes import Examples, earlier_examples, examples, expected_accuracies
from evolve.run import Progress, TaskRun
from evolve.task import Task
from models.component import ComponentKind, ComponentRecord
from models.errors import InvalidConfig
from models.names import ComponentId, TaskName
from models.release import Release
from models.root import load_root
from models.store import Store
from tests.support.tiny import HALVED, TINY_CONFIG, TINY_ROOT

RANKED = replace(TINY_CONFIG, generations=2, rank_children=8)
SLOW, FAST = 0.001, 0.1


def recipe(name: str, parent: str, learning_rate: float = 0.01) -> Candidate:
    return Candidate(name, parent, (), ("a", "b"), OptimiserHParams(learning_rate=learning_rate), DataHParams(16))


def record(candidate: Candidate, quality: float, validations: int = 4) -> CandidateRecord:
    return CandidateRecord(candidate, quality, quality, 0.0, 1, (quality,) * validations, 100, 1.0, "cpu")


def members(records: Sequence[CandidateRecord]) -> dict[str, Member]:
    return {one.candidate.name: one.member for one in records}


def iteration_where_fast_is_better(task: str) -> list[CandidateRecord]:
    """Twelve children of seeds and twelve of the first of them; with a larger learning rate they come to more."""
    rng = np.random.default_rng(0)
    rates = (SLOW, 0.01, FAST) * 4
    first = [
        record(recipe(f"{task}/1/0/{at}", "root", rate), 0.5 + 0.1 * (at % 3) + rng.normal(0, 0.01))
        for at, rate in enumerate(rates)
    ]
    later = [
        record(recipe(f"{task}/1/1/{at}", f"{task}/1/0/0", rate), 0.6 + 0.1 * (at % 3) + rng.normal(0, 0.01))
        for at, rate in enumerate(rates)
    ]
    return first + later


def test_a_seeds_child_is_held_against_its_like_and_any_other_against_its_parent() -> None:
    records = [
        record(recipe("birds/1/0/0", "root"), 0.4),
        record(recipe("birds/1/0/1", "flowers@1"), 0.8),
        record(recipe("birds/1/0/2", "root"), 0.2, validations=1),  # stopped: nobody knows what it would have come to
        record(recipe("birds/1/1/0", "birds/1/0/1"), 0.85),
        record(recipe("birds/1/1/1", "birds/1/0/1"), 0.1),  # its training failed
    ]
    found = examples(records, members(records))
    # shares of errors: of the mean's .4, .2 more and .2 less; of the parent's .2, .05 less, and what is not kept
    assert [example.gain for example in found.of_seeds] == pytest.approx([-0.5, 0.5])
    assert [example.gain for example in found.of_members] == pytest.approx([0.25, 0])
    assert len(found) == 4
    assert examples([], {}) == Examples()


def test_what_was_stopped_is_told_by_the_longest_training_of_its_generation() -> None:
    """With few images there are fewer validations than were asked for, and each generation may have its own."""
    lengths = {"birds/1/0/0": 4, "birds/1/0/1": 2, "birds/1/1/0": 2, "birds/2/0/0": 1, "birds/2/0/1": 1}
    records = [record(recipe(name, "root"), 0.5, validations=length) for name, length in lengths.items()]
    whole = [one.candidate.name for one in trained_whole(records)]
    assert whole == ["birds/1/0/0", "birds/1/1/0", "birds/2/0/0", "birds/2/0/1"]


def test_a_recipe_like_those_that_did_well_is_expected_to_come_to_more() -> None:
    taught = Examples()
    for task in ("birds", "flowers"):
        records = iteration_where_fast_is_better(task)
        taught += examples(records, members(records))
    children = [recipe("fish/1/0/0", "root", SLOW), recipe("fish/1/0/0", "birds@1", FAST)]
    slow, fast = expected_accuracies(children, {}, [], own=Examples(), earlier=taught)
    assert fast > slow + 0.1
    level = [record(recipe("fish/1/0/7", "root"), 0.8)]
    grown = [recipe("fish/1/1/0", "fish/1/0/7", SLOW), recipe("fish/1/1/0", "fish/1/0/7", FAST)]
    slow, fast, seeds_child = expected_accuracies(
        [*grown, children[1]], members(level), level, own=Examples(), earlier=taught
    )
    assert fast > slow + 0.04
    assert 0.8 < seeds_child < fast  # a child of a seed starts from nothing, one of a kept candidate from that


def blocks(own: str, adapters: int = 0) -> tuple[Part, ...]:
    """Return blocks, of which those written as o are the candidate's own, and adapters."""
    kinds: list[tuple[ComponentKind, bool]] = [("block", mark == "o") for mark in own]
    kinds += [("adapter", True)] * adapters
    return tuple(Part(ComponentRecord(kind, ComponentId("0" * 64), 1), is_own) for kind, is_own in kinds)


def test_a_seeds_child_is_told_apart_by_its_rates_its_adapters_and_what_of_it_is_its_own() -> None:
    child = replace(recipe("fish/1/0/0", "root", 0.1), parts=blocks("o--o", adapters=3))
    assert recipes.recipe(child) == pytest.approx([np.log(0.1), 0.1, 3, 0.5])
    sooner = replace(child, hparams=replace(child.hparams, warmup_ratio=0.02), parts=())
    assert recipes.recipe(sooner) == pytest.approx([np.log(0.1), 0.02, 0, 0])


def test_what_is_expected_of_a_parent_halves_with_each_child_that_was_worse() -> None:
    earlier = iteration_where_fast_is_better("birds")
    taught = examples(earlier, members(earlier))
    records = [record(recipe("fish/1/0/0", "root"), 0.5), record(recipe("fish/1/0/1", "root"), 0.5)]
    kept = members(records)
    grown = [recipe("fish/1/2/0", "fish/1/0/0"), recipe("fish/1/2/0", "fish/1/0/1")]
    records += [
        record(recipe("fish/1/1/0", "fish/1/0/1"), 0.4),
        record(recipe("fish/1/1/1", "fish/1/0/1"), 0.45),
        record(recipe("fish/1/1/2", "fish/1/0/1"), 0.5),  # no better, but kept
        replace(record(recipe("fish/1/1/4", "fish/1/0/1"), 0.5), score=0.49),  # as accurate, but it costs more
        record(recipe("fish/1/1/3", "fish/1/0/1"), 0.1, validations=1),  # stopped: it says nothing
    ]
    fresh, tried = expected_accuracies(grown, kept, records, own=Examples(), earlier=taught)
    assert fresh > 0.52
    assert tried - 0.5 == pytest.approx((fresh - 0.5) / 8)


def test_a_parent_is_never_expected_to_be_left_for_less() -> None:
    """A child that is worse is not kept."""
    losing = [record(recipe("birds/1/0/0", "root"), 0.5)]
    losing += [record(recipe(f"birds/1/1/{at}", "birds/1/0/0", FAST), 0.5) for at in range(8)]
    winning = [record(recipe(f"birds/1/2/{at}", "birds/1/0/0", 0.05), 0.6) for at in range(8)]
    taught = examples([*losing, *winning], members(losing[:1]))
    level = [record(recipe("fish/1/0/0", "root"), 0.5)]
    grown = [recipe("fish/1/1/0", "fish/1/0/0", 0.5)]
    assert expected_accuracies(grown, members(level), level, own=Examples(), earlier=taught) == [0.5]


def iteration_where_slow_is_better(task: str) -> list[CandidateRecord]:
    rates = {SLOW: FAST, FAST: SLOW, 0.01: 0.01}
    records = []
    for one in iteration_where_fast_is_better(task):
        candidate = one.candidate
        turned = recipe(candidate.name, candidate.parent, rates[candidate.hparams.learning_rate])
        records.append(replace(one, candidate=turned))
    return records


def test_an_example_of_the_task_itself_says_as_much_as_three_of_another() -> None:
    earlier, records = iteration_where_fast_is_better("birds"), iteration_where_slow_is_better("fish")
    others, own, kept = examples(earlier, members(earlier)), examples(records, members(records)), members(records)
    for parent in ("root", "fish/1/0/0"):
        children = [recipe("fish/1/2/0", parent, SLOW), recipe("fish/1/2/0", parent, FAST)]
        slow, fast = expected_accuracies(children, kept, records, own=own, earlier=others)
        assert slow > fast + 0.01
        thrice = others + own + own + own
        same = expected_accuracies(children, kept, records, own=Examples(), earlier=thrice)
        assert [slow, fast] == pytest.approx(same)


def test_a_members_child_is_told_apart_by_what_it_has_otherwise() -> None:
    parent = replace(recipe("fish/1/0/0", "root", 0.1), parts=blocks("oo"))
    slower = replace(parent, hparams=replace(parent.hparams, learning_rate=0.05, momentum=0.8), parts=blocks("ooo"))
    assert recipes.changes(slower, parent) == pytest.approx([np.log(0.25), 1, 0])
    assert recipes.changes(parent, slower) == pytest.approx([np.log(4), 0, 1])
    assert recipes.changes(parent, parent) == pytest.approx([0, 0, 0])


def test_where_nothing_was_learnt_all_children_are_the_same() -> None:
    children = [recipe("fish/1/0/0", "root", SLOW), recipe("fish/1/0/0", "root", FAST)]
    slow, fast = expected_accuracies(children, {}, [], own=Examples(), earlier=Examples())
    assert slow == fast


def test_the_journals_of_others_are_read_but_not_of_private_tasks(opened_store: Store, toy_task: Task) -> None:
    def learnt(release: Release, own: str = "shapes_c") -> int:
        routes = opened_store.routes(opened_store.release())
        return len(earlier_examples(opened_store, release, routes, own=TaskName(own)).of_seeds)

    assert learnt(opened_store.release()) == 4  # two tasks with two candidates each
    assert learnt(opened_store.release(opened_store.release().number - 1)) == 2  # what had ended by then
    hidden = replace(toy_task, name=TaskName("hidden"))
    evolve_task(hidden, opened_store, TINY_CONFIG, private=True)
    assert learnt(opened_store.release()) == 4
    assert learnt(opened_store.release(), own="hidden") == 6
    outcome = evolve_task(toy_task, opened_store, RANKED)
    assert outcome.learnt_from == 4


def test_a_renamed_tasks_journal_is_found_and_no_other_of_that_name(opened_store: Store, toy_task: Task) -> None:
    hidden = replace(toy_task, name=TaskName("hidden"))
    evolve_task(hidden, opened_store, replace(TINY_CONFIG, children_per_generation=3), private=True)
    opened_store.remove_task(hidden.name)
    opened_store.rename_task("shapes_a", hidden.name)
    release = opened_store.release()
    found = earlier_examples(opened_store, release, opened_store.routes(release), own=toy_task.name)
    assert len(found.of_seeds) == 4


def test_what_grew_from_a_tasks_former_route_is_no_seeds_child() -> None:
    own = "birds@1"
    records = [
        record(recipe("birds/2/0/0", "root"), 0.5),
        record(recipe("birds/2/0/1", own), 0.9),
        record(recipe("birds/2/1/0", "birds/2/0/1"), 0.95),
    ]
    found = examples(records, members(records))
    assert [example.gain for example in found.of_seeds] == [0]
    assert [example.gain for example in found.of_members] == pytest.approx([0.5])


def test_what_never_varied_tells_nothing() -> None:
    """Means of the same number differ from it by rounding."""
    taught = Examples()
    rng = np.random.default_rng(0)
    for task in range(7):
        children = [recipe(f"task{task}/1/0/{at}", "root", 0.002) for at in range(3 + task)]
        records = [record(child, rng.uniform(0.3, 0.7)) for child in children]
        taught += examples(records, {})
    others = [recipe("x/1/0/0", "root", 0.5)]
    level = [record(recipe("x/1/0/1", "root", 0.002), 0.5)]
    (expected,) = expected_accuracies(others, {}, level, own=Examples(), earlier=taught)
    assert expected == pytest.approx(0.5, abs=0.01)


def test_the_first_child_drawn_is_trained_where_nothing_was_learnt(tmp_path: Path, toy_task: Task) -> None:
    store = create_store(tmp_path / "new", load_root(TINY_ROOT))
    for seed in range(5):
        run = TaskRun.begin(toy_task, store, replace(RANKED, seed=seed), private=False)
        population = run.start_population()
        data = run.sample_data(population, 0)
        rng = run._rng("child", 0, 0)
        parents = population.propose_parents(rng, RANKED.rank_children)
        first = mutate(parents[0], data, run.nursery, "shapes_c/1/0/0", rng)
        assert run.sample_children(population, data, 0)[0].mutations == first.mutations


def test_what_is_to_be_tried_first_is_tried(opened_store: Store, toy_task: Task) -> None:
    for wanted in ("shapes_a", "shapes_b"):
        config = replace(RANKED, parents=wanted)
        run = TaskRun.begin(toy_task, opened_store, config, private=False)
        population = run.start_population()
        children = run.sample_children(population, run.sample_data(population, 0), 0)
        assert children[0].parent.startswith(f"{wanted}@")


def test_a_killed_run_ends_as_if_it_had_not_been(tiny_store: Path, toy_task: Task, tmp_path: Path) -> None:
    config = replace(HALVED, rank_children=4)
    copy = Path(shutil.copytree(tiny_store, tmp_path / "copy"))
    expected = evolve_task(toy_task, Store.open(copy), config)
    store = Store.open(tiny_store)

    def killed(progress: Progress) -> None:
        if progress.generation == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evolve_task(toy_task, store, config, report=killed)
    other = replace(toy_task, name=TaskName("meanwhile"))
    evolve_task(other, store, TINY_CONFIG)  # the run learns nothing from what began after it
    outcome = evolve_task(toy_task, store, config)
    assert outcome.route.components == expected.route.components


def test_a_task_is_evolved_with_ranked_children_and_again(opened_store: Store, toy_task: Task) -> None:
    first = evolve_task(toy_task, opened_store, RANKED)
    records = Journal(opened_store, toy_task.name, 1).records()
    assert first.candidates == len(records) == 4
    assert first.probed_images == 0
    own = f"{toy_task.name}@{first.route_id}"
    again = evolve_task(toy_task, opened_store, replace(RANKED, seed=1))
    journal = Journal(opened_store, toy_task.name, 2)
    assert len(journal.records()) == again.candidates == 4
    assert journal.records()[0].candidate.parent == own  # it is known to be good, unlike what a seed's child comes to


def test_the_most_promising_of_the_drawn_is_trained(opened_store: Store, toy_task: Task) -> None:
    run = TaskRun.begin(toy_task, opened_store, RANKED, private=False)
    records = iteration_where_fast_is_better("birds")
    run._earlier = examples(records, members(records))
    population = run.start_population()
    data = run.sample_data(population, 0)
    chosen = run.sample_children(population, data, 0)
    plain = TaskRun.begin(toy_task, opened_store, replace(RANKED, rank_children=1), private=False)
    unranked = plain.sample_children(plain.start_population(), data, 0)
    rates = [[child.hparams.learning_rate for child in children] for children in (chosen, unranked)]
    assert min(rates[0]) > max(rates[1])


def test_what_the_task_itself_taught_is_told_from_what_others_did(opened_store: Store, toy_task: Task) -> None:
    earlier, own = iteration_where_fast_is_better("birds"), iteration_where_slow_is_better("shapes_c")[:12]
    run = TaskRun.begin(toy_task, opened_store, RANKED, private=False)
    run._earlier = examples(earlier, members(earlier))
    run._parents = {one.candidate.name: one for one in own}
    population = run.start_population()
    data = run.sample_data(population, 0)
    rates = [child.hparams.learning_rate for child in run.sample_children(population, data, 0)]
    run._parents = {}
    unlike = [child.hparams.learning_rate for child in run.sample_children(run.start_population(), data, 0)]
    assert max(rates) < min(unlike)


def test_parents_that_are_proposed_have_no_child_yet() -> None:
    population = Population([recipe("root", ""), recipe("birds@1", "")])
    population.consider(Member(recipe("fish/1/0/0", "root"), 0.5, 0.5))
    rngs = [np.random.default_rng(3) for _ in range(2)]
    proposed = population.propose_parents(rngs[0], 6)
    assert {parent.name for parent in proposed} == {"fish/1/0/0", "root", "birds@1"}
    assert population.seeds[0].name == "root"
    assert [population.sample_parent(rngs[1]) for _ in range(6)] == proposed  # the same draws, each counted


@pytest.mark.parametrize("number", [0, 257])
def test_a_bounded_number_of_children_is_drawn(number: int) -> None:
    with pytest.raises(InvalidConfig, match=rf"rank_children = {number}: use a whole number from 1 .* to 256"):
        EvolveConfig(rank_children=number)
