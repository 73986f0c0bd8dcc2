"""A candidate: a route in the making. It knows its parent, what it changed and what it may train."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

from evolve.hparams import DataHParams, OptimiserHParams
from models.component import ComponentRecord
from models.names import ComponentId
from models.network import NetworkShape, flops
from models.route import Route, Scalar, adapter_dims

RATE_PREFIX = "rate of "  # before an action's name, among a route's hyperparameters


@dataclass(frozen=True, slots=True)
class Part:
    """A component as a candidate has it.

    `is_own` says that no other task and not the root locks it, so this task's candidates may train it,
    always on a copy: training gives the part a new id.
    """

    component: ComponentRecord
    is_own: bool
    momentum: ComponentId | None = None  # optimiser state that travels with the weights, in the run's pool


@dataclass(frozen=True, slots=True)
class Candidate:
    """A recipe for a route. Its parts are in the order of computation, each adapter before its block."""

    name: str  # task/iteration/generation/place, unique in the journal; "root" and "task@route" for seeds
    parent: str  # the name of the candidate or seed it was made from; "" for seeds
    parts: tuple[Part, ...]
    labels: tuple[str, ...]
    hparams: OptimiserHParams
    data: DataHParams
    mutations: tuple[str, ...] = ()
    rates: Mapping[str, float] = field(default_factory=dict)  # of actions whose learnt rate is not µ

    @property
    def components(self) -> tuple[ComponentRecord, ...]:
        return tuple(part.component for part in self.parts)

    @property
    def depth(self) -> int:
        return sum(part.component.kind == "block" for part in self.parts)

    def flops(self, network: NetworkShape) -> int:
        """Return the floating-point operations of one image through the finished route."""
        return flops(
            network,
            image_size=self.data.image_size,
            adapter_dims=adapter_dims(self.components, network.embed_dim),
            num_classes=len(self.labels),
        )


def seed_candidate(
    name: str, route: Route, locked: frozenset[ComponentId], first_hparams: OptimiserHParams
) -> Candidate:
    """Return a published route as an ancestor; what nobody locks in it may be trained further."""
    parts = tuple(Part(component, is_own=component.id not in locked) for component in route.components)
    if route.task is None:
        return Candidate(name, "", parts, route.labels, first_hparams, DataHParams(route.image_size))
    hparams = OptimiserHParams(**_pick(OptimiserHParams, route))  # type: ignore[arg-type]  # checked by the class
    data = DataHParams(**_pick(DataHParams, route))  # type: ignore[arg-type]
    rates = {
        action.removeprefix(RATE_PREFIX): float(rate)
        for action, rate in route.hparams.items()
        if action.startswith(RATE_PREFIX)
    }
    return Candidate(name, "", parts, route.labels, hparams, data, rates=rates)


def route_hparams(candidate: Candidate) -> dict[str, Scalar]:
    """Return the hyperparameters that the candidate's route records."""
    rates = {f"{RATE_PREFIX}{action}": rate for action, rate in candidate.rates.items()}
    return asdict(candidate.hparams) | asdict(candidate.data) | rates


def _pick(kind: type[OptimiserHParams] | type[DataHParams], route: Route) -> dict[str, Scalar]:
    return {field.name: route.hparams[field.name] for field in fields(kind) if field.name in route.hparams}
