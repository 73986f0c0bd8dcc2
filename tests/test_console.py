"""The console in a real browser: what it shows is what the server answers, and nothing in a store becomes code."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from models.jobs import JobProgress, JobQueue, JobRequest, queue_url
from models.names import TaskName
from models.store import Store
from service.keys import add_key, new_key
from service.server import Server
from tests.support.browser import CHROMIUM, FLAGS
from tests.support.images import draw_folder, picture, zipped
from tests.support.on_a_port import listening
from tests.support.stores import TaskPlan, make_store, store_route

EVIL = '<img src="nowhere" onerror="document.title=1">'

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two tasks that share blocks of the root, one with an adapter; the third release has a wicked reason."""
    made = make_store(
        tmp_path_factory.mktemp("console") / "store",
        TaskPlan("first", own_blocks=[1]),
        TaskPlan("second", adapters={0: 4}),
    )
    third = store_route(made, TaskPlan("third", own_blocks=[1], seed=3, depth=2))
    made.publish(lambda tasks: {**tasks, TaskName("third"): third}, reason=EVIL)
    return made


@pytest.fixture(scope="module")
def running(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Server]]:
    with listening(store.folder, cache=tmp_path_factory.mktemp("cache")) as found:
        yield found


@pytest.fixture(scope="module")
def client(running: tuple[str, Server]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running[0], timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=20_000)  # of a busy machine
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, client: httpx.Client, running: tuple[str, Server]) -> Iterator[Page]:
    """The page, opened by this machine's user; at its end nothing may have failed in it, nor been asked of another
    server."""
    failures: list[str] = []
    asked: list[str] = []
    with browser.new_context() as context:
        page = context.new_page()
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on("console", lambda said: failures.append(said.text) if "Security Policy" in said.text else None)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{client.base_url}#token={running[1].own_token}")
        expect(page.locator("#map svg")).to_be_visible()
        assert "token" not in page.url  # nobody reads it over a shoulder, nor from the history
        yield page
        assert not failures
        assert [url for url in asked if not url.startswith((str(client.base_url), "blob:"))] == []
        assert page.title() == "mu2net"


def choose_image(page: Page) -> None:
    page.set_input_files("#image", {"name": "some.png", "mimeType": "image/png", "buffer": picture()})


def test_the_policy_lets_in_nothing_from_elsewhere(client: httpx.Client) -> None:
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "unsafe" not in policy
    for file in (Path(__file__).parents[1] / "service" / "page").iterdir():
        served = client.get(f"/console/{file.name}")
        assert served.content == file.read_bytes()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|localStorage", served.text)


def test_tasks_have_what_they_are_worth_and_cost(page: Page, client: httpx.Client) -> None:
    rows = page.locator("#task-table tbody tr")
    expect(rows).to_have_count(3)
    expect(rows.first).to_contain_text("first")
    expect(rows.first).to_contain_text("50.0 % val")
    page.get_by_role("button", name="Measure latency").click()
    expect(rows.last.locator("td").last).to_have_text(re.compile(r"^\d+\.\d ms$"))
    expect(page.get_by_role("status").first).to_have_text("Release 3, 3 tasks")


def test_an_image_gets_the_answers_of_the_selected_tasks(page: Page, client: httpx.Client) -> None:
    choose_image(page)
    cards = page.locator(".answer")
    expect(cards).to_have_count(3)
    for answer in client.post("/v1/classify?tasks=all", files={"image": picture()}).json()["answers"]:
        card = page.get_by_role("article", name=answer["task"])
        shares = [prediction["probability"] for prediction in answer["results"][0]["predictions"]]
        labels = [prediction["label"] for prediction in answer["results"][0]["predictions"]]
        expect(card.locator(".label")).to_have_text(labels)
        expect(card.locator(".value")).to_have_text([f"{100 * share:.1f} %" for share in shares])
        assert card.locator(".filled").first.evaluate("bar => parseFloat(bar.style.width)") == pytest.approx(
            100 * shares[0], abs=0.1
        )
    page.get_by_role("checkbox", name="first").focus()
    page.keyboard.press("Space")  # by keyboard: that one is no longer selected
    expect(cards).to_have_count(2)
    page.get_by_role("button", name="Select none").click()
    expect(page.locator("#classify-state")).to_have_text("Select a task above.")


