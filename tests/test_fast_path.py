"""The fast path computes what the plain path computes, whatever the candidates own and however many workers train."""

import gc
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evolve import fast_train, local_executor
from evolve.activations import CHUNK, Activations
from evolve.candidate import Candidate, Part
from evolve.config import EvolveConfig
from evolve.device_memory import Kept
from evolve.fast_block import FastBlock
from evolve.fast_train import Checkpoint, Inputs, finished, train
from evolve.hparams import DataHParams, OptimiserHParams
from evolve.journal import Journal
from evolve.lanes import complete
from evolve.local_executor import LocalExecutor, Pause, best_pause, fastest
from evolve.loop import evolve_task, one_after_another, silent
from evolve.moving_average import MovingAverage
from evolve.mutation import new_adapter, resized
from evolve.pool import WeightPool
from evolve.prefix import frozen_prefix, plan_sharing
from evolve.publish import create_store
from evolve.run import Outcome, TaskRun
from evolve.task import Task
from evolve.train import Trained, TrainPlan
from models.errors import InvalidConfig
from models.root import load_root
from models.store import Store
from models.vit import Block
from tests.support.candidates import own_weights
from tests.support.tiny import TINY_CONFIG

ROOT = "random:embed_dim=16,depth=4,num_heads=2,patch_size=8,image_size=16"
AUGMENTED = {"crop_area_min": 0.5, "flip": True, "brightness": 0.1}
CONFIG = replace(TINY_CONFIG, epochs=3, validations=3)


@pytest.fixture(scope="module")
def workers() -> Iterator[LocalExecutor]:
    with LocalExecutor(workers=2, process_flops=0) as execute:
        yield execute


@pytest.fixture
def run(tmp_path: Path, toy_task: Task) -> TaskRun:
    store = create_store(tmp_path / "store", load_root(ROOT))
    return TaskRun.begin(toy_task, store, CONFIG, private=False)


def candidate_with(run: TaskRun, own: str, data: DataHParams, name: str) -> Candidate:
    """Return a child of the root that owns the named parts, final norm and head; `adapter` puts one before block 2."""
    nursery = run.nursery
    root = [part for part in resized(nursery.root, data, nursery).parts if part.component.kind != "head"]
    parts = [*root, nursery.new_head()]
    if own == "adapter":
        weights = new_adapter(nursery.network.embed_dim, 8, np.random.default_rng(0))
        parts.insert(4, nursery.new_part("adapter", {name: values + 0.01 for name, values in weights.items()}))
    if own == "no blocks":
        parts = [*parts[:2], *parts[-2:]]
    places = {"patch_embed": [0], "pos_embed": [1], "block 1": [3], "blocks 0 and 3": [2, 5]}.get(own, [])
    parts = [
        replace(part, is_own=part.is_own or at in places or part.component.kind == "norm")
        for at, part in enumerate(parts)
    ]
    hparams = OptimiserHParams(learning_rate=0.05)
    return Candidate(name, "root", tuple(parts), nursery.labels, hparams, data)


OWN = ["nothing", "no blocks", "patch_embed", "pos_embed", "block 1", "blocks 0 and 3", "adapter"]


def generation(run: TaskRun, data: DataHParams) -> list[Candidate]:
    return [candidate_with(run, own, data, f"shapes_c/1/0/{at}") for at, own in enumerate(OWN)]


def assert_same(fast: list[Trained], plain: list[Trained], pool: WeightPool) -> None:
    for _, values, wanted in own_weights(fast, plain, pool):
        np.testing.assert_allclose(values, wanted, atol=1e-5)
    for mine, other in zip(fast, plain, strict=True):
        assert mine.curve == pytest.approx(other.curve, abs=1e-5)
        assert mine.images == other.images


@pytest.mark.parametrize("data", [{}, AUGMENTED], ids=["plain data", "augmented data"])
@pytest.mark.parametrize("activation_mib", [0, 64], ids=["nothing kept", "kept"])
@pytest.mark.parametrize("average_weights", [False, True], ids=["as trained", "averaged"])
def test_every_candidate_trains_as_on_the_plain_path(
    run: TaskRun, data: dict[str, float], activation_mib: int, average_weights: bool, workers: LocalExecutor
) -> None:
    candidates = generation(run, DataHParams(16, **data))  # type: ignore[arg-type]
    plan = replace(run.plan(0), activation_bytes=activation_mib * 2**20, average_weights=average_weights)
    plain = list(one_after_another(candidates, run.task, run.pool, plan))
    here = list(LocalExecutor()(candidates, run.task, run.pool, plan))
    assert_same(here, plain, run.pool)
    side_by_side = list(workers(candidates, run.task, run.pool, plan))
    for mine, other in zip(side_by_side, here, strict=True):
        assert mine.candidate == other.candidate  # bit by bit: ids are digests of the weights
        assert mine.curve == other.curve


