"""The page as a visitor waits for it: ``python -m bench.page``. Starts app.py, and drives it in headless chromium.

start: from the start of the process (warm caches) until both first answers stand there. question: from Enter on a new question
until both answers, with all patches and with a quarter of them, are written. slider: from letting go of it until the pruned answer
is; the full one is known by then. Medians with quartiles; the browser shares the cores. Ends with one JSON line.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

from bench.timing import summary

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
START_LIMIT, LIMIT = 120, 180  # seconds
QUESTIONS = ("What do you see?", "Describe the picture.", "List the objects in the picture.", "What does the picture show?")
PERCENTS = (60, 70, 80, 90)
DONE = '[data-answer="{}"][data-state="done"]'


@contextmanager
def served() -> Iterator[str]:
    """Starts app.py on a free port, waits until it answers, and yields its address; ends it afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_OFFLINE": "1",
    }
    process = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=sys.stderr)
    url = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(START_LIMIT * 10):
            assert process.poll() is None, "app.py ended before it served a page"
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise TimeoutError(f"app.py served no page within {START_LIMIT} s")
        yield url
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's chromium, headless."""
    assert CHROMIUM, "no chromium on this machine: run `make browser`"
    with sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield started
        started.close()


def open_page(page: Page, url: str) -> None:
    """Opens the page and waits until both first answers are written."""
    page.goto(url)
    for side in ("full", "pruned"):
        expect(page.locator(DONE.format(side))).to_be_visible(timeout=1000 * LIMIT)


def seconds(page: Page, act: Callable[[], object]) -> float:
    """From the end of ``act`` until the panel of answers is another one and says that both are written."""
    page.evaluate("document.querySelector('#answers .tl-answers').dataset.before = true")
    act()
    began = time.perf_counter()
    page.wait_for_function(
        """() => {
            const panel = document.querySelector('#answers .tl-answers:not([data-before])');
            const states = [...(panel ? panel.querySelectorAll('[data-answer]') : [])].map(card => card.dataset.state);
            return states.length === 2 && states.every(state => state === 'done');
        }""",
        polling=20,
        timeout=1000 * LIMIT,
    )
    return time.perf_counter() - began


def ask(page: Page, question: str) -> float:
    """Seconds to both answers to a question."""
    box = page.locator("#question textarea, #question input").first
    box.fill(question)
    return seconds(page, lambda: box.press("Enter"))


def slide(page: Page, percent: int) -> float:
    """Seconds to the pruned answer, once the slider is let go at ``percent``."""
    handle = page.locator("#prune input[type=range]")
    box = handle.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + percent / 100 * box["width"], box["y"] + box["height"] / 2, steps=5)
    return seconds(page, page.mouse.up)


def main() -> int:
    """Prints the medians and the JSON line."""
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 1600})
        began = time.perf_counter()
        with served() as url:
            open_page(page, url)
            found = {"start": [time.perf_counter() - began]}
            found["question"] = [ask(page, question) for question in QUESTIONS]
            found["slider"] = [slide(page, percent) for percent in PERCENTS]
            steps = [text for text in page.locator(".tl-times td").all_inner_texts() if "steps" in text]
    record = {}
    for name, times in found.items():
        timing = summary(times)
        record[name] = {"s": round(timing.median, 2), "q1": round(timing.q1, 2), "q3": round(timing.q3, 2)}
        print(f"{name:9} {timing.median:6.2f} s  ({timing.q1:.2f} - {timing.q3:.2f}, {timing.n} times)")
    print("; ".join(steps))
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
