"""The page in a real Chromium, on the real server with the tiny weights."""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, Request, ViewportSize, expect

from tests.builders.pictures import picture
from tests.conftest import QUICK
from tests.integration import browser as browsers
from tests.integration import repositories
from tests.integration.http_api import HttpApi
from tests.integration.hub import Fault, HubServer
from tests.integration.repositories import T2V
from wan_worker.machine.hardware import Tuned
from wan_worker.machine.tuning import Calibration, Trial, Tuning
from wan_worker.server import routes_page as pages
from wan_worker.settings import Bucket, Secret, Settings

PROMPT = "a red circle moving right on a white background"
SHORT = {"prompt": PROMPT, "size": "64x48", "num_inference_steps": "2", "duration": "0.3"}
"""A job of tenths of a second, by the names of the form's fields."""
WATCHED = SHORT | {"size": "128x96", "num_inference_steps": "30", "duration": "1", "seed": "1"}
"""A job of seconds."""
LONG = QUICK | {"num_inference_steps": 100, "num_frames": 81, "size": "128x96"}
JOB_MS = 90_000
KEY = "a-key-of-the-tests-own"
MODEL = "wan2.1-t2v-1.3b"
DESKTOP: ViewportSize = {"width": 1280, "height": 900}
UNMEASURED = f"{MODEL} has not been measured"
VIEWS = {
    "create": "#f-seed",
    "history": "#history-list video",
    "models": "#models-list button",
    "performance": "#performance:has(#advice > li) #charts svg",
}
"""Each view, and what is in it once it is complete."""

RECORD_PROGRESS = """
    window.seen = [];
    const bar = document.getElementById("bar");
    const note = () => window.seen.push([Number(bar.ariaValueNow), bar.ariaValueText]);
    new MutationObserver(note).observe(bar, { attributeFilter: ["aria-valuetext"] });
"""

# A video's controls are the browser's own, which draws its focus inside of them.
SEES_THE_FOCUS = """() => {
    const at = document.activeElement;
    const label = at.closest("[data-field]")?.querySelector("label");
    const drawn = [at, at.nextElementSibling, label].filter(Boolean);
    return at.controls || drawn.some((one) => getComputedStyle(one).outlineStyle !== "none");
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browsers.launched(browsers.find()) as found:
        yield found


@pytest.fixture(scope="module")
def api(
    chromium: Browser, models_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HttpApi]:
    with HttpApi(tmp_path_factory.mktemp("page"), models_dir) as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="module")
def visits(chromium: Browser, api: HttpApi) -> Iterator[BrowserContext]:
    """One profile for all: a page in it costs a third of what it costs in a profile of its own.

    What the page keeps, it keeps in its tab, and each test has a tab of its own.
    """
    context = chromium.new_context()
    # A tab that stays keeps the process that draws the others.
    context.new_page().goto(f"http://127.0.0.1:{api.port}/page/icon.svg")
    yield context
    assert context.cookies() == []
    context.close()


@pytest.fixture(scope="module")
def keyed(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpApi]:
    env = {"API_KEY": KEY, "API_ADMIN_KEY": "another-key-of-the-tests-own"}
    with HttpApi(tmp_path_factory.mktemp("keyed"), models_dir, env=env) as server:
        yield server


Open = Callable[..., Page]


@pytest.fixture
def open_page(visits: BrowserContext, api: HttpApi) -> Iterator[Open]:
    """Open the page; what it may never do is looked for at the end.

    That is: an error on the console, or a request to any other host. ``expected`` are failed
    requests that belong to a test, by status.
    """
    complaints: list[str] = []
    hosts: set[str] = set()
    ours: set[str] = set()
    tabs: list[Page] = []

    def opened(
        server: HttpApi = api,
        expected: tuple[int, ...] = (),
        path: str = "/",
        ready: str = "#f-seed",
        viewport: ViewportSize = DESKTOP,
        **media: Any,
    ) -> Page:
        page = visits.new_page()
        tabs.append(page)
        page.set_viewport_size(viewport)
        page.emulate_media(**media)
        page.set_default_timeout(20_000)

        def heard(message: Any) -> None:
            status = re.search(r"status of (\d+)", message.text)
            if message.type in ("error", "warning") and not (status and int(status[1]) in expected):
                complaints.append(f"{message.text} ({message.location.get('url')})")

        def asked(request: Request) -> None:
            address = urlsplit(request.url)
            if address.scheme not in ("data", "blob"):
                hosts.add(address.netloc)

        page.on("console", heard)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", asked)
        page.on("websocket", lambda socket: hosts.add(urlsplit(socket.url).netloc))
        ours.add(f"127.0.0.1:{server.port}")
        page.goto(f"http://127.0.0.1:{server.port}{path}")
        page.wait_for_selector(ready, state="attached")
        return page

    yield opened
    for page in tabs:
        page.close()
    assert complaints == []
    assert hosts == ours


def fill(page: Page, **fields: str) -> None:
    for name, value in fields.items():
        page.fill(f"#f-{name}", value)


def until(page: Page, script: str, arg: Any = None) -> None:
    """Wait until it is true; Playwright's own would need eval, which the page's policy forbids."""
    for _ in range(400):
        if page.evaluate(script, arg):
            return
        page.wait_for_timeout(50)
    raise AssertionError(script)


def submit(page: Page, **fields: str) -> str:
    """Fill in the form and send it; the job's id."""
    fill(page, **fields)
    page.click("#submit")
    page.wait_for_url("**/#job/*")
    return page.url.rpartition("/")[2]


