"""The page as a visitor meets it: the real app with the real model in another process, and a real browser."""

import pytest
from playwright.sync_api import Browser, Page

from bench.page import chromium, served


@pytest.fixture(scope="session")
def address():
    """The app on a free port, once it answers."""
    with served() as url:
        yield url


@pytest.fixture(scope="session")
def browser():
    """Debian's chromium, headless."""
    with chromium() as started:
        yield started


@pytest.fixture
def open_page(browser: Browser, address: str):
    """Opens the page at a window size and theme, and collects what goes wrong in it."""
    opened = []

    def start(width: int = 1400, height: int = 1000, theme: str = "light") -> Page:
        page = browser.new_page(viewport={"width": width, "height": height})
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(f"{address}?__theme={theme}")
        page.wait_for_selector("#overlay .tl-canvas", state="visible", timeout=90_000)
        opened.append(page)
        return page

    yield start
    for page in opened:
        assert not page.errors, page.errors
        page.close()
