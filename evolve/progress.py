"""How an evolution shows itself in a terminal: a bar for decoding, then one for candidates."""

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from evolve import run
from evolve.config import EvolveConfig


class ProgressDisplay:
    """A context manager around one bar on `console`, usually stderr."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._line = self._bar.add_task("images", total=None, visible=False)
        self._console = console

    def __enter__(self) -> "ProgressDisplay":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def decoding(self, done: int, total: int) -> None:
        """Show how many images have been decoded."""
        self._bar.update(self._line, description="decoding images", completed=done, total=total, visible=True)

    def candidate(self, config: EvolveConfig) -> Callable[[run.Progress], None]:
        """Return what shows an iteration's progress after each candidate."""
        total = config.candidates(config.generations) if config.minutes is None else None

        def show(progress: run.Progress) -> None:
            done = config.candidates(progress.generation) + progress.place + 1
            generation = f"generation {progress.generation + 1}"
            if total is not None:
                generation += f"/{config.generations}"
            speed = f"{progress.throughput.images_per_second:.0f} images/s"
            best = f"best accuracy {progress.best_quality:.3f}, score {progress.best_score:.3f}"
            text = f"{progress.task}: {generation}, {best}, {speed}"
            self._bar.update(self._line, description=text, completed=done, total=total, visible=True)
            if not self._console.is_terminal and progress.place + 1 == config.children(progress.generation):
                self._console.print(text, highlight=False, soft_wrap=True)  # a log file gets a line instead of a bar

        return show