def test_a_job_is_submitted_watched_and_its_video_plays(open_page: Open, api: HttpApi) -> None:
    page = open_page()
    page.evaluate(RECORD_PROGRESS)
    task_id = submit(page, **WATCHED)

    page.wait_for_selector("#preview:not([hidden])")
    assert page.eval_on_selector(
        "#preview", "image => image.decode().then(() => image.naturalWidth)"
    )
    page.wait_for_selector("#results video", timeout=JOB_MS)

    values, texts = zip(*page.evaluate("window.seen"), strict=True)
    assert len({value for value in values if 0 < value < 100}) >= 2
    assert list(values) == sorted(values)
    assert any(re.fullmatch(r"Denoising, step \d+ of 30, .+ left", text) for text in texts)

    assert page.eval_on_selector("#results video", "video => video.videoWidth") == 128
    until(page, "document.querySelector('#results video').currentTime > 0.3")
    assert page.is_hidden("#progress")

    with page.expect_download() as download:
        page.click("text=Download")
    made = api.look(task_id)["result"]["assets"][0]
    file = Path(download.value.path()).read_bytes()
    assert hashlib.sha256(file).hexdigest() == made["sha256"]
    assert download.value.suggested_filename.endswith(".mp4")
    expect(page.locator("#results")).to_contain_text("seed 1")


def test_several_outputs_are_one_progress_and_are_all_shown(open_page: Open) -> None:
    page = open_page()
    page.evaluate(RECORD_PROGRESS)
    page.click("#more > summary")
    submit(page, **SHORT, num_outputs="3")
    page.wait_for_selector("#results video", timeout=JOB_MS)
    values = [value for value, _ in page.evaluate("window.seen")]
    assert values == sorted(values)
    assert any("output 2 of 3" in text for _, text in page.evaluate("window.seen"))
    assert page.locator("#results video").count() == 3


def test_history_is_there_after_a_reload_and_gives_its_settings_back(open_page: Open) -> None:
    page = open_page()
    page.click("#more > summary")
    task_id = submit(page, **SHORT, guidance_scale="2.5")
    page.wait_for_selector("#results video", timeout=JOB_MS)
    page.reload()
    page.click("nav >> text=History")
    card = page.locator(f"[data-task='{task_id}']")
    expect(card).to_contain_text(PROMPT)
    expect(card).to_contain_text("Completed")
    until(page, "id => document.querySelector(`[data-task='${id}'] video`).videoWidth > 0", task_id)
    card.get_by_role("button", name="Use settings").click()
    expect(page.locator("#f-prompt")).to_be_focused()
    values = {name: page.input_value(f"#f-{name}") for name in (*SHORT, "guidance_scale", "seed")}
    assert values.pop("seed").isdigit()  # the one that was drawn: the same again
    assert values == SHORT | {"guidance_scale": "2.5"}


