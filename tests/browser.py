"""Debian's Chromium, for tests of pages."""

import contextlib
import shutil
from importlib.util import find_spec

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SWITCHES = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
WAIT_MS = 120_000


def require_browser():
    """Skip a test where there is no browser to drive."""
    if find_spec("playwright") is None:
        pytest.skip("the package playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")


@contextlib.contextmanager
def started_browser():
    """The browser, closed at the end."""
    require_browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield browser
        browser.close()


def guarded(page, address, elsewhere):
    """Open an address; what it asks other places for is refused, and added to `elsewhere`."""

    def guard(route):
        if route.request.url.startswith((address, "data:", "blob:")):
            route.continue_()
        else:
            elsewhere.append(route.request.url)
            route.abort()

    page.set_default_timeout(WAIT_MS)
    page.route("**/*", guard)
    page.goto(address)
    return page