def test_what_is_no_image_is_told_in_the_servers_words(page: Page) -> None:
    page.set_input_files("#image", {"name": "some.png", "mimeType": "image/png", "buffer": b"no image"})
    expect(page.locator("#classify-state")).to_contain_text("8 bytes are not a readable image")


def test_the_plan_has_each_component_once(page: Page, client: httpx.Client) -> None:
    found: dict[str, bool] = {}
    for task in ("first", "second", "third"):
        for stage in client.get(f"/v1/tasks/{task}").json()["stages"]:
            found |= {component["id"]: component["of_root"] for component in stage["components"]}
    expect(page.locator(".line")).to_have_count(3)
    expect(page.locator(".stop")).to_have_count(len(found))
    expect(page.locator(".stop.root")).to_have_count(sum(found.values()))
    expect(page.locator(".stop.adapter")).to_have_count(1)
    page.locator(".stop").first.focus()
    expect(page.locator("#stop")).to_contain_text("used by first, second, third")
    page.get_by_role("checkbox", name="third").uncheck()
    expect(page.locator(".line")).to_have_count(2)


def test_releases_are_compared_and_rolled_back(page: Page, client: httpx.Client) -> None:
    expect(page.locator("#release-list")).to_contain_text(EVIL)
    page.get_by_role("button", name="What changed in release 2").click()
    expect(page.locator("#diff caption")).to_have_text("From release 1 to 2")
    expect(page.locator("#diff tbody tr")).to_have_text(re.compile("^secondadded"))

    page.get_by_role("button", name="Roll back to release 2").click()
    page.get_by_role("button", name="No, keep it").click()
    assert client.get("/v1/releases").json()["active"] == 3
    page.get_by_role("button", name="Roll back to release 2").click()
    page.get_by_role("button", name="Yes").click()
    expect(page.locator("#state")).to_have_text("Release 2, 2 tasks")
    expect(page.locator("#release-state")).to_contain_text("It is held by a person")
    page.get_by_role("button", name="Roll back to release 3").click()
    page.get_by_role("button", name="Yes").click()
    expect(page.locator("#state")).to_have_text("Release 3, 3 tasks")


def test_a_task_is_sent_and_its_job_followed(page: Page, store: Store, tmp_path: Path) -> None:
    images = zipped(draw_folder(tmp_path / "pets", {"cat": 6, "dog": 6}))
    page.get_by_label("Name", exact=True).fill("pets")
    page.get_by_label("Budget").fill("90s")
    page.set_input_files("[name=data]", images)
    page.get_by_role("button", name="Add the task").click()
    job = page.locator("#job-list li").first
    expect(job).to_contain_text("petsqueued")

    queue = JobQueue(queue_url(store, None))
    claim = queue.claim()  # as a worker would
    assert claim is not None
    queue.tell(claim, JobProgress("training", generation=2, generations=4, candidates=8, best_quality=0.875))
    expect(job).to_contain_text("training · generation 2 of 4 · 8 candidates · best 87.5 %")
    expect(job.get_by_role("img", name="50 % done")).to_be_visible()
    cancel = job.get_by_role("button", name="Cancel the job of pets")
    cancel.focus()
    queue.tell(claim, JobProgress("training", generation=3, generations=4, candidates=12, best_quality=0.875))
    expect(job).to_contain_text("generation 3 of 4")
    expect(cancel).to_be_focused()  # a redraw takes it from nobody who works by keyboard
    queue.end(claim, "failed", "no luck")
    expect(job).to_contain_text("no luck")

    page.get_by_label("Name", exact=True).fill("pets")
    page.set_input_files("[name=data]", {"name": "x.zip", "mimeType": "application/zip", "buffer": b"no zip"})
    page.get_by_role("button", name="Add the task").click()
    expect(page.locator("#job-state")).to_contain_text("x.zip")


