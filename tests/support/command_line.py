"""The command `mu2net` in this process."""

import sys

import pytest

from models.cli import main


class Cli:
    """Runs `mu2net` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def run(self, *words: object) -> tuple[int, str, str]:
        """Run it with `words` and return its exit code, stdout and stderr."""
        self._monkeypatch.setattr(sys, "argv", ["mu2net", *map(str, words)])
        with pytest.raises(SystemExit) as exit_info:
            main()
        printed = self._capsys.readouterr()
        assert isinstance(exit_info.value.code, int)
        return exit_info.value.code, printed.out, printed.err

    def succeed(self, *words: object) -> str:
        code, out, err = self.run(*words)
        assert code == 0, err
        return out

    def fail(self, *words: object, code: int = 1) -> str:
        found, _, err = self.run(*words)
        assert found == code
        assert "Traceback" not in err
        return " ".join(err.split())
