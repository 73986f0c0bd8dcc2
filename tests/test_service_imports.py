"""The serving process holds neither torch nor the evolution, and importing it does nothing."""

import ast
import json
import subprocess
import sys
from pathlib import Path

SERVICE = Path(__file__).parents[1] / "service"
PROBE = """
import json, sys
import service.api
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def test_the_serving_process_imports_neither_torch_nor_evolve() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=SERVICE.parent, capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(json.loads(done.stdout))
    assert {"service", "models", "bentoml", "onnxruntime"} <= loaded
    assert not loaded & {"torch", "torchvision", "timm", "onnx", "evolve", "datasets", "sklearn", "matplotlib"}


def test_no_file_of_the_service_names_them() -> None:
    for path in SERVICE.glob("**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.partition(".")[0] for name in names} & {"torch", "timm", "onnx", "evolve"}, path


def test_bentoml_is_known_to_one_file_and_the_environment_to_another() -> None:
    texts = {path.name: path.read_text() for path in SERVICE.glob("**/*.py")}
    assert [name for name, text in texts.items() if "import bentoml" in text] == ["api.py"]
    assert [name for name, text in texts.items() if "os.environ" in text or "getenv" in text] == ["settings.py"]
