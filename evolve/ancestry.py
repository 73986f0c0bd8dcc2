"""Whom a candidate descends from: candidates of its own run, then the published routes before them."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from evolve.candidate import Candidate, Part
from models.names import RouteId
from models.route import Route


class Ancestry:
    """Knows the candidates of a run by name, and follows published routes by the lineage they record."""

    def __init__(
        self, read_route: Callable[[RouteId], Route | None], as_candidate: Callable[[str, Route], Candidate]
    ) -> None:
        self._read_route = read_route
        self._as_candidate = as_candidate
        self._known: dict[str, Candidate] = {}
        self._published: dict[str, RouteId | None] = {}

    def add(self, candidate: Candidate) -> None:
        self._known[candidate.name] = candidate

    def add_seed(self, candidate: Candidate, route: Route) -> None:
        """Add a seed: what it grew from is told by its route."""
        self.add(candidate)
        self._published[candidate.name] = route.lineage.parent

    def named(self, name: str) -> Candidate:
        return self._known[name]

    def of(self, candidate: Candidate) -> Iterator[Candidate]:
        """Yield the candidate and all its ancestors, the nearest first.

        Routes that are published no longer come frozen: their components are to be used as they are.
        """
        nearest: Candidate | None = candidate
        last = candidate
        while nearest is not None:
            yield nearest
            last = nearest
            nearest = self._known.get(nearest.parent)
        route_id = self._published.get(last.name)
        while route_id is not None and (route := self._read_route(route_id)) is not None:
            former = self._as_candidate(f"route {route_id}", route)
            yield replace(former, parts=tuple(Part(part.component, is_own=False) for part in former.parts))
            route_id = route.lineage.parent
