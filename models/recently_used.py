"""Values that were used lately, as many as fit into so many bytes."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class RecentlyUsed(Generic[Value]):
    """What was used longest ago goes once all values together are larger than allowed. Safe in several threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Value | None:
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept.move_to_end(key)
            return found[0]

    def keep(self, key: Hashable, value: Value, num_bytes: int) -> None:
        """Keep a value unless there is one already, or it is larger than all together may be."""
        with self._lock:
            if key in self._kept or num_bytes > self._max_bytes:
                return
            self._kept[key] = value, num_bytes
            self._bytes += num_bytes
            while self._bytes > self._max_bytes:
                _, (_, size) = self._kept.popitem(last=False)
                self._bytes -= size
