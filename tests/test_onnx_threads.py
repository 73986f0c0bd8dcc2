"""The arena that all sessions of a process share."""

import subprocess
import sys
from pathlib import Path

import pytest

# In a process of its own, since the arena is made once in a process: an allocation that no machine can serve,
# then one that needs the arena to grow. Prints by how many MiB the second one made the process grow.
PROGRAM = """
import numpy as np
import onnx
import onnxruntime as ort
import psutil
from onnx import TensorProto, helper

from models.onnx_threads import share_threads, shared_threads_options

graph = helper.make_graph(
    [helper.make_node("Expand", ["value", "shape"], ["all"]), helper.make_node("ReduceSum", ["all"], ["sum"])],
    "expand",
    [helper.make_tensor_value_info("value", TensorProto.FLOAT, [1]),
     helper.make_tensor_value_info("shape", TensorProto.INT64, [1])],
    [helper.make_tensor_value_info("sum", TensorProto.FLOAT, None)],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
share_threads(1)
session = ort.InferenceSession(model.SerializeToString(), shared_threads_options(), ["CPUExecutionProvider"])

def run(count):
    session.run(None, {"value": np.ones(1, np.float32), "shape": np.array([count])})

run(1)
try:
    run(2**44)
    raise SystemExit("the machine has 64 TiB")
except ort.capi.onnxruntime_pybind11_state.Fail:
    pass
process = psutil.Process()
before = process.memory_info().rss
run(2**20)
print((process.memory_info().rss - before) // 2**20)
"""


def test_an_allocation_that_failed_leaves_no_hunger_behind() -> None:
    """ONNX Runtime's arena grows by doubling unless told otherwise: after a huge request that failed, it took
    nearly all memory of the machine at the next small one, and hundreds of MiB for its own book-keeping."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64


# Prints the niceness of the pool's threads, in a process that has one of its own.
NICED = """
import os, sys
from pathlib import Path

from models.onnx_threads import share_threads

threads = lambda: {int(task.name) for task in Path("/proc/self/task").iterdir()}
os.nice(int(sys.argv[1]))
before = threads()
share_threads(3)
print(*(os.getpriority(os.PRIO_PROCESS, thread) for thread in threads() - before))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux lists threads")
@pytest.mark.parametrize(("own", "expected"), [(0, "10 10"), (15, "15 15")])
def test_the_pool_steps_back_and_never_before_its_process(own: int, expected: str) -> None:
    done = subprocess.run([sys.executable, "-c", NICED, str(own)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
