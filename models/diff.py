"""Diff: which tasks one release has otherwise than another, and what is new to it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from models.names import ComponentId, RouteId, TaskName
from models.release import Release, changed_tasks
from models.route import Route
from models.store import Store

What = Literal["added", "removed", "changed"]


@dataclass(frozen=True, slots=True)
class TaskDifference:
    """One task that the two releases have not alike; what belongs to a release that lacks it is None."""

    task: TaskName
    what: What
    route_before: RouteId | None
    route_after: RouteId | None
    validation_before: float | None  # accuracy, 0 to 1; None also where it was never measured
    validation_after: float | None
    is_private: bool  # in one of the releases at least
    new_parameters: int  # of the new route's components, those that no route of the release before has


def _every(_: Route) -> bool:
    return True


def diff(
    store: Store, before: Release, after: Release, *, sees: Callable[[Route], bool] = _every
) -> list[TaskDifference]:
    """Return what differs from one release to another, by task.

    Where `sees` refuses a task's route in either release, nothing is said of the task nor computed with it.

    Raises:
        StoreError: a route's record is missing or damaged.
    """
    old_routes, new_routes = store.routes(before), store.routes(after)
    hidden = {task for routes in (old_routes, new_routes) for task, route in routes.items() if not sees(route)}
    old_routes, new_routes = _without(hidden, old_routes), _without(hidden, new_routes)
    known = {component for route in old_routes.values() for component in route.component_ids}
    known |= store.route(before.root, needed_by=f"release {before.number} as its root").component_ids
    return [
        TaskDifference(
            task=task,
            what="removed" if task not in new_routes else "changed" if task in old_routes else "added",
            route_before=before.tasks.get(task),
            route_after=after.tasks.get(task),
            validation_before=_accuracy(old_routes.get(task)),
            validation_after=_accuracy(new_routes.get(task)),
            is_private=any(routes[task].private for routes in (old_routes, new_routes) if task in routes),
            new_parameters=_new_parameters(new_routes.get(task), known),
        )
        for task in changed_tasks(before.tasks, after.tasks)
        if task not in hidden
    ]


def _without(hidden: set[TaskName], routes: Mapping[TaskName, Route]) -> dict[TaskName, Route]:
    return {task: route for task, route in routes.items() if task not in hidden}


def _accuracy(route: Route | None) -> float | None:
    return route.quality.validation_accuracy if route and route.quality else None


def _new_parameters(route: Route | None, known: set[ComponentId]) -> int:
    own = {component.id: component.parameters for component in route.components} if route else {}
    return sum(parameters for component, parameters in own.items() if component not in known)
