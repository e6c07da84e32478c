"""The reading tools as a visitor meets them: closed and idle at first, then pointed at, clicked and dragged."""

import re
import time

from PIL import Image
from playwright.sync_api import Page, expect

from tests.page.test_page import ANSWER_LIMIT, kept, wait_for_answers
from training import world

PLOT = "#tradeoff-plot .js-plotly-plot"
# Where the points of MMR are on the screen, by rising lambda.
POINTS = """() => {
  const plot = document.querySelector('#tradeoff-plot .js-plotly-plot'), { xaxis, yaxis } = plot._fullLayout;
  const { left, top } = plot.querySelector('.nsewdrag').getBoundingClientRect();
  const mmr = plot._fullData.find((trace) => trace.name === 'MMR over lambda');
  return mmr.x.map((x, i) => [left + xaxis.d2p(x), top + yaxis.d2p(mmr.y[i]), mmr.customdata[i][3]]);
}"""
# The importance that each of them keeps.
HEIGHTS = """() => {
  const plot = document.querySelector('#tradeoff-plot .js-plotly-plot');
  return Array.from(plot?._fullData?.find((trace) => trace.name === 'MMR over lambda')?.y ?? []);
}"""
RING = "document.querySelector('#tradeoff-plot .js-plotly-plot')?.data.find((t) => t.name === 'In use')?.customdata[0][3]"


def open_lab(page: Page, tab: str | None = None) -> None:
    """Opens the accordion, and one of its tabs."""
    wait_for_answers(page)
    page.locator("#lab > button").click()
    expect(page.locator(f"{PLOT} .points path").first).to_be_visible(timeout=60_000)
    if tab is None:
        return
    button = page.locator(f'#lab [role=tab]:has-text("{tab}")')
    if not button.is_visible():
        page.locator("#lab .overflow-menu > button").click()
        button = page.locator(f'#lab .overflow-dropdown button:has-text("{tab}")')
    button.click()


def state(page: Page, tool: str, name: str) -> str:
    """What a map says it shows."""
    return page.locator(f"#{tool} [data-{name}]").first.get_attribute(f"data-{name}") or ""


PIXELS = """() => {
  const canvas = document.querySelector('#compare-map canvas');
  const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  let sum = 0;
  for (let i = 0; i < data.length; i += 4) sum = (sum * 31 + data[i]) % 1000003;
  return sum;
}"""


def test_nothing_is_computed_before_the_tools_are_opened(open_page):
    page = open_page()
    wait_for_answers(page)
    loaded = "performance.getEntriesByType('resource').filter((e) => e.name.includes('PlotlyPlot')).length"
    assert page.evaluate(loaded) == 0 and page.locator(PLOT).count() == 0
    assert page.locator("#tradeoff-map [data-kept]").count() == 0


def test_a_point_shows_its_patches_and_a_click_makes_the_page_use_it(open_page):
    page = open_page(1400, 1200)
    open_lab(page)
    expect(page.locator("#tradeoff-title")).to_contain_text("MMR matches or beats")
    expect(page.locator("#tradeoff-map .tl-caption")).to_contain_text("lambda 0.5: 64 patches hold")
    assert state(page, "tradeoff-map", "kept") == "64"
    before = page.evaluate("document.querySelector('#tradeoff-map canvas').toDataURL()")
    page.locator("#tradeoff-plot").scroll_into_view_if_needed()
    x, y, lam = page.evaluate(POINTS)[1]
    assert lam == 0.05
    page.mouse.move(x, y)
    expect(page.locator("#tradeoff-map .tl-caption")).to_contain_text("lambda 0.05")
    assert page.evaluate("document.querySelector('#tradeoff-map canvas').toDataURL()") != before
    page.mouse.click(x, y)
    expect(page.locator("#lambda input[type=range]")).to_have_value("0.05", timeout=30_000)
    expect(page.locator(".tl-method")).to_contain_text("lambda 0.05", timeout=30_000)
    page.mouse.move(5, 5)
    page.wait_for_function(f"{RING} === 0.05", timeout=ANSWER_LIMIT)
    expect(page.locator("#tradeoff-map .tl-caption")).to_contain_text("lambda 0.05", timeout=30_000)
    wait_for_answers(page)
    page.locator("#tradeoff-axis label").filter(has_text="Coverage").click()
    page.wait_for_function(f"document.querySelector('{PLOT}')?.layout.xaxis.title.text.includes('Cosine')", timeout=60_000)


def test_tools_that_are_opened_while_a_picture_is_read_show_that_picture(open_page):
    page = open_page(1400, 1200)
    page.locator("#lab > button").click()
    expect(page.locator("#tradeoff-map .tl-caption")).to_contain_text("patches hold", timeout=ANSWER_LIMIT)
    wait_for_answers(page)
    before = page.evaluate(HEIGHTS)
    page.locator("#lab > button").click()
    page.locator("#examples button").nth(3).click()
    page.locator("#lab > button").click()
    page.wait_for_function(
        f"before => (({HEIGHTS})()).length === 21 && JSON.stringify(({HEIGHTS})()) !== JSON.stringify(before)",
        arg=before,
        timeout=30_000,
    )


