"""The report tells every task, candidate and component, in one file that needs nothing else."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import sync_playwright

from evolve.config import load_config
from evolve.loop import evolve_task
from evolve.publish import create_store
from evolve.report import IterationStory, StoreStory, _columns, _places, draw_progress, read_story, write_report
from evolve.run import TaskRun
from evolve.task import Task
from models.names import RouteId, TaskName
from models.root import load_root
from models.store import Store
from tests.support.browser import CHROMIUM, FLAGS
from tests.support.tiny import HALVED, TINY_CONFIG, TINY_ROOT, load_toy_task


def test_a_report_is_one_file_with_all_tasks_and_plots(opened_store: Store, toy_folder: Path, tmp_path: Path) -> None:
    evolve_task(load_toy_task("shapes_a", toy_folder, tmp_path / "pixels"), opened_store, replace(TINY_CONFIG, seed=5))
    write_report(opened_store, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg ") == 4
    assert all(task in page for task in ("shapes_a", "shapes_b"))
    assert "6 candidates were trained" in page  # four of two iterations, two of the other task
    assert not re.search(r"<(script|link|img|iframe)\b|url\(http|src=|@import", page)
    write_report(opened_store, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == page


def told(story: StoreStory) -> dict[str, list[tuple[int, str, int]]]:
    """Return each task's iterations: number, what it came to, candidates that were stopped."""

    def shown(one: IterationStory) -> tuple[int, str, int]:
        return one.number, one.outcome, one.is_whole.count(False)

    return {task: [shown(one) for one in parts] for task, parts in story.iterations.items()}


def test_a_report_tells_how_each_task_was_searched_for(
    opened_store: Store, toy_task: Task, toy_folder: Path, tmp_path: Path
) -> None:
    evolve_task(toy_task, opened_store, replace(HALVED, parents="shapes_a,shapes_b"))
    shapes_a = load_toy_task("shapes_a", toy_folder, tmp_path / "pixels")
    evolve_task(shapes_a, opened_store, replace(TINY_CONFIG, seed=5, minutes=0.0001), from_release=1)
    TaskRun.begin(shapes_a, opened_store, TINY_CONFIG, private=False)
    story = read_story(opened_store)
    assert told(story) == {
        "shapes_a": [(1, "release 1", 0), (2, "release 4", 0), (3, "not ended", 0)],
        "shapes_b": [(1, "release 2", 0)],
        "shapes_c": [(1, "release 3", 3)],
    }
    (halved,) = story.iterations[toy_task.name]
    assert load_config(None, halved.settings) == replace(HALVED, parents="shapes_a,shapes_b")  # as --set takes them
    assert "first_children=4" in halved.settings
    assert halved.end is not None
    assert replace(halved, end=replace(halved.end, winner="shapes_c@former")).outcome == "nothing better"
    assert not [one for one in story.iterations[shapes_a.name][1].settings if one.startswith("generations=")]
    write_report(opened_store, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    images = sum(record.images for record in halved.records)
    row = "".join(f"<td>{cell}</td>" for cell in ("shapes_c", 1, 2, "release 3", 6, 3, f"{images:,}"))
    assert f'<tr>{row}<td class="text"><span>' in page
    assert told(read_story(opened_store, 1)) == {"shapes_a": [(1, "release 1", 0)]}


def test_a_renamed_task_keeps_its_iterations_and_leaves_those_of_the_next_of_its_name(
    opened_store: Store, toy_task: Task
) -> None:
    opened_store.rename_task("shapes_a", TaskName("forms"))
    evolve_task(replace(toy_task, name=TaskName("shapes_a")), opened_store, HALVED)
    expected = {"forms": [(1, "release 1", 0)], "shapes_b": [(1, "release 2", 0)], "shapes_a": [(2, "release 4", 3)]}
    assert told(read_story(opened_store)) == expected


def test_candidates_are_told_where_it_is_not_known_any_more_what_they_began_with(opened_store: Store) -> None:
    opened_store.files.delete("journal/shapes_a/0001/start.json")
    (one,) = read_story(opened_store).iterations[TaskName("shapes_a")]
    assert (one.start, one.settings, len(one.records)) == (None, (), 2)


def test_what_was_stopped_is_a_hollow_dot_and_never_the_best(opened_store: Store, toy_task: Task) -> None:
    for seed in (0, 1):
        evolve_task(toy_task, opened_store, replace(HALVED, seed=seed))
    story = read_story(opened_store)
    records = story.records[toy_task.name]
    plot = next(axes for axes in draw_progress(story).axes if axes.get_title() == toy_task.name)
    (dots,) = (drawn for drawn in plot.collections if len(np.asarray(drawn.get_offsets())) == len(records))
    is_whole = [len(record.curve) == HALVED.validations for record in records]
    assert (np.asarray(dots.get_facecolor())[:, 3] > 0).tolist() == is_whole
    (line,) = plot.lines
    scores = [record.score * whole for record, whole in zip(records, is_whole, strict=True)]
    assert np.asarray(line.get_ydata()).tolist() == np.maximum.accumulate(scores).tolist()


def test_a_store_without_tasks_has_a_report(tmp_path: Path) -> None:
    store = create_store(tmp_path / "store", load_root(TINY_ROOT))
    write_report(store, tmp_path / "report.html")
    assert "There is no task yet" in (tmp_path / "report.html").read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_a_phone_scrolls_plots_and_table_not_the_page(opened_store: Store, tmp_path: Path) -> None:
    write_report(opened_store, tmp_path / "report.html")
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser:
        page = browser.new_page(viewport={"width": 400, "height": 800})
        page.goto((tmp_path / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 400
        assert page.evaluate("Math.min(...[...document.querySelectorAll('svg')].map(plot => plot.clientWidth))") > 600


def test_the_map_shows_every_component_in_order(opened_store: Store) -> None:
    story = read_story(opened_store)
    columns = _columns(story)
    assert columns[:2] == ["patches", "positions"]
    assert columns[-2:] == ["norm", "head"]
    depth = max(route.depth for route in story.routes.values())
    assert [name for name in columns if name.startswith("block")] == [f"block {at}" for at in range(depth)]


@pytest.mark.parametrize(
    ("parents", "expected"),
    [
        ({"b": "route a", "a": "root", "c": "gone"}, {"root": (0, 0), "a": (1, 1), "b": (2, 2), "c": (1, 3)}),
        ({"a": "root"}, {"root": (0, 0), "a": (1, 1)}),
    ],
)
def test_children_stand_below_their_parents(parents: dict[str, str], expected: dict[str, tuple[int, int]]) -> None:
    live = {RouteId(f"route {task}"): TaskName(task) for task in parents}
    named = {TaskName(task): RouteId(parent) for task, parent in parents.items()}
    assert _places(named, live, RouteId("root")) == expected
