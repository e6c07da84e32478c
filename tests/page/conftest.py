"""The page as a visitor meets it: the real app with the real model in another process, and a real browser."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
START_LIMIT = 120


@pytest.fixture(scope="session")
def address():
    """Starts app.py on a free port and waits until it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_OFFLINE": "1",
    }
    process = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=environment)
    url = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(START_LIMIT * 2):
            assert process.poll() is None, "app.py ended before it served a page"
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        else:
            raise TimeoutError(f"app.py served no page within {START_LIMIT} s")
        yield url
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="session")
def browser():
    """Debian's chromium, headless."""
    assert CHROMIUM, "no chromium on this machine: run `make browser`"
    with sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield started
        started.close()


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
