"""What a process keeps in memory because it will need it again, and how arrays get onto a device."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

Value = TypeVar("Value")

RESERVED_SHARE = 0.5  # of a GPU's memory, from which on what finished graphs computed in is given back


class Kept(Generic[Value]):
    """The values last used, up to so many bytes."""

    def __init__(self) -> None:
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable, make: Callable[[], Value], num_bytes: int, *, most_bytes: int) -> Value:
        """Return the value of `key`, made if it is not there; then forget those not used for longest.

        One that is larger than all may be is not kept.

        Args:
            key: names the device as well.
            make: makes the value; on a GPU it is complete for all streams before it is returned.
            num_bytes: of the value.
            most_bytes: that all values may have.
        """
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key][0]
        value = make()
        is_on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        if is_on_gpu:
            torch.cuda.current_stream().synchronize()
        if num_bytes > most_bytes:
            return value
        self._values[key] = value, num_bytes
        while sum(size for _, size in self._values.values()) > most_bytes:
            if is_on_gpu:  # another lane's stream may still read what goes
                torch.cuda.synchronize()
            self._values.popitem(last=False)
        return value


def to_device(array: np.ndarray, device: str) -> Tensor:
    """Copy an array to a device; to a GPU without waiting for what that still computes."""
    values = torch.from_numpy(array)
    return values if device == "cpu" else values.pin_memory().to(device, non_blocking=True)


def free_graphs() -> None:
    """Give the memory of finished CUDA graphs back, when much of a GPU's is taken: no other graph would use it."""
    if torch.cuda.memory_reserved() > RESERVED_SHARE * torch.cuda.get_device_properties().total_memory:
        torch.cuda.empty_cache()
