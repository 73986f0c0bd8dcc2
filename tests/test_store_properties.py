"""Whatever is done to a store, in whatever order: releases are whole and no published change is lost."""

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from models.names import RouteId, TaskName
from models.release import changed_tasks, with_changes
from models.store import Current, Store
from models.verify import verify
from tests.support.small_records import publish_toy, toy_store

NAMES = st.sampled_from("abc")


class StoreMachine(RuleBasedStateMachine):
    """A store beside a model of it: the tasks of each release, the active one, and the changes that wait."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.store = toy_store(str(Path(self._folder.name) / "store"))
        self.tasks: dict[int, dict[TaskName, RouteId]] = {0: {}}
        self.active = 0
        self.held = False
        self.waiting: list[tuple[int, dict[TaskName, RouteId | None]]] = []

    def teardown(self) -> None:
        self._folder.cleanup()

    def _published(self, number: int, tasks: dict[TaskName, RouteId]) -> None:
        base = self.waiting[-1][0] if self.waiting else self.active
        self.tasks[number] = tasks
        if self.held:
            self.waiting.append((number, changed_tasks(self.tasks[base], tasks)))
        else:
            self.active = number

    @rule(name=NAMES, seed=st.integers(1, 3))
    def publish(self, name: str, seed: int) -> None:
        release = publish_toy(self.store, name, seed)
        assert release.number == max(self.tasks) + 1
        base = self.waiting[-1][0] if self.waiting else self.active
        assert release.tasks == {**self.tasks[base], TaskName(name): release.tasks[TaskName(name)]}
        self._published(release.number, dict(release.tasks))

    @precondition(lambda self: self.tasks[self.waiting[-1][0] if self.waiting else self.active])
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        base = self.tasks[self.waiting[-1][0] if self.waiting else self.active]
        name = data.draw(st.sampled_from(sorted(base)))
        release = self.store.remove_task(name)
        assert release.tasks == {task: route for task, route in base.items() if task != name}
        self._published(release.number, dict(release.tasks))

    @rule(data=st.data())
    def activate(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.tasks)))
        self.store.activate(number)
        waiting = [release for release, _ in self.waiting]
        if number in waiting:
            self.waiting = self.waiting[waiting.index(number) + 1 :]
        self.active, self.held = number, True

    @rule()
    def resume(self) -> None:
        expected = self.tasks[self.active]
        for _, changes in self.waiting:
            expected = with_changes(expected, changes)
        current = self.store.resume()
        self.tasks[current.release] = dict(self.store.release(current.release).tasks)
        assert self.tasks[current.release] == expected
        self.active, self.held, self.waiting = current.release, False, []

    @invariant()
    def the_store_says_what_the_model_says(self) -> None:
        waiting = tuple(number for number, _ in self.waiting)
        store = Store.open(self.store.folder)
        assert store.current() == Current(self.active, self.held, waiting)
        assert store.release_numbers() == sorted(self.tasks)
        assert not verify(store, [self.active, *waiting]).problems


StoreMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)
TestStore = StoreMachine.TestCase
