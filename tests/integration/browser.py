"""A real Chromium without a screen, on this machine's own addresses alone."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")

QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--renderer-process-limit=1",
)
"""No sandbox: in a container the browser is root's, and what it opens is ours. The rest: a browser
that asks nobody for anything by itself, and draws all tabs of a profile in one process."""


def on_path() -> str | None:
    """Chromium's path, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def find() -> str:
    """Chromium's path. Without one: skips where somebody works, fails where CI does."""
    if found := on_path():
        return found
    why = "no Chromium on the PATH: install your system's chromium package to test the page"
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


@contextmanager
def launched(path: str) -> Iterator[Browser]:
    """A browser with a profile of its own, gone with it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=list(QUIET))
        try:
            yield browser
        finally:
            browser.close()