def test_the_average_counts_each_step_by_polynomial_decay() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    average = MovingAverage([module])
    expected = 0.0
    for step in range(1, 6):
        torch.nn.init.constant_(module.weight, step)
        average.add(step)
        share = 9 / (step + 8)  # the first step counts whole: where the training began is forgotten at once
        expected = expected * (1 - share) + step * share
    [weights] = average.weights()
    assert weights["weight"] == pytest.approx(expected)
    with average.in_place():
        assert module.weight.item() == pytest.approx(expected)
    assert module.weight.item() == 5
    torch.nn.init.constant_(module.weight, 0)
    [again] = MovingAverage([module], [weights]).weights()
    assert again["weight"] == weights["weight"]
    assert module.weight.item() == 0


def test_what_is_kept_of_a_training_is_the_average_if_that_is_wanted(run: TaskRun) -> None:
    candidates = [candidate_with(run, "block 1", DataHParams(16), "shapes_c/1/0/0")]
    plan = replace(run.plan(0), validations=1)
    [trained], [averaged] = (
        list(LocalExecutor()(candidates, run.task, run.pool, replace(plan, average_weights=is_wanted)))
        for is_wanted in (False, True)
    )
    for mine, other in zip(averaged.candidate.parts, trained.candidate.parts, strict=True):
        assert (mine.component == other.component) is not other.is_own
        assert mine.momentum == other.momentum  # the training itself is the same, step by step


