"""The releases in memory that requests may be answered from: the live one, and some that were live before it.

Staying resident makes a rollback immediate and lets a request pin the release of an earlier answer. What
releases share is held once, so one more costs what is its own.
"""

from collections.abc import Sequence

from models.errors import NotReady, ReleaseNotResident
from service.release import LoadedRelease


class Residents:
    """Written by the watcher's thread alone; what requests see is replaced in one step."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: tuple[LoadedRelease, ...] = ()  # the live one first

    @property
    def live(self) -> LoadedRelease | None:
        held = self._held
        return held[0] if held else None

    @property
    def held(self) -> tuple[LoadedRelease, ...]:
        """Return all of them, the live one first."""
        return self._held

    def swap(self, release: LoadedRelease) -> Sequence[LoadedRelease]:
        """Make `release` the live one; return those that are resident no longer."""
        others = [held for held in self._held if held is not release]
        self._held = (release, *others[: self._limit - 1])
        return others[self._limit - 1 :]

    def find(self, number: int) -> LoadedRelease | None:
        return next((held for held in self._held if held.number == number), None)

    def pinned(self, number: int) -> LoadedRelease:
        """Return the resident release that a request asks for.

        Raises:
            ReleaseNotResident: it is none; the message lists those that are.
            NotReady: there is none at all.
        """
        found = self.find(number)
        if found is not None:
            return found
        if not self._held:
            raise NotReady("not ready: no release has been loaded yet; /v1/releases says why, if it failed")
        numbers = ", ".join(str(held.number) for held in self._held)
        raise ReleaseNotResident(
            f"release {number} is not resident here; resident: {numbers}: ask for one of these, or leave the header "
            "MU2NET-Release away (MU2NET_RESIDENT_RELEASES is how many stay)"
        )
