"""One self-contained HTML file about a store: leaderboard, costs, progress, searches, lineage and sharing.

The plots are SVG within the page, drawn by matplotlib; there is no script and nothing is loaded from elsewhere.
"""

import html
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evolve.config import EvolveConfig
from evolve.journal import CandidateRecord, IterationEnd, IterationStart, Journal, iterations, trained_whole
from models.commands import accuracy_text, in_millions
from models.component import ComponentKind
from models.figures import TaskFigures, task_figures
from models.names import ComponentId, RouteId, TaskName, short
from models.release import Release
from models.route import Route
from models.store import Store

KIND_COLOURS: Mapping[ComponentKind, str] = {
    "patch_embed": "#7f7f7f",
    "pos_embed": "#bcbd22",
    "block": "#1f77b4",
    "adapter": "#ff7f0e",
    "norm": "#2ca02c",
    "head": "#d62728",
}
PAGE = Template(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title>
<meta name="color-scheme" content="light dark">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: 0 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #8884 }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; white-space: nowrap }
th, td { padding: .25rem .45rem; border-bottom: 1px solid #8883; text-align: right }
th:first-child, td:first-child { text-align: left } th { background: #8882 }
.text { text-align: left; white-space: normal; width: 100%; min-width: 20rem } td.text { font-size: .8rem }
.text span { white-space: nowrap }
figure { margin: 1rem 0; overflow-x: auto } p.note { opacity: .75 }
svg { width: 100%; min-width: 44rem; max-width: 60rem; height: auto }  /* narrower than that, no label can be read */
@media (prefers-color-scheme: dark) {
  html { background: #16181c } body { color: #ddd }
  svg { filter: invert(.91) hue-rotate(180deg) }  /* dark plots whose colours keep their hues */
}
</style></head><body>
<h1>$title</h1>
$body
</body></html>
"""
)


@dataclass(frozen=True, slots=True)
class IterationStory:
    """What an iteration began with and the candidates that it trained, in the order in which they were sampled."""

    number: int
    start: IterationStart | None  # None where the journal does not have it any more
    end: IterationEnd | None  # likewise, or the iteration was interrupted or is under way
    records: tuple[CandidateRecord, ...]

    @property
    def outcome(self) -> str:
        """What it came to, in words."""
        if self.end is None:
            return "not ended"
        is_new = any(record.candidate.name == self.end.winner for record in self.records)
        return f"release {self.end.release}" if is_new else "nothing better"

    @property
    def is_whole(self) -> tuple[bool, ...]:
        """Of each candidate, whether it was trained to the end: the others were stopped early."""
        whole = {record.candidate.name for record in trained_whole(self.records)}
        return tuple(record.candidate.name in whole for record in self.records)

    @property
    def settings(self) -> tuple[str, ...]:
        """Those that are not the defaults, as `--set` takes them."""
        if self.start is None:
            return ()
        chosen, default = self.start.config.settings(), EvolveConfig().settings()
        if "minutes" in chosen:
            del chosen["generations"]  # as many as there was time for
        return tuple(f"{name}={json.dumps(value)}" for name, value in chosen.items() if default.get(name) != value)


@dataclass(frozen=True, slots=True)
class StoreStory:
    """All that a report tells: one release's routes, and every candidate that the journal has."""

    release: Release
    root: Route
    routes: Mapping[TaskName, Route]
    figures: Mapping[TaskName, TaskFigures]
    iterations: Mapping[TaskName, tuple[IterationStory, ...]]

    @property
    def records(self) -> Mapping[TaskName, tuple[CandidateRecord, ...]]:
        """Each task's candidates in the order in which they were sampled."""
        return {task: tuple(one for part in parts for one in part.records) for task, parts in self.iterations.items()}


def read_story(store: Store, release_number: int | None = None) -> StoreStory:
    """Read a release (None: the active one) and the journals of its tasks."""
    release = store.release(release_number)
    root = store.route(release.root, needed_by=f"release {release.number} as its root")
    routes = dict(sorted(store.routes(release).items()))
    told = {task: tuple(_iterations(store, task, routes, release)) for task in routes}
    return StoreStory(release, root, routes, task_figures(routes, root), told)


def write_report(store: Store, output: Path, release_number: int | None = None) -> None:
    """Write the report of a release as one HTML file."""
    story = read_story(store, release_number)
    title = f"{len(story.routes)} tasks of release {story.release.number}"
    output.write_text(PAGE.substitute(title=html.escape(title), body=_body(story)), encoding="utf-8")


def _iterations(
    store: Store, task: TaskName, routes: Mapping[TaskName, Route], release: Release
) -> Iterator[IterationStory]:
    """Yield a task's iterations up to a release.

    They stand under the name that the task had then. Another task that was called so before or after it has the same
    journal: its iterations are those up to the one that its route came from.
    """
    lineage = routes[task].lineage
    named = lineage.searched_as
    others = [other.lineage for name, other in routes.items() if name != task and other.lineage.searched_as == named]
    first = max((other.iteration for other in others if other.iteration < lineage.iteration), default=0) + 1
    is_called_so = named == task
    for number in iterations(store, named):
        if first <= number and (number <= lineage.iteration or is_called_so):
            journal = Journal(store, named, number)
            start, end = journal.start(), journal.end()
            began = start.release if start else 0
            if (end.release if end else began) <= release.number:
                yield IterationStory(number, start, end, tuple(journal.records()))


def _body(story: StoreStory) -> str:
    candidates = sum(map(len, story.records.values()))
    images = sum(record.images for records in story.records.values() for record in records)
    intro = (
        f'<p class="note">Made {html.escape(story.release.created_at)} ({html.escape(story.release.reason)}). Root: '
        f"{story.root.depth} blocks of width {story.root.network.embed_dim}, {story.root.image_size} px, "
        f"{in_millions(story.root.parameters)}. {candidates:,} candidates were trained, on {images:,} images.</p>"
    )
    if not story.routes:
        return f"{intro}<p>There is no task yet: add one with <code>mu2net evolve</code>.</p>"
    return "\n".join(
        [
            intro,
            "<h2>Leaderboard</h2>",
            _leaderboard(story),
            "<h2>Accuracy and cost per task</h2>",
            _svg(draw_costs, story, "Accuracy, parameters and FLOPs of each task"),
            "<h2>Score against candidates sampled</h2>",
            '<p class="note">A dot is a candidate, hollow where it was stopped early; the line is the best so far.</p>',
            _svg(draw_progress, story, "Best score so far against candidates sampled, by task"),
            "<h2>How each was found</h2>",
            _searches(story),
            "<h2>Family tree</h2>",
            '<p class="note">Which published route each task grew from; dashed where that route is no longer live.</p>',
            _svg(draw_family, story, "Tree of routes, from the root to the right"),
            "<h2>Who shares what</h2>",
            '<p class="note">A row is a task, a column a place in the network. Full colour: trained by this task '
            "alone. Pale with a number: shared by so many tasks. Empty with an R: the root's own.</p>",
            _svg(draw_sharing, story, "Components of each task, and by how many tasks they are shared"),
        ]
    )


def _leaderboard(story: StoreStory) -> str:
    header = ("task", "classes", "val", "expected", "test", "score", "pixels", "blocks", "added", "accounted", "FLOPs")
    rows = []
    for task in _ranked(story):
        route, cost = story.routes[task], story.figures[task]
        quality = route.quality
        assert quality is not None, "a task's route has a quality"
        rows.append(
            (
                task,
                str(len(route.labels)),
                accuracy_text(quality.validation_accuracy),
                accuracy_text(quality.expected_accuracy),
                accuracy_text(quality.test_accuracy),
                f"{quality.score:.3f}",
                str(route.image_size),
                str(route.depth),
                in_millions(cost.parameters_added),
                in_millions(cost.accounted_parameters),
                f"{cost.flops / cost.root_flops:.1%}",
            )
        )
    note = (
        '<p class="note">Added: parameters of components that only this task uses. Accounted: each component over the '
        "number of tasks using it. FLOPs: of one image, over the root's.</p>"
    )
    return f"<figure><table>{_row(header, 'th')}{''.join(_row(row, 'td') for row in rows)}</table></figure>{note}"


def _searches(story: StoreStory) -> str:
    header = ("task", "iteration", "from release", "came to", "candidates", "stopped early", "images")
    rows = [_row(header, "th", text="settings other than the defaults")]
    for task, parts in story.iterations.items():
        for told in parts:
            cells = (
                task,
                str(told.number),
                str(told.start.release) if told.start else "",
                told.outcome,
                f"{len(told.records):,}",
                f"{told.is_whole.count(False):,}",
                f"{sum(record.images for record in told.records):,}",
            )
            settings = " ".join(f"<span>{html.escape(setting)}</span>" for setting in told.settings)
            rows.append(_row(cells, "td", text=settings))
    return f"<figure><table>{''.join(rows)}</table></figure>"


def _row(cells: Sequence[str], tag: str, *, text: str | None = None) -> str:
    """Return a row of a table, perhaps with a last cell of HTML that is wide and breaks its lines."""
    last = "" if text is None else f'<{tag} class="text">{text}</{tag}>'
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}{last}</tr>"


def _svg(draw: Callable[[StoreStory], Figure], story: StoreStory, description: str) -> str:
    """Return a figure as SVG within a page: without a date, so that the same store gives the same report."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": draw.__name__, "svg.fonttype": "none"}):
        draw(story).savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    opening = f'<svg role="img" aria-label="{html.escape(description, quote=True)}" '
    return f"<figure>{text[text.index('<svg') :].replace('<svg ', opening, 1)}</figure>"


def _shown_accuracy(route: Route) -> float:
    quality = route.quality
    if quality is None:
        return 0.0
    return quality.validation_accuracy if quality.test_accuracy is None else quality.test_accuracy


def _ranked(story: StoreStory) -> list[TaskName]:
    return sorted(story.routes, key=lambda task: -_shown_accuracy(story.routes[task]))


# plots


def _fitting(task: TaskName, characters: int) -> str:
    """Return a task's name, without its middle where it is too long for its place."""
    half = characters // 2
    return task if len(task) <= characters else f"{task[: half - 1]}…{task[-half:]}"


def draw_costs(story: StoreStory) -> Figure:
    """Three bars a task, in the leaderboard's order: accuracy, accounted parameters and FLOPs over the root's."""
    tasks = _ranked(story)
    figure = Figure(figsize=(10, 1.6 + 0.32 * len(tasks)), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    columns = (
        ("test accuracy\n(hollow: validation)", [_shown_accuracy(story.routes[task]) for task in tasks]),
        ("accounted parameters,\nmillions", [story.figures[task].accounted_parameters / 1e6 for task in tasks]),
        (
            "FLOPs of an image\n/ the root's",
            [story.figures[task].flops / story.figures[task].root_flops for task in tasks],
        ),
    )
    for axis, (title, values) in zip(axes, columns, strict=True):
        bars = axis.barh(range(len(tasks)), values, color="#4c78a8")
        axis.bar_label(bars, fmt="%.3g", padding=2, fontsize=8)
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.18)
        axis.spines[["top", "right"]].set_visible(False)
    for bar, task in zip(axes[0].patches, tasks, strict=True):
        quality = story.routes[task].quality
        bar.set_fill(quality is not None and quality.test_accuracy is not None)
    axes[0].set_yticks(range(len(tasks)), [_fitting(task, 32) for task in tasks])
    axes[0].invert_yaxis()
    return figure


def draw_progress(story: StoreStory) -> Figure:
    """A small plot a task: every candidate's score as a dot, hollow if it was stopped, the best so far as a line."""
    columns = min(4, len(story.routes))
    rows = -(-len(story.routes) // columns)
    figure = Figure(figsize=(10, 2.1 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axis, (task, parts) in zip(grid.flat, story.iterations.items(), strict=False):
        _draw_candidates(axis, parts)
        axis.set_title(_fitting(task, 28), fontsize=9)
    for axis in grid.flat[len(story.routes) :]:
        axis.set_visible(False)
    figure.supxlabel("candidates sampled", fontsize=9)
    figure.supylabel("score", fontsize=9)
    return figure


def _draw_candidates(axis: Axes, parts: Sequence[IterationStory]) -> None:
    scores = [record.score for told in parts for record in told.records]
    is_whole = [whole for told in parts for whole in told.is_whole]
    can_win = [score if whole else 0.0 for score, whole in zip(scores, is_whole, strict=True)]
    best = [max(can_win[: at + 1]) for at in range(len(scores))]
    numbers = range(1, len(scores) + 1)
    filled = ["#6baed6" if whole else "none" for whole in is_whole]
    axis.scatter(numbers, scores, s=9, facecolors=filled, edgecolors="#6baed6")
    axis.step(numbers, best, where="post", color="#08519c", linewidth=1.3)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)


def draw_family(story: StoreStory) -> Figure:
    """The tree of published routes: the root to the left, each task to the right of what it grew from."""
    live = {route_id: task for task, route_id in story.release.tasks.items()}
    parents = {task: route.lineage.parent for task, route in story.routes.items()}
    names: dict[RouteId | None, str] = {story.release.root: "root"}
    names |= {route_id: str(task) for route_id, task in live.items()}
    places = _places(parents, live, story.release.root)
    longest = max(depth for depth, _ in places.values())
    height = 1 + 0.34 * (max(row for _, row in places.values()) + 1)
    figure = Figure(figsize=(10, height), layout="constrained")
    axis = figure.add_subplot()
    for task, (depth, row) in places.items():
        parent = parents.get(TaskName(task))
        if task == "root":
            continue
        is_live = parent in names
        from_depth, from_row = places[names[parent]] if is_live else (depth - 1, row)
        axis.plot(
            [from_depth, from_depth + 0.5, from_depth + 0.5, depth],
            [from_row, from_row, row, row],
            color="#999999",
            linestyle="-" if is_live else "--",
            linewidth=1,
            zorder=1,
        )
        if not is_live and parent is not None:
            axis.text(depth - 0.98, row + 0.3, f"former {short(parent)}", fontsize=7, color="#999999")
    for task, (depth, row) in places.items():
        axis.scatter(depth, row, s=40, color="#444444" if task == "root" else "#1f77b4", zorder=2)
        axis.text(depth + 0.04, row - 0.08, f"{task}{_changes(story, task)}", fontsize=8, va="bottom")
    axis.set_xlim(-0.1, longest + 1.6)
    axis.invert_yaxis()
    axis.set_axis_off()
    return figure


def _changes(story: StoreStory, task: str) -> str:
    if task == "root":
        return ""
    mutations = story.routes[TaskName(task)].lineage.mutations
    return f"  ({len(mutations)} mutations)" if len(mutations) != 1 else "  (1 mutation)"


def _places(
    parents: Mapping[TaskName, RouteId | None], live: Mapping[RouteId, TaskName], root: RouteId
) -> dict[str, tuple[int, int]]:
    """Return depth and row of each node, children below their parent; parents that are not live start at the root."""
    children: dict[str, list[str]] = {}
    for task, parent in parents.items():
        above = live[parent] if parent is not None and parent in live and live[parent] != task else "root"
        children.setdefault(above, []).append(task)
    places: dict[str, tuple[int, int]] = {}

    def place(node: str, depth: int) -> None:
        places[node] = (depth, len(places))
        for child in sorted(children.get(node, [])):
            place(child, depth + 1)

    place("root", 0)
    return places


def draw_sharing(story: StoreStory) -> Figure:
    """A map of components: a row a task, a column a place in the network."""
    columns = _columns(story)
    users: dict[ComponentId, int] = {}
    for route in story.routes.values():
        for component in route.component_ids:
            users[component] = users.get(component, 0) + 1
    of_root = story.root.component_ids
    figure = Figure(figsize=(10, 1.4 + 0.34 * len(story.routes)), layout="constrained")
    axis = figure.add_subplot()
    for row, route in enumerate(story.routes.values()):
        for column, (kind, component) in _placed(route).items():
            x = columns.index(column)
            is_root, count = component in of_root, users[component]
            colour = KIND_COLOURS[kind]
            axis.barh(
                row,
                0.9,
                left=x - 0.45,
                height=0.8,
                color="white" if is_root else colour,
                alpha=1 if is_root or count == 1 else 0.4,
                edgecolor="#cccccc" if is_root else colour,
            )
            text = "R" if is_root else str(count) if count > 1 else ""
            axis.text(x, row, text, ha="center", va="center", fontsize=7, color="#999999" if is_root else "black")
    axis.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
    axis.set_yticks(range(len(story.routes)), [_fitting(task, 32) for task in story.routes], fontsize=8)
    axis.set_xlim(-0.6, len(columns) - 0.4)
    axis.invert_yaxis()
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return figure


def _columns(story: StoreStory) -> list[str]:
    """Return the places that any route uses, in the order of computation."""
    used = {column for route in story.routes.values() for column in _placed(route)}
    depth = max(route.depth for route in story.routes.values())
    middle = [name for block in range(depth) for name in (f"adapter {block}", f"block {block}")]
    return [name for name in ("patches", "positions", *middle, "norm", "head") if name in used]


def _placed(route: Route) -> dict[str, tuple[ComponentKind, ComponentId]]:
    """Return the component at each place of a route."""
    plain: Mapping[ComponentKind, str] = {"patch_embed": "patches", "pos_embed": "positions"}
    placed: dict[str, tuple[ComponentKind, ComponentId]] = {}
    block = 0
    for component in route.components:
        is_numbered = component.kind in {"adapter", "block"}
        name = f"{component.kind} {block}" if is_numbered else plain.get(component.kind, component.kind)
        placed[name] = (component.kind, component.id)
        block += component.kind == "block"
    return placed