def test_many_unfinished_jobs_are_followed_by_one_stream(page: Page, client: httpx.Client, store: Store) -> None:
    queue = JobQueue(queue_url(store, None))
    jobs = [queue.submit(JobRequest(TaskName(f"bird{number}"), "add", "0" * 64)) for number in range(8)]
    streams: list[Request] = []
    page.on("request", lambda asked: streams.append(asked) if asked.url.endswith("/events") else None)
    with page.expect_request("**/v1/jobs/events"):
        page.reload()
    for job in jobs:
        expect(page.locator("#job-list li", has_text=job.request.task)).to_contain_text("queued")
    asked = "Promise.race([fetch('v1/tasks').then(r => r.status), new Promise(r => setTimeout(r, 20000, 'no answer'))])"
    assert page.evaluate(asked) == 200
    claim = queue.claim()
    assert claim is not None
    queue.tell(claim, JobProgress("training", generation=1, generations=4))
    expect(page.locator("#job-list li", has_text=claim.job.request.task)).to_contain_text("generation 1 of 4")
    queue.end(claim, "done")
    expect(page.locator("#job-list li", has_text=claim.job.request.task)).to_contain_text("done")
    assert {asked.url for asked in streams} == {str(client.base_url.join("v1/jobs/events"))}
    for job in jobs[1:]:
        queue.cancel(job.id)
    expect(page.locator("#job-list li.queued")).to_have_count(0)


def test_a_key_goes_with_each_request_and_stays_in_the_tab(page: Page) -> None:
    page.get_by_label("API key").fill("some-key")
    with page.expect_request("**/v1/tasks") as asked:
        page.get_by_role("button", name="Use").click()
    assert asked.value.headers["authorization"] == "Bearer some-key"
    assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]


def test_the_interface_is_told_without_help_from_elsewhere(page: Page, client: httpx.Client) -> None:
    page.get_by_role("link", name="API").click()
    expect(page.locator("#operations details")).to_have_count(
        sum(len(methods) for methods in client.get("/openapi.json").json()["paths"].values())
    )
    entry = page.locator("details", has_text="POST /v1/tasks/{task}/classify")
    expect(entry.locator("dl").first).to_be_hidden()
    entry.locator("summary").focus()
    page.keyboard.press("Enter")
    expect(entry.locator("dl").first).to_contain_text("top_k (query) integer")
    expect(entry.locator("pre")).to_contain_text('"label": "rose"')
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.goto(str(client.base_url))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_dark_and_light(browser: Browser, client: httpx.Client, scheme: str) -> None:
    with browser.new_context(color_scheme=scheme, viewport={"width": 360, "height": 700}) as context:  # type: ignore[arg-type]
        page = context.new_page()
        page.goto(str(client.base_url))
        expect(page.locator("#map svg")).to_be_visible()
        choose_image(page)
        expect(page.locator(".answer")).to_have_count(3)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


def test_a_server_with_keys_is_used_with_one(browser: Browser, client: httpx.Client, store: Store) -> None:
    key, token = new_key("console", classify=("all",), manages=(), rate=None)
    add_key(store.files, key)
    try:
        with browser.new_context() as context:
            page = context.new_page()
            page.goto(str(client.base_url))
            expect(page.get_by_role("alert")).to_contain_text("key")
            page.get_by_label("API key").fill(token)
            page.get_by_role("button", name="Use").click()
            expect(page.locator("#task-table tbody tr")).to_have_count(3)
            expect(page.get_by_role("alert")).to_be_hidden()
            expect(page.locator("#release-list li")).to_have_count(4)
            expect(page.locator("#release-list")).not_to_contain_text("null")  # what this key may not know of
            choose_image(page)
            expect(page.locator(".answer")).to_have_count(3)
    finally:
        (store.folder / "keys.json").unlink()
