"""What was read on this machine and found right: a file that looks as it did then need not be read again.

Objects are never rewritten, so a publish need not read the whole store each time to prove the release that it
builds on: the time of a publish would grow with the number of tasks. It reads what is new or was touched since.
Bits that rot without a change of size or time are found by `mu2net releases verify`, which reads everything.
"""

import json
from collections.abc import Iterable, Mapping

from models.files import LocalFiles
from models.names import RouteId
from models.store import Store

FILE = "work/proven.json"  # of this machine alone; deleting it costs one full read

Look = tuple[int, float]  # size in bytes and time of the last change


class Proven:
    """The routes all of whose files were found right, and how these files looked."""

    def __init__(self, store: Store) -> None:
        self._files: LocalFiles = store.local_files
        self._now: dict[str, Look] = {info.name: (info.size, info.modified_at) for info in self._files.infos("objects")}
        self._then, self._routes = _read(self._files)

    def has(self, route_id: RouteId) -> bool:
        """Whether a route was found right, and all its files look the same since."""
        names = self._routes.get(route_id, [])
        return bool(names) and all(name in self._now and self._now[name] == self._then.get(name) for name in names)

    def keep(self, wanted: Iterable[RouteId], found: Mapping[RouteId, Iterable[str]]) -> None:
        """Remember what is known of the `wanted` routes, and of those whose files were `found` right just now.

        A file that was changed while it was read looks different from when this object was made, and is read again.
        """
        if not found:
            return
        routes = {route_id: self._routes[route_id] for route_id in wanted if self.has(route_id)}
        routes |= {route_id: sorted(names) for route_id, names in found.items()}
        looks = {name: self._now[name] for names in routes.values() for name in names if name in self._now}
        self._files.replace(FILE, json.dumps({"files": looks, "routes": routes}).encode())


def _read(files: LocalFiles) -> tuple[dict[str, Look], dict[RouteId, list[str]]]:
    try:
        known = json.loads(files.read(FILE))
        looks = {name: (int(size), float(time)) for name, (size, time) in known["files"].items()}
        return looks, {RouteId(route): [str(name) for name in names] for route, names in known["routes"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # not there yet, or damaged: read all again
        return {}, {}
