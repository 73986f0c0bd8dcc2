"""The queue's promises: bounded, neighbours are safe from one another, whoever gives up leaves."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from models.errors import Overloaded
from service.batcher import Batcher
from service.engine import LoadedRoute, Logits, Row
from service.metrics import Metrics

Result = TypeVar("Result")
BAD = 255


@dataclass(frozen=True)
class AnyRoute:
    """As much of a route as the queue looks at."""

    task: str
    flops: int = 1
    private: bool = False
    prefixes: tuple[bytes, ...] = (b"",)

    @property
    def route(self) -> "AnyRoute":
        return self


def row(value: int, task: str = "a") -> Row:
    return Row(np.full((1, 1, 3), value, np.uint8), cast(LoadedRoute, AnyRoute(task)))


class SlowEngine:
    """Answers each row with its pixel, as soon as it is let; fails on `BAD`."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.started = threading.Semaphore(0)
        self.may_end = threading.Event()

    def run(self, rows: Sequence[Row]) -> list[Logits]:
        values = [int(row.pixels[0, 0, 0]) for row in rows]
        self.batches.append(values)
        self.started.release()
        assert self.may_end.wait(5)
        if BAD in values:
            raise RuntimeError("bad row")
        return [np.array([value], np.float32) for value in values]

    def pieces(self, *values: int) -> Generator[None, None, list[Logits]]:
        """Answer one value in each piece."""
        answers = []
        for value in values:
            answers += self.run([row(value)])
            yield
        return answers


def with_batcher(
    scenario: Callable[[Batcher, SlowEngine], Coroutine[Any, Any, Result]],
    *,
    rows: int = 64,
    images: int = 100,
    batch_s: float = 1e6,
) -> tuple[Result, SlowEngine, Metrics]:
    """Run `scenario` beside a started batcher and return what it returned."""
    slow, metrics = SlowEngine(), Metrics(CollectorRegistry())

    async def run() -> Result:
        batcher = Batcher(slow.run, max_batch_rows=rows, max_batch_s=batch_s, max_queue_images=images, metrics=metrics)
        batcher.start()
        try:
            return await scenario(batcher, slow)
        finally:
            slow.may_end.set()
            await batcher.stop()

    return asyncio.run(run()), slow, metrics


async def submit_behind_a_running_one(
    batcher: Batcher, slow: SlowEngine, values: Sequence[int], tasks: Sequence[str] = ()
) -> "list[asyncio.Task[list[Logits]]]":
    """Submit 1 and, while the engine is busy with it, all `values`."""
    first = asyncio.create_task(batcher.submit([row(1)]))
    await asyncio.to_thread(slow.started.acquire)
    rest = [
        asyncio.create_task(batcher.submit([row(value, task)]))
        for value, task in zip(values, tasks or ["a"] * len(values), strict=True)
    ]
    await asyncio.sleep(0)
    return [first, *rest]


def test_what_gathers_while_the_engine_is_busy_runs_together_in_order() -> None:
    async def scenario(batcher: Batcher, slow: SlowEngine) -> list[float]:
        tasks = await submit_behind_a_running_one(batcher, slow, [2, 3, 4])
        slow.may_end.set()
        return [float(answer[0][0]) for answer in await asyncio.gather(*tasks)]

    answers, slow, _ = with_batcher(scenario)
    assert answers == [1, 2, 3, 4]
    assert slow.batches == [[1], [2, 3, 4]]


def test_batches_keep_to_their_limit_and_a_larger_image_goes_alone() -> None:
    async def scenario(batcher: Batcher, slow: SlowEngine) -> None:
        tasks = await submit_behind_a_running_one(batcher, slow, [2, 3, 4])
        tasks.append(asyncio.create_task(batcher.submit([row(5)] * 3)))
        await asyncio.sleep(0)
        slow.may_end.set()
        await asyncio.gather(*tasks)

    _, slow, _ = with_batcher(scenario, rows=2)
    assert slow.batches == [[1], [2], [5, 5, 5], [3, 4]]


