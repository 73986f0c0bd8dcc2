"""A release: a numbered, immutable set of routes. The service answers from exactly one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from models.errors import InvalidRoute, UnknownTask
from models.names import RouteId, TaskName
from models.precision import Precision

TaskChange = Callable[[Mapping[TaskName, RouteId]], Mapping[TaskName, RouteId]]


@dataclass(frozen=True, slots=True)
class Release:
    """Which route answers for which task. `created_at` is UTC, ISO 8601.

    `precisions` are those that its routes have beside float32, each with the points of validation accuracy that
    a route may lose by it; what is published on top of the release keeps to them.
    """

    number: int
    parent: int | None  # the release it was made from; None for the first
    root: RouteId
    tasks: Mapping[TaskName, RouteId]
    reason: str  # what this release changed, for people
    created_at: str
    precisions: Mapping[Precision, float] = field(default_factory=dict)
    format_version: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "format_version", 2 if self.precisions else 1)  # older software would not keep them
        if self.number < 0 or (self.parent is not None and self.parent >= self.number):
            raise InvalidRoute(f"release {self.number} cannot follow release {self.parent}: numbers only grow")

    def route_id(self, task: TaskName) -> RouteId:
        """Return the task's route.

        Raises:
            UnknownTask: the release has no such task; the message lists those it has.
        """
        if task not in self.tasks:
            raise UnknownTask(unknown_task(task, self.tasks))
        return self.tasks[task]

    def successor(
        self,
        tasks: Mapping[TaskName, RouteId],
        *,
        number: int,
        reason: str,
        created_at: str,
        precisions: Mapping[Precision, float] | None = None,
    ) -> "Release":
        """Return the release that follows; `precisions` None keeps those of this one."""
        return replace(
            self,
            number=number,
            parent=self.number,
            tasks=tasks,
            reason=reason,
            created_at=created_at,
            precisions=self.precisions if precisions is None else precisions,
        )


def changed_tasks(
    before: Mapping[TaskName, RouteId], after: Mapping[TaskName, RouteId]
) -> dict[TaskName, RouteId | None]:
    """Return the tasks whose route differs, with the new one; None for a task that is gone."""
    return {task: after.get(task) for task in sorted({*before, *after}) if before.get(task) != after.get(task)}


def with_changes(
    tasks: Mapping[TaskName, RouteId], changes: Mapping[TaskName, RouteId | None]
) -> dict[TaskName, RouteId]:
    """Return `tasks` with the changes of `changed_tasks` put in."""
    merged = {**tasks, **changes}
    return {task: route for task, route in merged.items() if route is not None}


def require_task(task: str, known: Mapping[TaskName, object]) -> TaskName:
    """Return `task` as a known task's name; UnknownTask if it is none."""
    if task not in known:
        raise UnknownTask(unknown_task(task, known))
    return TaskName(task)


def unknown_task(task: str, known: Mapping[TaskName, object]) -> str:
    """Return the message for a task name that nothing has."""
    names = ", ".join(sorted(known)) or "none yet: add one with 'mu2net evolve'"
    return f"no route for task {task[:80]!r}; known tasks: {names}"
