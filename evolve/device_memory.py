"""What a process keeps in memory because it will need it again, and how arrays get onto a device."""

import gc
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

Value = TypeVar("Value")

INPUTS_SHARE = 0.25  # of a GPU's memory, for the inputs last used
RESERVED_SHARE = 0.5  # of it, from which on what finished graphs computed in is given back


class Kept(Generic[Value]):
    """The values last used, up to so many bytes; one that somebody still has is found again in any case."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._alive: WeakValueDictionary[Hashable, Value] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, make: Callable[[], Value], num_bytes: int, *, most_bytes: int) -> Value:
        """Return the value of `key`, made if it is not there; then forget those not used for longest.

        One that is larger than all may be is not kept.

        Args:
            key: names the device as well.
            make: makes the value; on a GPU it is complete for all streams before it is returned.
            num_bytes: of the value.
            most_bytes: that all values may have.
        """
        value = self._alive.get(key)
        is_on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        if value is None:
            value = make()
            self._alive[key] = value
            if is_on_gpu:
                torch.cuda.current_stream().synchronize()
        if num_bytes > most_bytes:
            return value
        self._kept[key] = value, num_bytes
        self._kept.move_to_end(key)
        while sum(size for _, size in self._kept.values()) > most_bytes:
            if is_on_gpu:  # another lane's stream may still read what goes
                torch.cuda.synchronize()
            self._kept.popitem(last=False)
        return value

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()


def to_device(array: np.ndarray, device: str) -> Tensor:
    """Copy an array to a device; to a GPU without waiting for what that still computes."""
    values = torch.from_numpy(array)
    return values if device == "cpu" else values.pin_memory().to(device, non_blocking=True)


def free_graphs() -> None:
    """Give the memory of finished CUDA graphs back, when much of a GPU's is taken: no other graph would use it."""
    if torch.cuda.memory_reserved() > RESERVED_SHARE * torch.cuda.get_device_properties().total_memory:
        torch.cuda.empty_cache()


def used_share() -> float:
    """Return the largest share of a GPU's memory that this process had in use."""
    return torch.cuda.max_memory_allocated() / float(torch.cuda.get_device_properties().total_memory)


def give_memory_back() -> None:
    """Give a GPU all memory back that nothing is in any more."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
