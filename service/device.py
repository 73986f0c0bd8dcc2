"""Activations in a device's own memory: what runs there is bound to it, and rows are gathered there.

Pixels go to the device once a batch, class tokens come back; nothing else crosses. Rows are copied as bytes, by a
graph of one node, so that neither torch nor CUDA's own interface is needed. The code is the same for memory of the
CPU, where tests run it.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import onnxruntime as ort
from jaxtyping import Float

from service.runtime import COPY, FIRST_TOKENS, Runtime

Place = tuple["np.ndarray | DeviceBatch", int]  # a batch and an index in it


class DeviceBatch:
    """Rows in a device's memory; `shape` begins with their number."""

    def __init__(self, device: "Device", value: ort.OrtValue) -> None:
        self._device = device
        self.value = value
        self.shape: tuple[int, ...] = tuple(value.shape())

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        return int(self.value.tensor_size_in_bytes()) // len(self)

    @cached_property
    def first_tokens(self) -> Float[np.ndarray, "batch dim"]:
        """The first token of every row, fetched once for all who ask."""
        return self._device.fetch_first_tokens(self)


class Device:
    """The memory that `runtime` computes in; `kind` is ONNX Runtime's word for it."""

    def __init__(self, runtime: Runtime, kind: str = "cuda") -> None:
        self._kind = kind
        self._copier = runtime.session(COPY)
        self._fetcher = runtime.session(FIRST_TOKENS)

    def run(self, session: ort.InferenceSession, source: str, target: str, places: Sequence[Place]) -> DeviceBatch:
        """Run a session on the rows at `places`, from its input `source` to its output `target`, which stays there."""
        binding = session.io_binding()
        binding.bind_ortvalue_input(source, self._gather(places).value)
        binding.bind_output(target, self._kind)
        session.run_with_iobinding(binding)
        return DeviceBatch(self, binding.get_outputs()[0])

    def _gather(self, places: Sequence[Place]) -> DeviceBatch:
        first = places[0][0]
        if isinstance(first, np.ndarray):  # pixels: none of them is on the device yet
            rows = np.stack([batch[index] for batch, index in places if isinstance(batch, np.ndarray)])
            return DeviceBatch(self, ort.OrtValue.ortvalue_from_numpy(rows, self._kind))
        runs = list(_runs(places))
        if runs == [(first, 0, len(first))]:
            return first
        shape = [len(places), *first.shape[1:]]
        gathered = ort.OrtValue.ortvalue_from_shape_and_type(shape, first.value.element_type(), self._kind)
        to, size = gathered.data_ptr(), first.row_bytes
        for batch, begin, count in runs:
            self._copy(batch.value.data_ptr() + begin * size, to, count * size)
            to += count * size
        return DeviceBatch(self, gathered)

    def _copy(self, source: int, target: int, size: int) -> None:
        """Copy `size` bytes between two addresses of the device."""
        binding = self._copier.io_binding()
        binding.bind_input("x", self._kind, 0, np.uint8, [size], source)
        binding.bind_output("y", self._kind, 0, np.uint8, [size], target)
        self._copier.run_with_iobinding(binding)

    def fetch_first_tokens(self, batch: DeviceBatch) -> Float[np.ndarray, "batch dim"]:
        count, length, _ = batch.shape
        dtype = np.float16 if batch.value.data_type() == "tensor(float16)" else np.float32
        binding = self._fetcher.io_binding()
        shape = [count, length, batch.row_bytes // length]
        binding.bind_input("x", self._kind, 0, np.uint8, shape, batch.value.data_ptr())
        binding.bind_output("y", "cpu")
        self._fetcher.run_with_iobinding(binding)
        return np.array(binding.get_outputs()[0].numpy()).view(dtype).astype(np.float32, copy=False)


def _runs(places: Sequence[Place]) -> Iterator[tuple[DeviceBatch, int, int]]:
    """Return the places as stretches of rows that follow one another in a batch: the batch, where, how many."""
    current: tuple[DeviceBatch, int, int] | None = None
    for batch, index in places:
        assert isinstance(batch, DeviceBatch), "pixels and activations are never in one group"
        if current is not None and current[0] is batch and current[1] + current[2] == index:
            current = (batch, current[1], current[2] + 1)
            continue
        if current is not None:
            yield current
        current = (batch, index, 1)
    if current is not None:
        yield current
