"""Edges of the service: one file knows BentoML, one reads the environment. tests/test_map.py has the other rules."""

from pathlib import Path

SERVICE = Path(__file__).parents[1] / "service"


def test_bentoml_is_known_to_one_file_and_the_environment_to_another() -> None:
    texts = {path.name: path.read_text() for path in SERVICE.glob("**/*.py")}
    assert [name for name, text in texts.items() if "import bentoml" in text] == ["api.py"]
    assert [name for name, text in texts.items() if "os.environ" in text or "getenv" in text] == ["settings.py"]