def evolved(folder: Path, task: Task, config: EvolveConfig, **how: object) -> Outcome:
    return evolve_task(task, create_store(folder, load_root(ROOT)), config, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("average_weights", [False, True], ids=["as trained", "averaged"])
def test_an_evolution_ends_as_on_the_plain_path(
    tmp_path: Path, toy_task: Task, workers: LocalExecutor, average_weights: bool
) -> None:
    config = replace(CONFIG, generations=3, children_per_generation=3, mutation_rate=0.3)
    other = evolved(tmp_path / "other", toy_task, replace(config, average_weights=not average_weights))
    config = replace(config, average_weights=average_weights)
    plain = evolved(tmp_path / "plain", toy_task, config, execute=one_after_another)
    fast = evolved(tmp_path / "fast", toy_task, config)
    assert fast.route.lineage.candidate == plain.route.lineage.candidate
    assert fast.route.quality
    assert plain.route.quality
    assert fast.route.quality.score == pytest.approx(plain.route.quality.score, abs=1e-5)
    assert evolved(tmp_path / "many", toy_task, config, execute=workers).route_id == fast.route_id
    assert other.route_id != fast.route_id


@pytest.mark.parametrize("data", [{}, AUGMENTED], ids=["plain data", "augmented data"])
@pytest.mark.parametrize("average_weights", [False, True], ids=["as trained", "averaged"])
def test_a_training_taken_up_again_ends_bit_by_bit_the_same(
    run: TaskRun, data: dict[str, float], average_weights: bool
) -> None:
    candidate = candidate_with(run, "block 1", DataHParams(16, **data), "shapes_c/1/0/0")  # type: ignore[arg-type]
    plan = replace(run.plan(0), average_weights=average_weights)
    sharing = plan_sharing([candidate], run.task, replace(plan, activation_bytes=0), run.pool.folder)

    def trained(validations: int, checkpoint: Checkpoint | None = None) -> Checkpoint:
        work = train(candidate, sharing, run.task, run.pool, plan, checkpoint=checkpoint, validations=validations)
        return complete(work, plan.device)

    whole = trained(3)
    for stop in (1, 2):
        part = trained(stop)
        assert part.step < whole.step
        rest = trained(3, part)
        assert rest.curve == whole.curve
        for mine, other in zip(rest.averages, whole.averages, strict=True):
            assert all((mine[name] == values).all() for name, values in other.items())
        ends = [finished(candidate, checkpoint, run.pool, plan).candidate for checkpoint in (whole, rest)]
        assert ends[0] == ends[1]
    assert bool(whole.averages) == average_weights


def here_halved(candidates: Sequence[Candidate], task: Task, pool: WeightPool, plan: TrainPlan) -> Iterator[Trained]:
    return LocalExecutor()(candidates, task, pool, replace(plan, halving=True))


def test_halving_stops_the_worse_half_at_each_validation(run: TaskRun, workers: LocalExecutor) -> None:
    candidates = generation(run, DataHParams(16))[:4]
    plan = replace(run.plan(0), halving=True)
    trained = list(LocalExecutor()(candidates, run.task, run.pool, plan))
    assert sorted(len(one.curve) for one in trained) == [1, 1, 2, 3]
    assert sorted(one.images for one in trained)[0] < plan.images / 2
    first = [one.curve[0] for one in trained]
    assert min(one.curve[0] for one in trained if len(one.curve) > 1) >= sorted(first)[2]
    assert [one.candidate for one in workers(candidates, run.task, run.pool, plan)] == [
        one.candidate for one in trained
    ]
    members = run.train(candidates, 0, here_halved, silent)
    assert [member.candidate.name for member in members] == [
        one.candidate.name for one in trained if len(one.curve) == plan.validations
    ]  # what was stopped is no parent
    with pytest.raises(InvalidConfig, match="leave --plain out"):
        list(one_after_another(candidates, run.task, run.pool, plan))


@pytest.mark.parametrize("option", ["bf16_activations", "bf16_products"])
def test_the_plain_path_refuses_bfloat16(tmp_path: Path, toy_task: Task, option: str) -> None:
    store = create_store(tmp_path / "store", load_root(ROOT))
    config = replace(CONFIG, **{option: True})  # type: ignore[arg-type]  # both are yes or no
    with pytest.raises(InvalidConfig, match=f"{option} = true needs the fast path.*leave --plain out"):
        evolve_task(toy_task, store, config, execute=one_after_another)


def test_a_candidate_handed_from_worker_to_worker_trains_the_same(run: TaskRun, workers: LocalExecutor) -> None:
    data = DataHParams(16)
    candidates = [candidate_with(run, "patch_embed", data, f"shapes_c/1/0/{at}") for at in range(3)]
    plan = replace(run.plan(0), validations=4)
    pause = best_pause([1, 1, 1], plan.validations, workers=2)
    assert pause == Pause(0, 2)  # half of one beside each of the others
    here = list(LocalExecutor()(candidates, run.task, run.pool, plan))
    side_by_side = list(workers(candidates, run.task, run.pool, plan))
    for mine, other in zip(side_by_side, here, strict=True):
        assert mine.candidate == other.candidate
        assert mine.curve == other.curve


@pytest.mark.parametrize("costs", [[1], [1, 1], [3, 2, 1], [5, 4, 3, 2], [33, 32, 31, 30]])
def test_no_candidate_is_handed_over_for_little(costs: list[int]) -> None:
    assert best_pause(costs, validations=4, workers=2) is None


def test_as_many_candidates_at_once_as_are_fastest() -> None:
    def seconds(took: dict[int, float | None]) -> int:
        return fastest((1, 2, 4, 8), took.__getitem__)

    assert seconds({1: 1.0, 2: 1.2, 4: 1.6, 8: 3.3}) == 4  # eight at once are no faster
    assert seconds({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}) == 8
    assert seconds({1: 1.0, 2: 2.0}) == 1  # four are not tried
    assert seconds({1: 1.0, 2: 1.2, 4: None}) == 2  # they did not fit


def test_on_a_processor_as_many_train_at_once_as_have_their_threads(
    run: TaskRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_executor, "usable_cores", lambda: 5)
    with LocalExecutor(None, process_flops=0) as execute:
        next(execute(generation(run, DataHParams(16)), run.task, run.pool, replace(run.plan(0), threads=2)))
        assert execute.workers == 2


def test_a_prefix_is_shared_as_far_as_it_reaches(run: TaskRun) -> None:
    candidates = generation(run, DataHParams(16))
    depths = {own: len(frozen_prefix(one).parts) for own, one in zip(OWN, candidates, strict=True)}
    assert depths == {
        "nothing": 6, "no blocks": 2, "patch_embed": 0, "pos_embed": 0, "block 1": 3, "blocks 0 and 3": 2, "adapter": 4,
    }  # fmt: skip
    sharing = plan_sharing(candidates, run.task, run.plan(0), run.pool.folder)
    train_sets = [shared for shared in sharing.shared if shared.images == "train"]
    assert [len(shared.prefix.parts) for shared in train_sets] == [2, 3, 2, 4, 6]
    sources = [shared.source and len(shared.source.prefix.parts) for shared in train_sets]
    assert sources == [None, 2, 2, 3, 4]
    assert train_sets[-1].activations.row_shape == (16,)  # behind the last block only the class token counts
    assert not plan_sharing(candidates, run.task, replace(run.plan(0), activation_bytes=0), run.pool.folder).shared


def test_later_generations_find_what_is_kept_and_the_limit_holds(run: TaskRun) -> None:
    candidates = generation(run, DataHParams(16))
    plan = run.plan(0)
    execute = LocalExecutor()
    list(execute(candidates, run.task, run.pool, plan))
    folder = run.pool.folder / "activations"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    list(execute(candidates[-1:], run.task, run.pool, plan))
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    needed = sum(
        shared.activations.num_bytes for shared in plan_sharing(candidates[-1:], run.task, plan, folder).shared
    )
    list(execute(candidates[-1:], run.task, run.pool, replace(plan, activation_bytes=needed)))
    assert sum(path.stat().st_size for path in folder.iterdir()) == needed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_are_read_as_they_were_written(tmp_path: Path, dtype: str) -> None:
    values = torch.randn(CHUNK + 3, 5, 16)
    kept = Activations(tmp_path / "kept", len(values), (5, 16), dtype)
    assert not kept.is_complete
    unfinished = kept.begin()
    kept.write(unfinished, 0, values[:CHUNK])
    kept.write(unfinished, CHUNK, values[CHUNK:])
    kept.finish(unfinished)
    expected = values if dtype == "float32" else values.bfloat16().float()
    assert torch.equal(kept.read(slice(None)), expected)
    assert torch.equal(kept.read(np.array([5, 1])), expected[[5, 1]])
    assert kept.path.stat().st_size == kept.num_bytes


@pytest.mark.parametrize("what", ["bf16_activations", "bf16_products"])
def test_bfloat16_trains_almost_as_well(tmp_path: Path, toy_task: Task, what: str) -> None:
    config = replace(CONFIG, epochs=6)
    quality = evolved(tmp_path / "bf16", toy_task, replace(config, **{what: True})).route.quality  # type: ignore[arg-type]
    wanted = evolved(tmp_path / "float32", toy_task, config).route.quality
    assert quality
    assert wanted
    assert quality.validation_accuracy == pytest.approx(wanted.validation_accuracy, abs=0.2)


def test_what_was_multiplied_in_bfloat16_is_kept_apart(run: TaskRun) -> None:
    candidates = generation(run, DataHParams(16))
    plans = [replace(run.plan(0), bf16_products=rounds) for rounds in (False, True)]
    names = [
        {shared.activations.path.name for shared in plan_sharing(candidates, run.task, plan, run.pool.folder).shared}
        for plan in plans
    ]
    assert names[0]
    assert names[1]
    assert not names[0] & names[1]


def test_a_frozen_prefix_is_multiplied_in_what_the_plan_says(run: TaskRun) -> None:
    candidate = generation(run, DataHParams(16))[0]
    exact, rounded = (
        Inputs(frozen_prefix(candidate), "val", None, candidate.data, run.task, plan).load(run.pool).at(slice(0, 4))
        for plan in (replace(run.plan(0), bf16_products=rounds) for rounds in (False, True))
    )
    assert exact.dtype == rounded.dtype == torch.float32
    assert 1e-4 < (exact - rounded).norm() / exact.norm() < 0.05


def test_frozen_modules_are_built_once_and_only_the_last_used_are_kept(
    run: TaskRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = run.plan(0)
    blocks = [replace(part, is_own=False) for part in run.nursery.root.parts if part.component.kind == "block"]
    num_bytes = 2 * 4 * blocks[0].component.parameters

    def module(part: Part, plan: TrainPlan = plan) -> torch.nn.Module:
        return fast_train._module(part, run.pool, plan)

    monkeypatch.setattr(fast_train, "_frozen", Kept())
    monkeypatch.setattr(fast_train, "FROZEN_BYTES", {"cpu": 2 * num_bytes})
    first, second = module(blocks[0]), weakref.ref(module(blocks[1]))
    assert isinstance(first, FastBlock)
    assert module(blocks[0]) is first
    module(blocks[2])  # in the place of the second, which was used less lately
    assert module(blocks[0]) is first
    gc.collect()
    assert second() is None
    module(blocks[1])
    assert len(fast_train._frozen) == 2
    own = replace(blocks[0], is_own=True)
    assert isinstance(module(own), FastBlock)
    assert module(own) is not module(own)
    assert module(blocks[0], replace(plan, network=replace(plan.network, num_heads=1))) is not first
    assert module(blocks[0], replace(plan, bf16_products=True)) is not first


def test_the_last_block_may_be_run_for_the_class_token_alone() -> None:
    block, tokens = Block(16, 2, 32), torch.randn(3, 5, 16)
    torch.testing.assert_close(block.first_token(tokens), block(tokens)[:, 0])


def test_the_journal_tells_where_time_went(tmp_path: Path, toy_task: Task) -> None:
    outcome = evolved(tmp_path / "store", toy_task, TINY_CONFIG)
    records = Journal(Store.open(tmp_path / "store"), toy_task.name, 1).generation(0)
    assert records
    for record in records:
        phases = record.phases
        assert 0 < phases.forward < record.seconds
        assert min(phases.frozen, phases.data, phases.backward, phases.validation, phases.saving) > 0
        assert phases.total - phases.frozen == pytest.approx(record.seconds, rel=0.5)
    assert outcome.throughput.images == outcome.trained_images
    assert outcome.throughput.wall_seconds == pytest.approx(sum(record.wall_seconds for record in records))
