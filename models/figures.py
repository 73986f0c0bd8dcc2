"""What each task of a release costs, in numbers: one definition for the command line, the service and reports."""

from collections.abc import Mapping
from dataclasses import dataclass

from models.names import TaskName
from models.route import Route, accounted_parameters, component_usage


@dataclass(frozen=True, slots=True)
class TaskFigures:
    """Sizes are numbers of weights, costs floating-point operations of one image."""

    parameters: int  # that a request runs through
    parameters_added: int  # of components that only this task uses
    accounted_parameters: float
    flops: int
    root_flops: int


def task_figures(routes: Mapping[TaskName, Route], root: Route) -> dict[TaskName, TaskFigures]:
    """Return the figures of all tasks of a release."""
    usage = component_usage(routes.values())
    shared_with_root = root.component_ids
    figures = {}
    for task, route in routes.items():
        others = {component: usage[component] - 1 for component in route.component_ids if usage[component] > 1}
        own = {c.id: c.parameters for c in route.components if c.id not in others and c.id not in shared_with_root}
        figures[task] = TaskFigures(
            parameters=route.parameters,
            parameters_added=sum(own.values()),
            accounted_parameters=accounted_parameters(route.components, others),
            flops=route.flops,
            root_flops=root.flops,
        )
    return figures
