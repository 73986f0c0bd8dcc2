"""A route run through its ONNX subgraphs, one after another, on the CPU: the offline counterpart of the service."""

from collections.abc import Sequence

import numpy as np
import onnxruntime

from evolve.task import LabelledImages
from models.cores import usable_cores
from models.onnx_threads import share_threads, shared_threads_options
from models.route import LoweredStage, Stage
from models.store import Store

BATCH = 64
NEEDED_BY = "a route that is being checked"


class OnnxRoute:
    """The sessions of a route's stages; files are checked against their digests when opened.

    Args:
        store: has the stages' files.
        stages: of the route.
        lowered: the same stages in another precision, see `Route.lowered_stages`; None for float32.
    """

    def __init__(self, store: Store, stages: Sequence[Stage], lowered: Sequence[LoweredStage] | None = None) -> None:
        share_threads(usable_cores())
        if lowered is None:
            lowered = [LoweredStage(stage.subgraph) for stage in stages]
        for stage, low in zip(stages, lowered, strict=True):
            for digest in (*(component.id for component in stage.components), *low.weights):
                store.object_path(digest, "safetensors", needed_by=NEEDED_BY)
        self._sessions = [
            onnxruntime.InferenceSession(
                store.object_path(low.subgraph, "onnx", needed_by=NEEDED_BY),
                shared_threads_options(),
                providers=["CPUExecutionProvider"],
            )
            for low in lowered
        ]

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """Return float32 logits [n, classes] of uint8 pixels [n, size, size, 3]."""
        return np.concatenate([self._run(pixels[at : at + BATCH]) for at in range(0, len(pixels), BATCH)])

    def accuracy(self, images: LabelledImages, image_size: int) -> float:
        """Return the share of images whose largest logit is their label's."""
        return float((self.logits(images.pixels(image_size)).argmax(axis=1) == images.labels).mean())

    def _run(self, values: np.ndarray) -> np.ndarray:
        for session in self._sessions:
            (values,) = session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(values)})
        return values
