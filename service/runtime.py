"""ONNX Runtime as the server uses it: which device, how many threads, how a session is made."""

import ctypes
import io
import logging
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort

from models.cores import usable_cores
from models.errors import InvalidConfig
from models.onnx_threads import AS_REQUESTED, share_threads, shared_threads_options
from models.precision import Precision

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
CUDA_OPTIONS = {"use_tf32": "0"}  # TF32 keeps 10 bits of mantissa: golden samples would not hold
LARGE_BYTES = 4096  # weights from this size on are mapped; smaller ones would fill a page each
LOG_ERRORS, LOG_FATAL = 3, 4  # ONNX Runtime's severities

# Two whole ONNX models of one node each, so that no file and no ONNX library is needed; tests read them.
COPY = (  # Identity: x uint8 [n] -> y uint8 [n]
    b'\x08\x08:9\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x10\n\x01x\x12\x0b\n\t\x08\x02\x12\x05\n\x03\x12\x01n'
    b"b\x10\n\x01y\x12\x0b\n\t\x08\x02\x12\x05\n\x03\x12\x01nB\x04\n\x00\x10\r"
)
FIRST_TOKENS = (  # Gather of index 0 on axis 1: x uint8 [n, l, d] -> y uint8 [n, d]
    b'\x08\x08:g\n\x1e\n\x01x\n\x01i\x12\x01y"\x06Gather*\x0b\n\x04axis\x18\x01\xa0\x01\x02\x12\x01g*\x0f\x10\x07B\x01iJ\x08'
    b"\x00\x00\x00\x00\x00\x00\x00\x00Z\x1a\n\x01x\x12\x15\n\x13\x08\x02\x12\x0f\n\x03\x12\x01n\n\x03\x12\x01l\n\x03\x12\x01d"
    b"b\x15\n\x01y\x12\x10\n\x0e\x08\x02\x12\n\n\x03\x12\x01n\n\x03\x12\x01dB\x04\n\x00\x10\r"
)

# A whole model of one MatMulInteger, uint8 [1, 32] by int8 [32, 1]. Processors without instructions for it add
# pairs of products in 16 bits, and ONNX Runtime lets them overflow.
PRODUCT = (
    b'\x08\x08\x12\x00:\\\n\x18\n\x01a\n\x01b\x12\x01y"\rMatMulInteger\x12\x01gZ\x13\n\x01a\x12\x0e\n\x0c\x08'
    b"\x02\x12\x08\n\x02\x08\x01\n\x02\x08 Z\x13\n\x01b\x12\x0e\n\x0c\x08\x03\x12\x08\n\x02\x08 \n\x02\x08\x01b\x13\n"
    b"\x01y\x12\x0e\n\x0c\x08\x06\x12\x08\n\x02\x08\x01\n\x02\x08\x01B\x04\n\x00\x10\n"
)

log = logging.getLogger("mu2net.runtime")


@dataclass(frozen=True, slots=True)
class Runtime:
    """Where sessions run. Make it with `start_runtime`."""

    provider: str
    threads: int
    precision: Precision | None = None  # that routes run in where they have it, None for float32 alone
    version: str = ort.__version__

    def session(self, model: Path | bytes) -> ort.InferenceSession:
        return self._session(model, shared_threads_options())

    def save_prepared(self, model: Path, target: Path) -> bytes:
        """Write `model` to `target` as it is run on this machine; return the file beside it with its large weights."""
        options = shared_threads_options()
        options.optimized_model_filepath = str(target)
        weights = target.with_suffix(".weights")
        for name, value in {
            "session.optimized_model_external_initializers_file_name": weights.name,
            "session.optimized_model_external_initializers_min_size_in_bytes": str(LARGE_BYTES),
            "session.save_external_prepacked_constant_initializers": "1",
        }.items():
            options.add_session_config_entry(name, value)
        self._session(model, options)
        return weights.read_bytes() if weights.exists() else b""

    def nodes_elsewhere(self, model: Path | bytes) -> int:
        """Return how many nodes of a model run on another provider than this one."""
        options = shared_threads_options()
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        found = self._session(model, options).get_provider_graph_assignment_info()
        return sum(len(part.get_nodes()) for part in found if part.ep_name != self.provider)

    def _session(self, model: Path | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
        options.log_severity_level = LOG_ERRORS
        providers = [(CUDA, CUDA_OPTIONS), CPU] if self.provider == CUDA else [CPU]
        source = model if isinstance(model, bytes) else str(model)
        session = ort.InferenceSession(source, options, providers=providers)
        session.disable_fallback()  # a failure on the device must be seen, not moved to the CPU
        return session


def start_runtime(device: Literal["auto", "cpu", "cuda"], threads: int) -> Runtime:
    """Choose the device and start the shared threads; `threads` 0 means one for each usable core.

    Raises:
        InvalidConfig: CUDA is asked for and not usable.
    """
    threads = threads if threads > 0 else usable_cores()
    share_threads(threads)
    reason = "the setting says cpu" if device == "cpu" else _why_no_cuda()
    if device == "cuda" and reason:
        raise InvalidConfig(f"MU2NET_DEVICE is cuda, but {reason}: mend that, or set it to auto or cpu")
    precision: Precision | None = ("int8" if _is_int8_exact() else None) if reason else "float16"
    runtime = Runtime(CPU if reason else CUDA, threads, precision)
    if runtime.provider == CUDA:
        _share_device_memory()
    log.info("engine on %s, %d threads, ONNX Runtime %s; CUDA: %s; beside float32: %s", runtime.provider, threads,
             runtime.version, reason or "used", precision or "nothing, int8 overflows on this processor")  # fmt: skip
    return runtime


@cache  # as share_threads: it can be done once in a process
def _share_device_memory() -> None:
    """Give all sessions one arena on the device; with one each, every subgraph would keep its own activations."""
    memory = ort.OrtMemoryInfo("Cuda", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    try:
        ort.create_and_register_allocator_v2(CUDA, memory, CUDA_OPTIONS, ort.OrtArenaCfg(AS_REQUESTED))
    except RuntimeError as error:
        log.warning("every session has device memory of its own, so tasks cost more of it: %s", error)


def _is_int8_exact() -> bool:
    """Tell whether this processor multiplies int8 without overflowing; where not, float32 is as fast and right."""
    levels, weights = np.full((1, 32), 255, np.uint8), np.full((32, 1), 127, np.int8)
    (product,) = Runtime(CPU, 0).session(PRODUCT).run(None, {"a": levels, "b": weights})
    return bool(product.item() == 32 * 255 * 127)


def _why_no_cuda() -> str | None:
    """Return why CUDA cannot be used, None if it can. Prints nothing: having no GPU is no fault."""
    if CUDA not in ort.get_available_providers():
        return "this ONNX Runtime is built without CUDA"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver"
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "the NVIDIA driver finds no device"
    complaints = io.StringIO()
    with redirect_stdout(complaints):  # it prints what it misses
        ort.preload_dlls()
    ort.set_default_logger_severity(LOG_FATAL)
    try:
        providers = Runtime(CUDA, 0).session(COPY).get_providers()
    finally:
        ort.set_default_logger_severity(LOG_ERRORS)
    if CUDA in providers:
        return None
    missing = complaints.getvalue().strip().splitlines()
    # torch brings most of them, but not all: cuRAND is missing beside it
    return f"its libraries do not load ({missing[0] if missing else 'it says not which'}): install mu2net[gpu]"
