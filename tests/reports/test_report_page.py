"""The page of an evaluation in headless Chromium: filters, keys, points, a phone's width, dark, and many items."""

import time

import numpy as np
import pytest
from browsing import body, chromium, screenshot, wait
from evaluations import write_evaluation
from PIL import Image

from sdsclip_hf.benchmarks import Benchmark, Item, load_benchmark
from sdsclip_hf.reports.gather import gather
from sdsclip_hf.reports.page import write_page

pytestmark = pytest.mark.slow

SHAPES = "shapes:validation"
NASTY = '<img src=x onerror="document.title=1"></script><script>document.title = 1</script>'
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}

CLICK = """
const point = document.querySelectorAll("#points circle")[arguments[0]];
point.dispatchEvent(new MouseEvent("click", {bubbles: true}));
"""
COLORS = """
const texts = "body, .note, .item, .item .chip, td.up, td.down, .caption, button, select";
return [...document.querySelectorAll(texts)].map(one => {
  let back = one;
  while (getComputedStyle(back).backgroundColor === "rgba(0, 0, 0, 0)") back = back.parentElement;
  return [getComputedStyle(one).color, getComputedStyle(back).backgroundColor];
});
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium"), needs=()) as browser:
        yield browser


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A page of two benchmarks: pairs of the shapes world with made scores, and choices whose texts look like HTML."""
    folder = tmp_path_factory.mktemp("scores") / "out"
    rng = np.random.default_rng(0)
    pairs = load_benchmark(SHAPES)
    items = [Item(f"<i>{n}</i>", (Image.new("RGB", (30, 30), "red"),), (NASTY, "b"), NASTY) for n in range(4)]
    choices = Benchmark("sugarcrepe:swap_obj", "sugarcrepe", items, {"items": 4})
    answered = [
        (pairs, {run: [rng.random((2, 2)).astype(np.float32) for _ in pairs.items] for run in ("base", "<b>tuned</b>")}),
        (choices, {run: [rng.random((2, 1)).astype(np.float32) for _ in items] for run in ("base", "<b>tuned</b>")}),
    ]  # fmt: skip
    write_evaluation(folder, answered)
    content, pictures = gather(folder, benchmarks={SHAPES: pairs, choices.name: choices})
    write_page(folder / "report.html", content, pictures)
    return folder / "report.html", content["benchmarks"]


@pytest.fixture
def page(browser, written):
    browser.get(written[0].as_uri())
    yield browser
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]


def press(page, text: str) -> None:
    page.find_element("xpath", f"//button[starts-with(., '{text}')]").click()


def shown(page) -> int:
    """How many items the filters leave."""
    return int(page.find_element("id", "count").text.split()[0].replace(",", ""))


def current(page) -> str:
    return page.find_element("css selector", ".item.current header b").text


