"""How many requests one key may make in a time. Each worker process counts its own."""

import re
import time

from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from models.errors import InvalidConfig, RateLimited
from models.key_list import Key

RATE = r"^[1-9][0-9]{0,8}/(second|minute|hour|day)$"


def check_rate(rate: str) -> str:
    """Return `rate` if it reads as '100/minute' does.

    Raises:
        InvalidConfig: it does not.
    """
    if not re.fullmatch(RATE, rate):
        raise InvalidConfig(
            f"rate {rate[:80]!r} cannot be read: write a number of requests per second, minute, hour or day, "
            "such as 100/minute"
        )
    return rate


class RateLimit:
    """Counts requests by key, over a window that slides."""

    def __init__(self, default_rate: str | None) -> None:
        self._default_rate = default_rate
        self._window = SlidingWindowCounterRateLimiter(MemoryStorage())

    def count(self, key: Key) -> None:
        """Count a request of `key`.

        Raises:
            RateLimited: the key has used up its rate; it says when to try again.
        """
        rate = self._default_rate if key.rate is None else key.rate
        if rate is None:
            return
        limit = parse(rate)
        if not self._window.hit(limit, key.id):
            wait_s = self._window.get_window_stats(limit, key.id).reset_time - time.time()
            raise RateLimited(
                f"key {key.name!r} may make {rate} requests and has: try again after the time in Retry-After",
                retry_after_s=wait_s,
            )