def test_the_trade_off_of_an_uploaded_picture_is_drawn_at_once(open_page, tmp_path):
    page = open_page(1400, 1200)
    open_lab(page)
    wait_for_answers(page)
    before, answers = page.evaluate(HEIGHTS), page.locator("#answers").inner_html()
    drawn = Image.fromarray(world.draw(world.rng_for(7, 11), (448, 448)).image)
    drawn.save(tmp_path / "mine.png")
    page.locator("#picture button[aria-label*='lear' i], #picture button[aria-label*='emove' i]").first.click()
    began = time.perf_counter()
    page.locator("#picture input[type=file]").first.set_input_files(tmp_path / "mine.png")
    page.wait_for_function(f"before => JSON.stringify(({HEIGHTS})()) !== JSON.stringify(before)", arg=before, timeout=30_000)
    print(f"{time.perf_counter() - began:.2f} s from the upload to its trade-off, both answers written meanwhile")
    told = page.locator("#answers").inner_html() == answers or page.locator("#answers [data-state=done]").count() < 2
    assert told, "it does not wait for the new answers"
    # Without a pointer the map shows what is in use, of the new picture.
    expect(page.locator("#tradeoff-map .tl-caption")).to_contain_text("lambda 0.5: 64 patches hold")
    assert len(page.evaluate(HEIGHTS)) == len(before) == 21


def test_feature_space_follows_the_slider_and_the_pointer_without_a_request(open_page):
    page = open_page(1400, 2400)
    open_lab(page, "Feature space")
    expect(page.locator("#feature-map [data-kept]")).to_have_attribute("data-kept", "64", timeout=30_000)
    handle = page.locator("#prune input[type=range]")
    box = handle.bounding_box()
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    side = page.locator(".tl-canvas").bounding_box()["width"] / 16
    page.locator(".tl-canvas").hover(position={"x": 2.5 * side, "y": 1.5 * side})
    expect(page.locator("#feature-map [data-pointed]")).to_have_attribute("data-pointed", "18")
    page.locator("#feature-map canvas").hover(position={"x": 2, "y": 2})
    expect(page.locator(".tl-tip")).not_to_be_visible()
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + box["height"] / 2)
    page.mouse.down()
    for step in range(6):
        page.mouse.move(box["x"] + (0.7 - 0.05 * step) * box["width"], box["y"] + box["height"] / 2)
        page.wait_for_timeout(80)
        expect(page.locator("#feature-map [data-kept]")).to_have_attribute("data-kept", str(kept(page)))
    assert requests == [], f"dragging asked the server: {requests}"
    page.mouse.up()


def test_two_methods_and_the_reason_of_a_patch(open_page):
    page = open_page(1400, 1600)
    open_lab(page, "Compare methods")
    counts = page.locator("#compare-map [data-counts]")
    expect(counts).to_be_attached(timeout=30_000)
    neither, one, other, both = map(int, state(page, "compare-map", "counts").split())
    assert one + both == other + both == 64 and neither + one + other + both == 256
    expect(page.locator("#overlap-plot .js-plotly-plot .heatmaplayer")).to_be_visible(timeout=30_000)
    page.locator('#lab [role=tab]:has-text("Why this patch?")').click()
    words = page.locator("#reason-map .tl-words")
    expect(words).to_contain_text("gain at step", timeout=30_000)
    before = words.inner_text()
    page.locator("#reason-map canvas").click(position={"x": 8, "y": 8})
    expect(words).to_contain_text("row 1, column 1", timeout=30_000)
    assert words.inner_text() != before and re.search(r"(kept|dropped)", words.inner_text())
    assert page.locator("#lab-notice").inner_text() == ""
    page.locator("#tokens input").fill("100")
    page.locator("#tokens input").press("Enter")
    expect(words).to_contain_text("row 1, column 1")
    expect(words).to_contain_text(re.compile("kept, as number|100 of 256 are kept"), timeout=30_000)


def test_two_methods_are_swiped_and_several_answer(open_page):
    page = open_page(1400, 1600)
    open_lab(page, "Compare methods")
    expect(page.locator("#compare-map [data-counts]")).to_be_attached(timeout=30_000)
    still = page.evaluate(PIXELS)
    page.locator("#compare-map label:has-text('swipe')").click()
    canvas = page.locator("#compare-map canvas")
    page.wait_for_function(f"() => ({PIXELS})() !== {still}")
    box = canvas.bounding_box()
    before = page.evaluate(PIXELS)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + 40, steps=4)
    page.mouse.up()
    assert page.locator("#compare-map .tl-swipe").input_value() == "20"
    page.wait_for_function(f"() => ({PIXELS})() !== {before}")
    page.locator("#measure").click()
    expect(page.locator("#divergence-plot .heatmaplayer")).to_be_visible(timeout=60_000)
    expect(page.locator("#several [data-state=done]")).to_have_count(5, timeout=60_000)
    page.locator("#question textarea").fill("How many things do you see?")
    page.locator("#question textarea").press("Enter")
    expect(page.locator("#several [data-state=done]")).to_have_count(0, timeout=30_000)


def test_narrow_dark_tools_do_not_overflow(open_page):
    page = open_page(390, 900, "dark")
    open_lab(page)
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") <= 391
    page.get_by_role("tab", name="Feature space").click()
    expect(page.locator("#feature-map [data-kept]")).to_be_attached(timeout=30_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 391
    page.locator("#lab .overflow-menu > button").click()
    page.locator('#lab .overflow-dropdown button:has-text("Why this patch?")').click()
    expect(page.locator("#reason-map canvas").first).to_be_visible(timeout=30_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 391
