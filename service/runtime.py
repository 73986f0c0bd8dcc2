"""ONNX Runtime as the server uses it: which device, how many threads, how a session is made."""

import ctypes
import io
import logging
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnxruntime as ort

from models.cores import usable_cores
from models.errors import InvalidConfig
from models.onnx_threads import share_threads, shared_threads_options

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
CUDA_OPTIONS = {"use_tf32": "0"}  # TF32 keeps 10 bits of mantissa: golden samples would not hold
LOG_ERRORS, LOG_FATAL = 3, 4  # ONNX Runtime's severities

# A whole ONNX model of one Identity node, to try a device with before there is a store.
IDENTITY = (
    b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)

log = logging.getLogger("mu2net.runtime")


@dataclass(frozen=True, slots=True)
class Runtime:
    """Where sessions run. Make it with `start_runtime`."""

    provider: str
    threads: int
    version: str = ort.__version__

    def session(self, model: Path | bytes) -> ort.InferenceSession:
        options = shared_threads_options()
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
    runtime = Runtime(CPU if reason else CUDA, threads)
    log.info("engine on %s, %d threads, ONNX Runtime %s; CUDA: %s", runtime.provider, threads, runtime.version,
             reason or "used")  # fmt: skip
    return runtime


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
        providers = Runtime(CUDA, 0).session(IDENTITY).get_providers()
    finally:
        ort.set_default_logger_severity(LOG_ERRORS)
    if CUDA in providers:
        return None
    missing = complaints.getvalue().strip().splitlines()
    return f"its libraries do not load ({missing[0] if missing else 'install mu2net[gpu]'})"
