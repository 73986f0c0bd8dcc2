"""The promises of an evolution: nothing old changes, the same seed gives the same winner, a resumed run too."""

import hashlib
import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from evolve.candidate import Candidate
from evolve.config import EvolveConfig
from evolve.journal import Journal, iterations
from evolve.local_executor import LocalExecutor
from evolve.loop import evolve_task, one_after_another
from evolve.onnx_route import OnnxRoute
from evolve.pool import WeightPool
from evolve.progress import ProgressDisplay
from evolve.publish import create_store
from evolve.run import Outcome, alone
from evolve.task import Task
from evolve.train import Trained, TrainPlan
from models.errors import DamagedObject, InvalidConfig, PublishConflict, TaskBusy
from models.names import TaskName
from models.proven import Proven
from models.root import load_root
from models.store import Store
from models.verify import verify
from tests.support.tiny import HALVED, TINY_CONFIG, TINY_ROOT, load_toy_task


def test_a_log_file_gets_each_generation_once(opened_store: Store, toy_task: Task) -> None:
    log = io.StringIO()
    config = replace(TINY_CONFIG, generations=3)
    task = replace(toy_task, name=TaskName("a-name-so-long-that-eighty-columns-are-not-enough"))
    with ProgressDisplay(Console(file=log, width=80)) as display:
        display.decoding(3, 9)
        evolve_task(task, opened_store, config, report=display.candidate(config))
    lines = log.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [f"{task.name}: generation {number}/3" for number in (1, 2, 3)]
    assert all(line.endswith(" images/s") for line in lines)


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_adding_a_task_leaves_every_byte_and_logit_of_others_unchanged(opened_store: Store, toy_task: Task) -> None:
    before = digests(opened_store.folder / "objects")
    old = opened_store.release()
    route = opened_store.routes(old)[TaskName("shapes_a")]
    pixels = np.array(toy_task.val.pixels(route.image_size))
    logits = OnnxRoute(opened_store, route.stages).logits(pixels)

    outcome = evolve_task(toy_task, opened_store, TINY_CONFIG)

    after = digests(opened_store.folder / "objects")
    assert before.items() <= after.items()
    assert old.tasks.items() <= outcome.release.tasks.items()
    assert np.array_equal(OnnxRoute(opened_store, route.stages).logits(pixels), logits)  # bit-identical
    assert outcome.release.number == old.number + 1
    assert opened_store.current().release == outcome.release.number


TWO_GENERATIONS = replace(TINY_CONFIG, generations=2)
CHILDREN_RANKED = replace(TWO_GENERATIONS, rank_children=4)


def evolve_in_new_store(folder: Path, task: Task, config: EvolveConfig = TWO_GENERATIONS) -> Outcome:
    return evolve_task(task, create_store(folder, load_root(TINY_ROOT)), config)


