"""Room that all clients share: places for requests, bodies, streams and uploads, and the bytes of bodies.

Each kind has a total of its own, so what waits for a slow client never takes the place of what computes. The
fuller a kind is, the less of it one holder may have: a newcomer finds room, however much the others hold.
"""

from dataclasses import dataclass

from models.errors import BodiesFull, Overloaded
from service.settings import Settings

# Dynamic threshold (Choudhury & Hahne 1998): a holder may have so many times the room that is left. Here what is held
# may stay for hours: of holders who come one after the other each takes a third of what is left, and keeps it. After
# eight of them a 25th is left; with the 4 of the queue, where images come and go, nothing would be.
SHARE = 0.5


class Room:
    """A total that holders take from and give back to. Use from one event loop."""

    def __init__(self, total: int, what: str, refusal: type[Overloaded] = Overloaded) -> None:
        """
        Args:
            total: how much there is.
            what: what is counted, as the messages name it: 'requests are under way'.
            refusal: what is raised where there is no room.
        """
        self._total = total
        self._what = what
        self._refusal = refusal
        self._used = 0
        self._held: dict[str, int] = {}  # of a Counter a missing name costs three times as much

    @property
    def used(self) -> int:
        return self._used

    def take(self, holder: str, amount: int = 1) -> None:
        """Hold `amount` more until `give_back`.

        Raises:
            Overloaded: there is no room, or `holder` has its share of it.
        """
        free, own = self._total - self._used, self._held.get(holder, 0)
        if amount > free:
            raise self._refusal(
                f"{self._used:,} {self._what}, as many as may be; try again after the time in Retry-After"
                if amount == 1
                else f"{self._used:,} {self._what}, {amount:,} more would exceed {self._total:,}; try again after the "
                "time in Retry-After"
            )
        if own and own + amount > SHARE * free:
            raise self._refusal(
                f"{own:,} {self._what} for this client alone, which is its share: room for {free:,} more is left to "
                "all; try again after the time in Retry-After"
            )
        self._used += amount
        self._held[holder] = own + amount

    def give_back(self, holder: str, amount: int = 1) -> None:
        self._used -= amount
        own = self._held[holder] - amount
        if own:
            self._held[holder] = own
        else:
            del self._held[holder]


@dataclass(frozen=True, slots=True)
class Places:
    """The server's room, kind by kind."""

    requests: Room  # that compute, or look something up
    bodies: Room  # that are being received
    body_bytes: Room  # in memory, until their requests are answered
    uploads: Room  # of labelled images, until their jobs are queued
    upload_bytes: Room  # on this machine's disk
    streams: Room


def places_of(settings: Settings) -> Places:
    return Places(
        requests=Room(settings.max_requests, "requests are under way"),
        bodies=Room(settings.max_bodies, "request bodies are being received", BodiesFull),
        body_bytes=Room(settings.max_body_bytes_under_way, "bytes of request bodies are under way", BodiesFull),
        uploads=Room(settings.max_uploads, "uploads are under way", BodiesFull),
        upload_bytes=Room(settings.max_upload_bytes_under_way, "bytes of uploads are under way", BodiesFull),
        streams=Room(settings.max_streams, "event streams are open"),
    )