def test_a_row_that_fails_the_engine_fails_nobody_else() -> None:
    async def scenario(batcher: Batcher, slow: SlowEngine) -> list[list[Logits] | BaseException]:
        tasks = await submit_behind_a_running_one(batcher, slow, [2, BAD, 4])
        slow.may_end.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers, _, _ = with_batcher(scenario)
    assert [isinstance(answer, RuntimeError) for answer in answers] == [False, False, True, False]


def test_whoever_gives_up_leaves_the_queue() -> None:
    async def scenario(batcher: Batcher, slow: SlowEngine) -> None:
        tasks = await submit_behind_a_running_one(batcher, slow, [2, 3])
        tasks[1].cancel()
        await asyncio.sleep(0)
        slow.may_end.set()
        await asyncio.gather(*tasks, return_exceptions=True)

    _, slow, _ = with_batcher(scenario)
    assert slow.batches == [[1], [3]]


def test_a_request_given_up_while_it_runs_harms_nobody() -> None:
    async def scenario(batcher: Batcher, slow: SlowEngine) -> float:
        first, second = await submit_behind_a_running_one(batcher, slow, [2])
        first.cancel()
        slow.may_end.set()
        return float((await second)[0][0])

    assert with_batcher(scenario)[0] == 2


def test_a_full_queue_refuses_and_has_room_again_afterwards() -> None:
    async def scenario(batcher: Batcher, slow: SlowEngine) -> str:
        with batcher.admit(("a",), 3):
            with pytest.raises(Overloaded) as caught, batcher.admit(("b",), 2):
                pass
            with batcher.admit(("b",), 1):
                pass
        with batcher.admit(("a",), 4):
            return str(caught.value)

    message, _, metrics = with_batcher(scenario, images=4)
    assert message == (
        "the queue is full: 3 images are waiting, 2 more would exceed 4; try again after the time in Retry-After"
    )
    assert "mu2net_queue_images 0.0" in metrics.render(None).decode()


def test_a_flooded_task_leaves_room_for_the_clients_others() -> None:
    async def scenario(batcher: Batcher, slow: SlowEngine) -> str:
        with contextlib.ExitStack() as held:
            for _ in range(7):
                held.enter_context(batcher.admit(("flood",), 1))
            with pytest.raises(Overloaded) as caught:
                held.enter_context(batcher.admit(("flood",), 1))
            held.enter_context(batcher.admit(("calm",), 1))
        return str(caught.value)

    message, _, _ = with_batcher(scenario, images=10)
    assert message == (
        "the share of flood is full: 7 of its images are waiting for this client, and room for 3 more is left to all "
        "its tasks; try again after the time in Retry-After"
    )


def test_a_client_with_a_full_share_leaves_room_for_another_and_the_same_task() -> None:
    async def scenario(batcher: Batcher, slow: SlowEngine) -> list[str]:
        told = []
        with contextlib.ExitStack() as held:
            for task in "abcdefgh":
                held.enter_context(batcher.admit((task,), 1, "flood"))
            with pytest.raises(Overloaded) as caught:
                held.enter_context(batcher.admit(("i",), 1, "flood"))
            told.append(str(caught.value))
            with pytest.raises(Overloaded) as caught:
                held.enter_context(batcher.admit(("a",), 2, "another flood"))
            told.append(str(caught.value))
            held.enter_context(batcher.admit(("a",), 1, "calm"))
        return told

    told, _, _ = with_batcher(scenario, images=10)
    assert told == [
        "the queue's share of this client is full: 8 of its images are waiting, and room for 2 more is left to all; "
        "try again after the time in Retry-After",
        "8 images are waiting, and 2 more would take over half of the room that is left, for 2: send fewer at once; "
        "try again after the time in Retry-After",
    ]


