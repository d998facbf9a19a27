"""The page of each metric's Space in a real browser, started as a Space starts it: from a folder of another name."""

import json
import shutil
from pathlib import Path

import pytest
from browsing import body, chromium, press, screenshot, served, wait

import sdsclip_hf.metrics

pytestmark = pytest.mark.slow

BAD_INPUTS = {
    "scores": ('{"scores": [[[1]]]}', "scores has shape (1, 1, 1)"),
    "image_scores": ('{"image_scores": [[1]], "caption_scores": [[1]]}', "image_scores has shape (1, 1)"),
}
OTHER_BAD_INPUTS = ('{"true_scores": [1], "false_scores": [1, 2]}', "2 false_scores for 1 true_scores")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def page(browser, tmp_path, request):
    """The browser with the page of the metric open."""
    folder = tmp_path / "app"
    shutil.copytree(sdsclip_hf.metrics.path(request.param), folder, ignore=shutil.ignore_patterns("__pycache__"))
    with served(browser, ["app.py"], tmp_path, folder) as page:
        yield page


def cells(page) -> dict[str, str]:
    """score -> its value in per cent, from the table's first two columns."""
    columns = (page.find_elements("css selector", f"[role=gridcell][data-col='{column}']") for column in (0, 1))
    return {score.text: value.text for score, value in zip(*columns, strict=False)}


def write(page, text: str) -> None:
    from selenium.webdriver.common.keys import Keys

    box = page.find_element("css selector", ".cm-content")
    box.click()
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(text)


@pytest.mark.parametrize("page", sdsclip_hf.metrics.names(), indirect=True, ids=str)
def test_the_page_computes_its_examples_and_tells_errors(page, request):
    name = request.node.callspec.params["page"]
    cases = json.loads((Path(sdsclip_hf.metrics.path(name)) / "test_cases.json").read_text())
    for number, case in enumerate(cases):
        if number:
            press(page, case["name"])
        wait(page, lambda case=case: shown_inputs(page) == case["inputs"])
        press(page, "Compute")
        shown = {score: f"{100 * value:.1f}" for score, value in case["result"].items() if isinstance(value, float)}
        wait(page, lambda shown=shown: shown.items() <= cells(page).items())
        wait(page, lambda case=case: f'"ties":{case["result"]["ties"]},' in "".join(body(page).split()))
        screenshot(page, f"{name}-{number}")
    bad, message = BAD_INPUTS.get(next(iter(case["inputs"])), OTHER_BAD_INPUTS)
    for text, expected in ((bad, message), ("nonsense", "no JSON"), ("[1]", "must be an object with")):
        write(page, text)
        press(page, "Compute")
        wait(page, lambda expected=expected: expected in body(page))
    screenshot(page, f"{name}-error")
    press(page, "About this metric")
    wait(page, lambda: "Definition" in body(page))
    page.execute_script("window.scrollTo(0, document.body.scrollHeight / 3)")
    screenshot(page, f"{name}-card")


def shown_inputs(page):
    lines = [line.text for line in page.find_elements("css selector", ".cm-line")]
    try:
        return json.loads("\n".join(lines))
    except ValueError:
        return None