def test_what_was_asked_for_inline_plays_and_downloads_from_the_history(
    open_page: Open, api: HttpApi
) -> None:
    done = api.wait(api.submit(QUICK | {"response_format": "base64"}))
    (made,) = done["result"]["assets"]
    page = open_page(path="/#history", ready="#history-list video")
    card = page.locator(f"[data-task='{done['task_id']}']")
    expect(card.locator("video")).to_have_attribute("src", re.compile(r"/assets/0#"))
    until(page, "id => document.querySelector(`[data-task='${id}'] video`).videoWidth > 0",
          done["task_id"])  # fmt: skip
    card.get_by_role("link", name="Open").click()
    page.wait_for_selector("#results video")
    until(page, "document.querySelector('#results video').videoWidth === 64")
    with page.expect_download() as download:
        page.click("text=Download")
    file = Path(download.value.path()).read_bytes()
    assert hashlib.sha256(file).hexdigest() == made["sha256"]


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ({"size": "wide"}, "size"),
        ({"num_inference_steps": "1000"}, "num_inference_steps"),
        ({"duration": "2", "num_frames": "33"}, "duration"),
        ({"prompt": ""}, "prompt"),
    ],
    ids=["size", "steps", "two-lengths", "no-prompt"],
)
def test_what_is_wrong_stands_beside_its_field(
    open_page: Open, fields: dict[str, str], at: str
) -> None:
    page = open_page(expected=(422,))
    page.click("#more > summary")
    fill(page, **({"prompt": PROMPT} | fields))
    page.click("#more > summary")
    page.click("#submit")
    error, field = page.locator(f"#e-{at}"), page.locator(f"#f-{at}")
    expect(error).to_be_visible()
    expect(field).to_be_focused()
    expect(field).to_have_attribute("aria-invalid", "true")
    assert f"e-{at}" in (field.get_attribute("aria-describedby") or "").split()
    field.fill("2")
    expect(error).to_be_empty()
    assert "#job" not in page.url


def test_what_planning_finds_wrong_stands_beside_its_field_too(open_page: Open) -> None:
    page = open_page(expected=(422,))  # what it would take is asked, too
    page.select_option("#f-model", "wan2.1-t2v-1.3b")
    page.click("#more > summary")
    fill(page, **SHORT, guidance_scale_2="3")
    page.click("#submit")
    expect(page.locator("#e-guidance_scale_2")).not_to_be_empty(timeout=JOB_MS)
    assert "#job" not in page.url


def test_a_picture_becomes_a_video(open_page: Open, tmp_path: Path) -> None:
    page = open_page()
    Image.new("RGB", (96, 64), (220, 40, 40)).save(tmp_path / "red.png")
    page.set_input_files("#f-image_url", tmp_path / "red.png")
    expect(page.locator("#h-image_url")).to_contain_text("red.png")
    submit(page, **SHORT)
    page.wait_for_selector("#results video", timeout=JOB_MS)
    expect(page.locator("#facts")).to_contain_text("wan2.1-i2v-14b-480p")


def test_a_picture_that_the_server_would_refuse_is_not_even_sent(
    open_page: Open, tmp_path: Path
) -> None:
    page = open_page()
    (tmp_path / "large.png").write_bytes(b"\x89PNG" + bytes(13_000_000))
    (tmp_path / "notes.txt").write_text("no picture")
    for name, said in {"large.png": "at most 12.6 MB", "notes.txt": "PNG, JPEG or WebP"}.items():
        page.set_input_files("#f-image_url", tmp_path / name)
        expect(page.locator("#e-image_url")).to_contain_text(said)
        assert page.input_value("#f-image_url") == ""