def choose(page, name: str, text: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(page.find_element("id", name)).select_by_visible_text(text)


def test_filters_leave_the_items_that_fit(page, written):
    one = written[1][0]
    assert shown(page) == len(one["items"]) == 288
    for kind in ("won", "lost", "both wrong", "both right"):
        press(page, kind)
        assert shown(page) == one["kinds"][kind]
        chips = page.find_elements("css selector", ".item .chip.kind")
        assert {chip.text for chip in chips} == {kind} and 0 < len(chips) <= 24
    press(page, "all")
    choose(page, "tag", "relation")
    of_tag = [item for item in one["items"] if one["tags"][item["tags"][0]] == "relation"]
    assert shown(page) == len(of_tag)
    sought = of_tag[0]["captions"][0].split()[1:3]  # a colour and a shape
    page.find_element("id", "words").send_keys(" ".join(sought).upper())
    of_words = [item for item in of_tag if all(word in " ".join(item["captions"]) for word in sought)]
    assert shown(page) == len(of_words) < len(of_tag)
    choose(page, "model", "<b>tuned</b> wrong")
    assert shown(page) == sum(item["margins"][1] <= 0 for item in of_words) > 0
    screenshot(page, "report-filtered")


def test_items_are_ordered_by_margin_and_keys_move_through_pages(page, written):
    from selenium.webdriver.common.keys import Keys

    items = written[1][0]["items"]
    choose(page, "order", "margin of <b>tuned</b>, lowest first")
    order = [item["id"] for item in sorted(items, key=lambda item: item["margins"][1])]
    heads = [head.text for head in page.find_elements("css selector", ".item header b")]
    assert heads == order[:24]
    keyboard = page.find_element("tag name", "body")
    page.execute_script("document.activeElement.blur()")
    for _ in range(23):
        keyboard.send_keys("j")
    assert current(page) == order[23]
    page.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert current(page) == order[24] == page.find_element("css selector", ".item header b").text
    page.switch_to.active_element.send_keys("k")
    assert current(page) == order[23]
    page.switch_to.active_element.send_keys("/")
    page.switch_to.active_element.send_keys("jk")  # into the field, not a move
    assert page.find_element("id", "words").get_attribute("value") == "jk" and shown(page) == 0
    page.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert shown(page) == len(items)
    press(page, "Last")
    assert "page 12 of 12" in body(page)


def test_a_point_opens_its_item_and_a_word_filters(page, written):
    items = written[1][0]["items"]
    index = next(n for n, item in enumerate(items) if item["kind"] == "lost")
    page.execute_script(CLICK, index)
    assert current(page) == items[index]["id"]
    pictures = page.find_elements("css selector", ".item.current img")
    assert [one.get_attribute("alt") for one in pictures] == [
        f"Picture {n + 1}: {caption}" for n, caption in enumerate(items[index]["captions"])
    ]
    assert all(one.get_property("naturalWidth") > 0 for one in pictures)
    word = page.find_element("css selector", ".ends button")
    sought = word.text
    word.click()
    assert shown(page) == sum(sought in " ".join(item["captions"]) for item in items)


def test_texts_that_look_like_html_are_texts(page):
    assert page.title == "base against <b>tuned</b>"
    press(page, "sugarcrepe")
    wait(page, lambda: shown(page) == 4)
    assert body(page).count(NASTY) >= 4 and "<i>0</i>" in body(page)
    assert page.title == "base against <b>tuned</b>"
    assert not page.find_elements("css selector", ".item i:not(.m0):not(.m1), [onerror]")


def test_it_fits_a_phone_and_is_dark_at_night_and_asks_for_nothing(page):
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    for name in ("shapes", "sugarcrepe"):
        press(page, name)
        assert page.execute_script("return document.documentElement.scrollWidth") <= PHONE["width"]
        screenshot(page, f"report-phone-{name}")
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    shades = {}
    for scheme in ("light", "dark"):
        feature = [{"name": "prefers-color-scheme", "value": scheme}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": feature})
        press(page, "shapes")
        screenshot(page, f"report-{scheme}")
        shades[scheme] = page.execute_script(COLORS)
        assert min(contrast(*map(channels, pair)) for pair in shades[scheme]) >= 4.5, scheme
    assert shades["light"][0] != shades["dark"][0]
    fetched = page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert all(address.startswith("data:") for address in fetched)


def channels(color: str) -> list[float]:
    return [float(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]


def contrast(one: list[float], other: list[float]) -> float:
    """The contrast ratio of WCAG 2.2, section 1.4.3."""

    def luminance(color: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_five_thousand_items_open_within_three_seconds(browser, tmp_path):
    rng = np.random.default_rng(0)
    words = [f"word{n}" for n in range(2000)]
    pictures = [Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)) for _ in range(5000)]
    items = [
        Item(str(n), (one,), tuple(" ".join(rng.choice(words, 10)) for _ in range(2)), f"tag{n % 40}")
        for n, one in enumerate(pictures)
    ]
    benchmark = Benchmark("sugarcrepe", "sugarcrepe", items, {"items": 5000})
    answers = {run: [rng.random((2, 1)).astype(np.float32) for _ in items] for run in ("base", "tuned")}
    folder = write_evaluation(tmp_path / "scores", [(benchmark, answers)])
    content, thumbnails = gather(folder, benchmarks={"sugarcrepe": benchmark})
    write_page(folder / "report.html", content, thumbnails)
    assert len(thumbnails) > 2000 and 15e6 < (folder / "report.html").stat().st_size < 30e6
    started = time.perf_counter()
    browser.get((folder / "report.html").as_uri())
    browser.execute_async_script("const done = arguments[0]; requestAnimationFrame(() => setTimeout(done))")
    seconds = time.perf_counter() - started
    assert shown(browser) == 5000 and len(browser.find_elements("css selector", ".item img")) >= 20
    assert seconds < 3, seconds