def test_clients_take_turns_however_long_their_lines() -> None:
    async def scenario(batcher: Batcher, slow: SlowEngine) -> None:
        first = asyncio.create_task(batcher.submit([row(1)]))
        await asyncio.to_thread(slow.started.acquire)
        asked = [(2, "a", "x"), (3, "a", "x"), (4, "b", "x"), (5, "a", "x"), (6, "a", "y"), (7, "a", "z")]
        jobs = [asyncio.create_task(batcher.submit([row(value, task)], client)) for value, task, client in asked]
        await asyncio.sleep(0)
        slow.may_end.set()
        await asyncio.gather(first, *jobs)

    _, slow, _ = with_batcher(scenario, rows=2)
    assert slow.batches == [[1], [2, 6], [7, 4], [3, 5]]


def test_tasks_take_turns_however_long_their_lines() -> None:
    async def scenario(batcher: Batcher, slow: SlowEngine) -> None:
        jobs = await submit_behind_a_running_one(batcher, slow, [2, 3, 4, 5, 6, 7], ["a", "a", "a", "a", "b", "c"])
        slow.may_end.set()
        await asyncio.gather(*jobs)

    _, slow, _ = with_batcher(scenario, rows=2)
    assert slow.batches == [[1], [2, 6], [7, 3], [4, 5]]


def test_a_batch_is_as_large_as_its_time_allows() -> None:
    async def scenario(batcher: Batcher, slow: SlowEngine) -> None:
        jobs = await submit_behind_a_running_one(batcher, slow, [2, 3])
        slow.may_end.set()
        await asyncio.gather(*jobs)

    _, slow, _ = with_batcher(scenario, batch_s=1e-9)
    assert slow.batches == [[1], [2], [3]]


def test_waiting_and_batches_are_counted_for_each_task() -> None:
    async def scenario(batcher: Batcher, slow: SlowEngine) -> None:
        jobs = await submit_behind_a_running_one(batcher, slow, [2, 3], ["a", "b"])
        slow.may_end.set()
        await asyncio.gather(*jobs)

    text = with_batcher(scenario)[2].render(None).decode()
    assert 'mu2net_queue_seconds_count{task="a"} 2.0' in text
    assert 'mu2net_batch_rows_sum{task="b"} 2.0' in text


def test_golden_samples_let_requests_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.batcher.YIELD_S", 10.0)

    async def scenario(batcher: Batcher, slow: SlowEngine) -> None:
        asked = await submit_behind_a_running_one(batcher, slow, [])
        golden = asyncio.create_task(asyncio.to_thread(batcher.run_in_turns, slow.pieces(8, 9)))
        await asyncio.sleep(0.02)
        asked.append(asyncio.create_task(batcher.submit([row(2)])))
        await asyncio.sleep(0)
        slow.may_end.set()
        await asyncio.gather(golden, *asked)

    assert with_batcher(scenario)[1].batches == [[1], [2], [8], [9]]


def test_golden_samples_take_turns_with_batches() -> None:
    async def scenario(batcher: Batcher, slow: SlowEngine) -> float:
        (first,) = await submit_behind_a_running_one(batcher, slow, [])
        golden = asyncio.create_task(asyncio.to_thread(batcher.run_in_turns, slow.pieces(9)))
        await asyncio.sleep(0.02)
        assert slow.batches == [[1]]  # not beside the batch that runs
        slow.may_end.set()
        await first
        return float((await golden)[0][0])

    assert with_batcher(scenario)[0] == 9


def test_the_engine_has_no_watchers_low_priority() -> None:
    """The engine's thread is a copy of whoever makes it, so the watcher, which is nice, must not be the first."""

    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def piece() -> Generator[None, None, int]:
        yield
        return niceness()

    def be_nice_and_run(batcher: Batcher) -> tuple[int, int]:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness() + 5)
        return niceness(), batcher.run_in_turns(piece())

    async def scenario(batcher: Batcher, _: SlowEngine) -> tuple[int, int]:
        return await asyncio.to_thread(be_nice_and_run, batcher)

    watchers, engines = with_batcher(scenario)[0]
    assert engines == watchers - 5
