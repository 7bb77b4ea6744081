"""Takes the pictures of the page in docs/: ``make pictures``. Tiny weights, a real browser.

Two jobs are made through the page; the second is caught while it is watched.
"""

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page

from tests.integration.browser import NAMES, launched, on_path
from tests.integration.http_api import HttpApi
from wan_worker.weights import tiny

DOCS = Path(__file__).resolve().parents[2] / "docs"
PROMPT = "a red circle moving right on a white background"
FIELDS = {"size": "96x64", "duration": "2", "num_inference_steps": "80", "seed": "3"}
SIZE = {"width": 1280, "height": 860}


def main() -> None:
    chromium = on_path()
    if chromium is None:
        sys.exit(f"needs one of {', '.join(NAMES)} on the PATH")
    with tempfile.TemporaryDirectory() as home:
        tiny.write(Path(home) / "models", ["wan2.1-t2v-1.3b", "wan2.1-i2v-14b-480p"])
        with HttpApi(Path(home), Path(home) / "models") as server, launched(chromium) as browser:
            server.wait_ready()
            address = f"http://127.0.0.1:{server.port}/"
            task = take(browser, address, "dark", DOCS / "page-dark.png", watched=False)
            take(browser, address, "light", DOCS / "page.png", watched=True)
            print(f"docs/page.png, docs/page-dark.png (job {task})")


def take(browser: Browser, address: str, scheme: str, path: Path, *, watched: bool) -> str:
    """One picture of the create view: of a job that is watched, or of its result."""
    page = browser.new_page(viewport=SIZE, color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(address)
    page.wait_for_selector("#f-seed")
    page.fill("#f-prompt", PROMPT)
    for name, value in FIELDS.items():
        page.fill(f"#f-{name}", value)
    page.click("#submit")
    if watched:
        half_way(page)
    else:
        page.wait_for_selector("#results video", timeout=120_000)
        page.wait_for_timeout(1000)
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=path)
    task_id = page.url.rpartition("/")[2]
    page.close()
    return task_id


def half_way(page: Page) -> None:
    for _ in range(2400):
        value = page.get_attribute("#bar", "aria-valuenow") or "0"
        if int(value) >= 45 and page.is_visible("#preview"):
            return
        page.wait_for_timeout(25)
    raise AssertionError("no preview half-way")


if __name__ == "__main__":
    main()