def test_it_can_be_used_by_keyboard_alone(open_page: Open) -> None:
    page = open_page()
    focused = "document.activeElement.id || document.activeElement.textContent.trim()"

    def tab_to(name: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            # What has the focus must be seen to have it.
            outlined = page.evaluate(SEES_THE_FOCUS)
            assert outlined, page.evaluate(focused)
            if page.evaluate(focused) == name:
                return
        raise AssertionError(f"Tab does not lead to {name}")

    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "Skip to content"
    page.keyboard.press("Enter")
    tab_to("f-prompt")
    page.keyboard.type(PROMPT)
    for name in ("size", "duration", "num_inference_steps"):
        tab_to(f"f-{name}")
        page.keyboard.type(SHORT[name])
    tab_to("submit")
    page.keyboard.press("Enter")
    page.wait_for_selector("#results video", timeout=JOB_MS)
    tab_to("Download")


def test_control_enter_in_the_prompt_starts(open_page: Open) -> None:
    page = open_page()
    fill(page, **SHORT)
    page.focus("#f-prompt")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#results video", timeout=JOB_MS)


def test_a_job_that_waits_shows_its_place_and_can_be_cancelled(
    open_page: Open, api: HttpApi
) -> None:
    running = api.submit(LONG)
    api.wait(running, "running")
    before = api.submit(LONG)
    page = open_page()
    submit(page, **SHORT)
    expect(page.locator("#stage")).to_have_text("Waiting, 1 job ahead")
    api.call("DELETE", f"/api/v1/generation/{before}")
    expect(page.locator("#stage")).to_have_text("Waiting, next in line")
    page.click("#cancel")
    expect(page.locator("#failure")).to_contain_text("Cancelled")
    api.call("DELETE", f"/api/v1/generation/{running}")
    api.wait(running)


def test_a_job_that_is_to_end_and_has_not_yet_says_so(open_page: Open, api: HttpApi) -> None:
    task_id = api.submit(LONG)
    page = open_page()

    def asked_to_end(route: Any) -> None:
        reply = route.fetch()
        running = reply.json()["status"] != "canceled"
        route.fulfill(response=reply, json=reply.json() | {"cancel_requested": running})

    page.route(f"**/api/v1/generation/{task_id}", asked_to_end)
    page.evaluate("id => { location.hash = `#job/${id}`; }", task_id)
    expect(page.locator("#stage")).to_have_text("Cancelling…")
    page.wait_for_selector("#preview:not([hidden])")  # it has gone on meanwhile
    expect(page.locator("#stage")).to_have_text("Cancelling…")
    expect(page.locator("#left")).to_be_empty()
    api.call("DELETE", f"/api/v1/generation/{task_id}")
    expect(page.locator("#failure")).to_contain_text("Cancelled")


def test_a_job_goes_on_over_a_reload_and_can_be_cancelled(open_page: Open, api: HttpApi) -> None:
    task_id = api.submit(LONG)
    page = open_page(path=f"/#job/{task_id}")
    expect(page.locator("#stage")).to_contain_text("Denoising", timeout=JOB_MS)
    page.reload()
    expect(page.locator("#stage")).to_contain_text("Denoising")
    page.wait_for_selector("#preview:not([hidden])")
    page.click("#cancel")
    expect(page.locator("#failure")).to_contain_text("Cancelled")
    expect(page.locator("#screen-title")).to_be_focused()  # not lost with the button
    expect(page.locator("#said")).to_have_text("Cancelled")
    assert api.wait(task_id)["status"] == "canceled"


def test_where_websockets_are_blocked_events_do(open_page: Open, api: HttpApi) -> None:
    page = open_page()
    page.route_web_socket("**/live", lambda socket: socket.close())
    with page.expect_request("**/events"):
        submit(page, **WATCHED)
    page.wait_for_selector("#preview:not([hidden])")
    page.wait_for_selector("#results video", timeout=JOB_MS)


def test_a_server_with_a_key_is_asked_for_it_and_everything_works(
    open_page: Open, keyed: HttpApi
) -> None:
    page = open_page(keyed, expected=(401, 503), ready="#key-dialog[open]")
    page.fill("#key", "wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#key-error")).not_to_be_empty()
    page.fill("#key", KEY)
    page.keyboard.press("Enter")
    page.wait_for_selector("#f-seed")
    submit(page, **WATCHED)
    page.wait_for_selector("#preview:not([hidden])", timeout=JOB_MS)
    page.wait_for_selector("#results video", timeout=JOB_MS)
    until(page, "document.querySelector('#results video').videoWidth === 128")
    assert KEY not in page.content()
    assert page.evaluate("Object.keys(localStorage).length") == 0


def test_the_form_says_what_a_request_would_take(open_page: Open) -> None:
    page = open_page(expected=(422,))
    fill(page, **SHORT)
    line = page.locator("#estimate")
    expect(line).to_contain_text(re.compile(r"\d s · 64 × 48 · 5 frames · wan2\.1-t2v-1\.3b"))
    page.fill("#f-size", "wide")
    expect(line).to_be_empty()  # what is wrong is said when it is sent
    expect(page.locator("#e-size")).to_be_empty()


