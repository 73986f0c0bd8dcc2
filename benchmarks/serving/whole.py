"""What the compared servers do with an image: one ONNX session for each task, on the same pool of threads as ours."""

import sys
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

from models.cores import usable_cores
from models.onnx_threads import share_threads, shared_threads_options
from models.preprocess import load_pixels


@dataclass(frozen=True, slots=True)
class Models:
    """The sessions of tasks, each from one file named `<task>.onnx` after the store's prefix."""

    sessions: dict[str, ort.InferenceSession]

    @classmethod
    def load(cls, folder: Path, prefix: str, count: int) -> "Models":
        share_threads(usable_cores())
        files = sorted(folder.glob(f"{prefix}-task-*.onnx"))[:count]
        sessions = {
            file.stem.removeprefix(f"{prefix}-"): ort.InferenceSession(
                file, shared_threads_options(), providers=["CPUExecutionProvider"]
            )
            for file in files
        }
        return cls(sessions)

    def logits(self, task: str, image: bytes) -> list[float]:
        session = self.sessions[task]
        pixels = session.get_inputs()[0]
        batch = load_pixels(image, pixels.shape[1])[None]
        values: list[float] = session.run(None, {pixels.name: batch})[0][0].tolist()
        return values


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a compared server is started with."""

    port: int
    folder: Path
    prefix: str
    count: int

    @classmethod
    def read(cls, words: list[str] = sys.argv[1:]) -> "Arguments":
        port, folder, prefix, count = words
        return cls(int(port), Path(folder), prefix, int(count))

    def models(self) -> Models:
        return Models.load(self.folder, self.prefix, self.count)
