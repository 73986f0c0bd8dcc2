"""A training step on a GPU as one CUDA graph, so that the processor launches it once instead of kernel by kernel.

A ViT-S at batch 64 has kernels of some ten microseconds, which take about as long to launch: the GPU would wait half
of the time.
"""

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

WARM_UP = 3  # steps that are launched kernel by kernel, while libraries choose their ways and make their workspaces

Step = Callable[[Tensor, Tensor], None]


class GraphedStep:
    """`step(values, labels)`, captured after some calls and replayed from then on, on the stream that is current.

    What it reads beside its arguments, and what it changes, must stay where it is in the device's memory.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, Tensor] | None = None

    def __call__(self, values: Tensor, labels: Tensor) -> None:
        """Launch the step for a batch: `values` and `labels` of the same shapes in every call."""
        self._calls += 1
        if self._calls <= WARM_UP:
            self._step(values, labels)
            return
        if self._graph is None or self._inputs is None:
            self._inputs = torch.empty_like(values), torch.empty_like(labels)
            self._graph = self._captured(*self._inputs)
        for place, value in zip(self._inputs, (values, labels), strict=True):
            place.copy_(value)
        self._graph.replay()

    def close(self) -> None:
        """Give up the graph, with the memory that it computes in."""
        if self._graph is not None:
            torch.cuda.current_stream().synchronize()
            self._graph.reset()
        self._graph = self._inputs = None

    def _captured(self, values: Tensor, labels: Tensor) -> torch.cuda.CUDAGraph:
        torch.cuda.current_stream().synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            self._step(values, labels)
        except BaseException:
            with suppress(RuntimeError):  # the step's own error says more
                graph.capture_end()
            raise
        graph.capture_end()
        return graph