def test_settings_of_a_request_with_a_picture_say_that_it_has_to_be_chosen_again(
    open_page: Open, api: HttpApi
) -> None:
    asked = {"mode": "video", "prompt": "x", "image": picture(), "resolution": "64x48", "steps": 2}
    done = api.wait(api.submit(asked | {"num_frames": 5}))
    page = open_page(path=f"/#job/{done['task_id']}")
    page.get_by_role("button", name="Use these settings").click()
    expect(page.locator("#h-image_url")).to_have_text("It is not kept: choose it again")
    assert page.input_value("#f-size") == "64x48"  # by the fields' own names
    assert page.input_value("#f-num_inference_steps") == "2"


def test_models_say_what_they_are(open_page: Open) -> None:
    page = open_page(path="/#models")
    item = page.locator("#models-list > li", has_text="wan2.1-t2v-1.3b")
    expect(item).to_contain_text("installed")
    expect(item).to_contain_text("tiny")
    expect(item).to_contain_text("Video from a text; at its best with 832 × 480, 81 frames")
    missing = page.locator("#models-list > li", has_text="wan2.2-t2v-a14b")
    expect(missing).to_contain_text("missing")
    assert "undefined" not in page.locator("#models-list").inner_text()
    page.click("nav >> text=Create")
    assert page.locator("#f-model option", has_text="wan2.2-t2v-a14b").is_disabled()


def test_a_model_is_downloaded_cancelled_resumed_and_verified_from_the_page(
    open_page: Open, tmp_path: Path
) -> None:
    repository = T2V.id
    with (
        HubServer(repositories.build(tmp_path / "repositories")) as hub,
        HttpApi(tmp_path, tmp_path / "models", env={"HF_ENDPOINT": hub.endpoint}) as server,
    ):
        server.wait_ready()
        hub.faults.append(Fault("transformer/diffusion_pytorch_model-00003", stall=True))
        page = open_page(server, expected=(409,))
        expect(page.locator("#alerts")).to_contain_text("No model is installed")
        page.click("#alerts >> text=Go to the models")
        item = page.locator("#models-list > li", has_text=repository)
        item.get_by_role("button", name="Download").click()
        until(page, "document.querySelector('#models-list progress')?.value > 0")
        item.get_by_role("button", name="Cancel").click()
        item.get_by_role("button", name="Resume download").click()
        expect(item).to_contain_text("installed", timeout=JOB_MS)
        item.get_by_role("button", name="Verify").click()
        expect(item).to_contain_text("Every file is whole.")
        expect(page.locator("#alerts")).to_be_hidden(timeout=20_000)
        page.close()  # before its server


def test_performance_is_drawn_and_said(open_page: Open, api: HttpApi) -> None:
    api.wait(api.submit(QUICK))
    page = open_page(path="/#performance")
    page.wait_for_selector("#charts svg rect.mark")
    figure = page.locator("#charts figure").first
    expect(figure.locator("svg")).to_have_attribute("aria-hidden", "true")
    figure.locator("summary").click()
    expect(figure.get_by_role("row", name="Denoising")).to_contain_text(" s")
    expect(page.locator("#tiles")).to_contain_text("Completed")


