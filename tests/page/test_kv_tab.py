"""The tab "Trim bits" as a visitor meets it: answer, read the heat map, move through the steps, look at one sum, cancel."""

import re

import pytest
from playwright.sync_api import Page, expect

ANSWER_LIMIT = 120_000


def open_tab(page: Page) -> None:
    """Waits for the first tab's answers (one model, few cores), then opens the tab."""
    expect(page.locator('[data-answer="pruned"][data-state="done"]')).to_be_visible(timeout=ANSWER_LIMIT)
    page.get_by_role("tab", name="Trim bits").click()
    expect(page.locator("#kv-go")).to_be_visible()


def answer(page: Page) -> None:
    """Answers with trimmed bits, to the end."""
    page.locator("#kv-go").click()
    expect(page.locator('#kv-status [data-run="done"]')).to_be_visible(timeout=ANSWER_LIMIT)
    expect(page.locator("#kv-overlay .tb-canvas")).to_be_visible(timeout=30_000)


def pixels(page: Page) -> str:
    """The overlay as it is drawn."""
    return page.evaluate("document.querySelector('.tb-canvas').toDataURL()")


def test_a_visitor_answers_and_moves_through_the_steps_without_a_request(open_page):
    page = open_page(1400, 1800)
    open_tab(page)
    assert page.locator("#kv-heat .js-plotly-plot").count() == 0, "nothing may be there before it was asked for"
    answer(page)
    expect(page.locator("#kv-heat .js-plotly-plot .heatmaplayer").first).to_be_attached(timeout=30_000)
    expect(page.locator("#kv-tokens .js-plotly-plot .scatterlayer")).to_be_attached(timeout=30_000)
    assert "memory" in page.locator("#kv-status").inner_text()
    slider = page.locator("#kv-overlay .tb-step")
    steps = int(slider.get_attribute("max"))
    words = page.locator("#kv-overlay .tb-answer span").count()
    assert steps == words - 1 > 2
    page.wait_for_timeout(2000)
    requests, looks = [], set()
    page.on("request", lambda request: requests.append(request.url))
    for step in range(1, steps + 1):
        slider.fill(str(step))
        expect(page.locator("#kv-overlay .tb-count")).to_have_text(f"step {step} of {steps}")
        assert page.locator("#kv-overlay .tb-now").count() == 1
        looks.add(pixels(page))
    assert len(looks) > steps / 2, "steps read different bits"
    before = pixels(page)
    page.locator('#kv-overlay [data-which="0"]').click()
    keys = pixels(page)
    page.locator("#kv-overlay .tb-layer").select_option(label="10")
    assert len({before, keys, pixels(page)}) == 3, "K, V and a layer must look different"
    page.locator("#kv-overlay .tb-canvas").hover(position={"x": 60, "y": 60})
    assert re.search(r"row \d+, column \d+: K read with [\d.]+ bits", page.locator(".tb-tip").inner_text())
    assert requests == [], f"the browser asked the server: {requests}"


def test_the_criterion_is_shown_for_a_chosen_sum_and_the_first_tab_stays_as_it_was(open_page):
    page = open_page(1400, 1800)
    open_tab(page)
    answer(page)
    page.locator("#kv-criterion button").first.click()
    page.locator("#kv-explain").click()
    chart = page.locator("#kv-exponents .js-plotly-plot")
    expect(chart.locator(".gtitle")).to_contain_text("q.k in layer", timeout=ANSWER_LIMIT)
    page.get_by_label("p.V: tokens of V").check()
    expect(chart.locator(".gtitle")).to_contain_text("p.V in layer", timeout=30_000)
    kept = page.locator("#prune input[type=range]")
    page.get_by_role("tab", name="Trim tokens").click()
    expect(page.locator(".tl-count")).to_be_visible(timeout=30_000)
    percent, shown = float(kept.input_value()), page.locator(".tl-share").inner_text()
    assert abs(percent - float(shown.split("%")[0])) < 1, (percent, shown)


def test_errors_are_measured_beside_their_bounds(open_page):
    page = open_page(1400, 1800)
    open_tab(page)
    answer(page)
    page.locator("#kv-errors button").first.click()
    page.locator("#kv-measure").click()
    expect(page.locator('#kv-measured [data-measured="done"]')).to_be_visible(timeout=ANSWER_LIMIT)
    for chart in ("#kv-quality", "#kv-bounds"):
        expect(page.locator(f"{chart} .js-plotly-plot .scatterlayer path.point").first).to_be_attached(timeout=30_000)


def test_decode_attention_is_timed_and_a_timing_can_be_stopped(open_page):
    page = open_page(1400, 1800)
    open_tab(page)
    page.locator("#kv-speed > button").click()
    expect(page.locator("#kv-speed .js-plotly-plot .heatmaplayer")).to_be_attached(timeout=30_000)
    page.locator("#kv-time").click()
    expect(page.locator('#kv-timed [data-timed="done"]')).to_be_visible(timeout=ANSWER_LIMIT)
    expect(page.locator("#kv-times .js-plotly-plot .gtitle")).to_contain_text("times", timeout=30_000)
    page.locator("#kv-time").click()
    expect(page.locator("#kv-timed .tb-progress")).to_be_visible(timeout=30_000)
    page.locator("#kv-speed").get_by_role("button", name="Cancel").click()
    expect(page.locator("#kv-timed")).to_contain_text("Stopped", timeout=30_000)


def test_cancel_stops_an_answer(open_page):
    page = open_page()
    open_tab(page)
    page.get_by_label("The paper's rule (AlignedKV)").check()
    page.locator("#kv-go").click()
    expect(page.locator('#kv-status [data-run="writing"]')).to_be_visible(timeout=ANSWER_LIMIT)
    page.locator("#kv-stop").click()
    expect(page.locator("#kv-status")).to_contain_text("Stopped", timeout=30_000)
    page.wait_for_timeout(4000)
    assert page.locator('#kv-status [data-run="done"]').count() == 0
    expect(page.locator("#kv-overlay .tb-canvas")).to_be_hidden()


@pytest.mark.parametrize(("width", "theme"), [(390, "dark"), (700, "light")])
def test_a_narrow_page_does_not_overflow(open_page, width, theme):
    page = open_page(width, 900, theme)
    open_tab(page)
    answer(page)
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width + 1, f"the page is {wide} px wide in a window of {width}"