def test_same_seed_gives_the_same_winner(tmp_path: Path, toy_task: Task) -> None:
    outcomes = [evolve_in_new_store(tmp_path / name, toy_task) for name in ("first", "second")]
    assert outcomes[0].route == outcomes[1].route
    assert outcomes[0].route_id == outcomes[1].route_id


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the evolution may catch it."""


@pytest.mark.parametrize(
    ("survived", "config"),
    [*((survived, TWO_GENERATIONS) for survived in range(4)), (2, HALVED), (5, HALVED), (3, CHILDREN_RANKED)],
    ids=[
        *(f"after {survived} candidates" for survived in range(4)),
        "in the first, halved",
        "later, halved",
        "children ranked",
    ],
)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    tmp_path: Path, toy_task: Task, survived: int, config: EvolveConfig
) -> None:
    expected = evolve_in_new_store(tmp_path / "whole", toy_task, config)
    store = create_store(tmp_path / "broken", load_root(TINY_ROOT))
    trained = itertools.count()

    def killed_after(
        candidates: Sequence[Candidate], task: Task, pool: WeightPool, plan: TrainPlan
    ) -> Iterator[Trained]:
        for candidate in LocalExecutor()(candidates, task, pool, plan):
            if next(trained) == survived:
                raise Killed
            yield candidate

    with pytest.raises(Killed):
        evolve_task(toy_task, store, config, execute=killed_after)
    outcome = evolve_task(toy_task, Store.open(tmp_path / "broken"), config)
    assert outcome.route_id == expected.route_id
    assert iterations(store, toy_task.name) == [1]


def test_a_further_iteration_keeps_or_betters_the_score(opened_store: Store, toy_folder: Path, tmp_path: Path) -> None:
    task = load_toy_task("shapes_a", toy_folder, tmp_path / "pixels")
    before = opened_store.routes(opened_store.release())[task.name].quality
    outcome = evolve_task(task, opened_store, replace(TINY_CONFIG, seed=3))
    after = outcome.route.quality
    assert before is not None
    assert after is not None
    assert after.score >= before.score or not outcome.is_new
    assert iterations(opened_store, task.name) == [1, 2]
    assert outcome.route.lineage.iteration == (2 if outcome.is_new else 1)


def test_the_journal_tells_every_candidate(opened_store: Store) -> None:
    journal = Journal(opened_store, TaskName("shapes_b"), 1)
    start, end, records = journal.start(), journal.end(), journal.generation(0)
    assert start is not None
    assert start.config == TINY_CONFIG
    assert end is not None
    assert end.route == opened_store.release().tasks[TaskName("shapes_b")]
    assert records is not None
    assert [record.candidate.name for record in records] == ["shapes_b/1/0/0", "shapes_b/1/0/1"]
    assert all(len(record.curve) == TINY_CONFIG.validations and record.images for record in records)


def test_private_components_are_not_offered(opened_store: Store, toy_folder: Path, tmp_path: Path) -> None:
    secret = evolve_task(load_toy_task("secret", toy_folder, tmp_path), opened_store, TINY_CONFIG, private=True)
    many = replace(TINY_CONFIG, children_per_generation=8, epochs=0.2)
    open_task = evolve_task(load_toy_task("open", toy_folder, tmp_path), opened_store, many)
    records = Journal(opened_store, TaskName("open"), 1).generation(0)
    assert records is not None
    parents = {record.candidate.parent.partition("@")[0] for record in records}
    assert parents == {"root", "shapes_a", "shapes_b"}
    assert not open_task.route.private
    assert secret.route.private


def test_a_task_removed_meanwhile_is_not_released(opened_store: Store, toy_folder: Path, tmp_path: Path) -> None:
    task = load_toy_task("shapes_a", toy_folder, tmp_path)

    def removing(candidates: Sequence[Candidate], task: Task, pool: WeightPool, plan: TrainPlan) -> Iterator[Trained]:
        yield from one_after_another(candidates, task, pool, plan)
        without = {name: route for name, route in opened_store.release().tasks.items() if name != task.name}
        opened_store.publish(lambda _: without, reason="removed")

    with pytest.raises(PublishConflict, match="task 'shapes_a' was removed while this route was made"):
        evolve_task(task, opened_store, replace(TINY_CONFIG, seed=5, learning_rate=0.1, epochs=6), execute=removing)
    assert "shapes_a" not in opened_store.release().tasks


def test_an_image_size_that_the_root_does_not_take_is_refused(opened_store: Store, toy_task: Task) -> None:
    with pytest.raises(InvalidConfig, match=r"image_size = 20: this root takes one of 8, 16"):
        evolve_task(toy_task, opened_store, replace(TINY_CONFIG, image_size=20))


def test_pixels_stay_within_their_bounds(opened_store: Store, toy_folder: Path, tmp_path: Path) -> None:
    """Also where the task's present route is from before them: shapes_a takes 16 pixels."""
    task = load_toy_task("shapes_a", toy_folder, tmp_path)
    assert opened_store.routes(opened_store.release())[task.name].image_size == 16
    bounded = replace(TINY_CONFIG, max_image_size=8, image_size=None, mutation_rate=0.3, generations=3, seed=3)
    evolve_task(task, opened_store, bounded)
    journal = Journal(opened_store, task.name, 2)
    records = [record for number in range(3) for record in journal.generation(number) or []]
    assert {record.candidate.data.image_size for record in records} == {8}
    with pytest.raises(InvalidConfig, match="this root takes 8, 16, and none of these lies between"):
        evolve_task(task, opened_store, replace(TINY_CONFIG, min_image_size=9, max_image_size=15))


def test_one_task_is_not_evolved_twice_at_once(opened_store: Store, toy_task: Task) -> None:
    with alone(opened_store, toy_task.name), pytest.raises(TaskBusy, match="by another process: wait for it"):
        evolve_task(toy_task, opened_store, TINY_CONFIG)
    assert evolve_task(toy_task, opened_store, TINY_CONFIG).is_new


def test_an_image_size_is_checked_also_where_the_search_goes_on(
    opened_store: Store, toy_folder: Path, tmp_path: Path
) -> None:
    task = load_toy_task("shapes_a", toy_folder, tmp_path)
    with pytest.raises(InvalidConfig, match=r"image_size = 20: this root takes one of 8, 16"):
        evolve_task(task, opened_store, replace(TINY_CONFIG, seed=8, image_size=20))


def test_a_publish_reads_no_file_again_that_an_earlier_one_found_right(opened_store: Store, toy_task: Task) -> None:
    evolve_task(toy_task, opened_store, TINY_CONFIG)
    release = opened_store.release()
    proven = Proven(opened_store)
    found = verify(opened_store, [release.number], proven.has)
    assert not found.problems
    assert list(found.routes) == [release.tasks[toy_task.name]]  # what this publish added; the others it had read
    old = opened_store.route(release.tasks[TaskName("shapes_a")], needed_by="this test").components[-1]
    damaged = opened_store.folder / "objects" / f"{old.id}.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    assert verify(opened_store, [release.number], Proven(opened_store).has).problems
    (opened_store.folder / "work" / "proven.json").write_bytes(b"torn")
    assert not Proven(opened_store).has(release.root)


def test_nothing_is_published_beside_a_damaged_task(opened_store: Store, toy_task: Task) -> None:
    route = opened_store.routes(opened_store.release())[TaskName("shapes_a")]
    head = route.stages[-1].components[-1]
    damaged = opened_store.folder / "objects" / f"{head.id}.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    with pytest.raises(
        DamagedObject, match=f"nothing was published, since release 2 is not whole any more: .*{head.id}"
    ):
        evolve_task(toy_task, opened_store, TINY_CONFIG)
    assert opened_store.current().release == 2