def test_a_model_is_measured_from_the_page_and_that_is_undone(
    open_page: Open, api: HttpApi
) -> None:
    api.wait(api.submit(QUICK))
    page = open_page(path="/#performance")
    item = page.locator("#advice > li", has_text=UNMEASURED)
    expect(item).to_contain_text("can be undone")
    measure = item.get_by_role("button", name=f"Measure this model {MODEL}")
    measure.press("Enter")
    expect(page.locator("#order")).to_contain_text(f"Measuring {MODEL}")
    expect(page.locator("#tuning-title")).to_be_focused()  # not lost with the button
    expect(item).to_have_count(0)
    until(page, "document.querySelector('#order-bar').value > 0")
    assert Axe().run(page).response["violations"] == []
    page.reload()  # it goes on
    until(page, "document.querySelector('#order-bar').value > 0")

    figure = page.locator("#measured figure", has_text=MODEL)
    expect(figure).to_be_visible(timeout=JOB_MS)
    expect(page.locator("#tuning-note")).to_contain_text(f"{MODEL} is measured")
    expect(page.locator("#order")).to_be_hidden()
    expect(item).to_have_count(0)
    (measured,) = api.get("/api/v1/performance/optimize").json["calibrations"]
    figure.locator("summary").click()
    for trial in measured["trials"]:
        expect(figure.get_by_role("row", name=trial["way"])).to_contain_text(re.compile(r"\d m?s"))
    expect(figure.get_by_role("cell", name="yes")).to_have_count(1)
    gain = f"{measured['gain']:.2f} times as fast"
    tuned = any(value is not None for value in measured["tuned"].values())
    expect(figure).to_contain_text(gain if tuned else "the usual one, which stays")
    assert Axe().run(page).response["violations"] == []
    page.set_viewport_size({"width": 320, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320

    figure.get_by_role("button", name=f"Undo the measuring of {MODEL}").press("Enter")
    expect(item).to_be_visible()
    expect(figure).to_have_count(0)
    expect(page.locator("#tuning-note")).to_contain_text("Undone")
    expect(page.locator("#tuning-title")).to_be_focused()
    assert api.get("/api/v1/performance/optimize").json["calibrations"] == []


def test_what_is_taken_is_said_and_the_newest_is_undone_first(
    open_page: Open, api: HttpApi
) -> None:
    here = api.get("/api/v1/dashboard/overview").json["hardware"]["name"]
    trials = (Trial("as usual", 4.0), Trial("1 thread", 0.5))
    found = Calibration(
        MODEL, here, version("torch"), "2026-01-01T00:00:00+00:00", "a clip", trials, Tuned(1)
    )
    elsewhere = replace(found, model="wan2.1-i2v-14b-480p", machine="another", date="2026-01-02")
    tuning = Tuning(api.state_dir)
    tuning.add(found)
    tuning.add(elsewhere)
    page = open_page(path="/#performance")
    newest, older = (page.locator("#measured figure", has_text=at) for at in ("another", here))
    expect(newest).to_contain_text("Not taken: it was measured on another machine")
    expect(older).to_contain_text("Taken: 1 thread, 8.00 times as fast as before")
    older.locator("summary").click()
    expect(older.get_by_role("row", name="1 thread")).to_contain_text("500 ms")
    expect(older.get_by_role("row", name="1 thread").get_by_role("cell").last).to_have_text("yes")
    expect(older.get_by_role("button")).to_have_count(0)
    newest.get_by_role("button").dblclick()  # undoes once
    expect(newest).to_have_count(0)
    expect(older.get_by_role("button")).to_be_visible()
    assert tuning.calibrations == (found,)
    older.get_by_role("button").click()
    expect(older).to_have_count(0)


def test_measuring_is_stopped_from_the_page(open_page: Open, api: HttpApi) -> None:
    api.wait(api.submit(QUICK))
    page = open_page(path="/#performance")
    item = page.locator("#advice > li", has_text=UNMEASURED)
    item.get_by_role("button").click()
    page.click("#order-stop")
    expect(page.locator("#tuning-note")).to_have_text("Stopped: nothing was changed")
    expect(page.locator("#order")).to_be_hidden()
    expect(item.get_by_role("button")).to_be_enabled()


def test_who_may_not_measure_is_told_why(open_page: Open, keyed: HttpApi) -> None:
    page = open_page(
        keyed, expected=(401, 403, 503), path="/#performance", ready="#key-dialog[open]"
    )
    page.fill("#key", KEY)
    page.keyboard.press("Enter")
    item = page.locator("#advice > li", has_text="has not been measured")
    item.get_by_role("button").click(timeout=JOB_MS)
    expect(page.locator("#tuning-note")).to_contain_text("API_ADMIN_KEY")
    expect(item.get_by_role("button")).to_be_enabled()


def test_where_there_is_nothing_to_measure_it_says_so(open_page: Open, tmp_path: Path) -> None:
    with HttpApi(tmp_path, tmp_path / "models") as server:
        server.wait_ready()
        page = open_page(server, path="/#performance")
        expect(page.locator("#advice-none")).to_contain_text("Nothing at present")
        expect(page.locator("#advice > li")).to_have_count(0)
        page.close()  # before its server


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_is_accessible_by_axes_rules(open_page: Open, api: HttpApi, scheme: str) -> None:
    done = api.wait(api.submit(QUICK))
    page = open_page(color_scheme=scheme, reduced_motion="reduce")
    found = []
    for path, complete in (VIEWS | {f"job/{done['task_id']}": "#results video"}).items():
        page.evaluate("path => { location.hash = path; }", path)
        page.wait_for_selector(complete)
        for details in page.locator("details").all():
            details.evaluate("node => { node.open = true; }")
        results = Axe().run(page, options={"resultTypes": ["violations"]})
        found += [f"{path}: {v['id']}: {[n['html'] for n in v['nodes']]}" for v in
                  results.response["violations"]]  # fmt: skip
    assert found == []


@pytest.mark.parametrize("width", [320, 390, 768])
def test_no_view_is_wider_than_the_window(open_page: Open, api: HttpApi, width: int) -> None:
    api.wait(api.submit(QUICK))
    page = open_page(viewport={"width": width, "height": 800})
    for view, complete in VIEWS.items():
        page.click(f"nav a[href='#{view}']")
        page.wait_for_selector(complete)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, view


def test_who_wants_less_motion_gets_none(open_page: Open, api: HttpApi) -> None:
    done = api.wait(api.submit(QUICK))
    page = open_page(path=f"/#job/{done['task_id']}", reduced_motion="reduce")
    page.wait_for_selector("#results video")
    assert page.eval_on_selector("#results video", "video => video.autoplay") is False
    moving = "document.getAnimations().filter((one) => one.playState === 'running').length"
    assert page.evaluate(moving) == 0


def test_scripts_that_are_not_the_pages_do_not_run(open_page: Open, api: HttpApi) -> None:
    policy = api.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    attack = "<img src=x onerror='window.hit = 1'><script>window.hit = 1</script>"
    done = api.wait(api.submit(QUICK | {"prompt": attack}))
    page = open_page(path=f"/#job/{done['task_id']}")
    page.wait_for_selector("#results video")
    expect(page.locator("#facts .prompt")).to_have_text(attack)
    page.click("nav >> text=History")
    expect(page.locator("#history-list h2").first).to_have_text(attack)
    assert page.evaluate("window.hit") is None


@pytest.mark.parametrize("width", [390, 1280])
def test_the_reference_shows_every_route_and_field_and_asks_no_other_host(
    open_page: Open, api: HttpApi, width: int
) -> None:
    viewport = {"width": width, "height": 800}
    page = open_page(path="/docs", ready="#request table", viewport=viewport)
    document, schema = api.get("/openapi.json").json, api.get("/api/v1/schema").json
    shown = page.locator("#routes").inner_text()
    assert [path for path in document["paths"] if path not in shown] == []
    fields = page.locator("#request").inner_text()
    assert [name for name in schema["request"]["properties"] if name not in fields] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert Axe().run(page).response["violations"] == []


@pytest.mark.parametrize(
    "name", ["index.html", "..%2Fpage.py", "%2Fetc%2Fpasswd", "app.js%00.js", ""]
)
def test_only_the_pages_own_parts_are_given(api: HttpApi, name: str) -> None:
    assert api.get(f"/page/{name}").status == 404


def test_every_part_says_what_it_is_and_runs_nothing_else(api: HttpApi) -> None:
    for path, kind in {"/": "text/html", "/page/app.js": "text/javascript"}.items():
        reply = api.get(path)
        assert reply.headers["content-type"].startswith(kind)
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["content-security-policy"].startswith("default-src 'none'")


def test_finished_files_may_come_from_the_configured_bucket_and_nowhere_else() -> None:
    bucket = Bucket("https://s3.example.com:9000", Secret("a"), Secret("b"), "videos")
    with_bucket = pages.headers(Settings(bucket=bucket))["Content-Security-Policy"]
    allowed = "https://s3.example.com:9000 https://*.s3.example.com:9000"
    assert f"media-src 'self' blob: data: {allowed};" in with_bucket
    assert "example.com" not in pages.headers(Settings())["Content-Security-Policy"]
    assert "connect-src 'self';" in with_bucket
