"""The page of each metric's Space in a real browser, started as a Space starts it: from a folder of another name."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sdsclip_hf.metrics

pytestmark = pytest.mark.slow

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1400",
]
BAD_INPUTS = {"scores": ('{"scores": [[[1]]]}', "scores has shape (1, 1, 1)")}
OTHER_BAD_INPUTS = ('{"true_scores": [1], "false_scores": [1, 2]}', "2 false_scores for 1 true_scores")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    pytest.importorskip("gradio", reason="gradio is not installed")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not (chromium and driver):
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def page(browser, tmp_path, request):
    """The browser with the page of the metric open."""
    folder = tmp_path / "app"
    shutil.copytree(sdsclip_hf.metrics.path(request.param), folder, ignore=shutil.ignore_patterns("__pycache__"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HOME": str(tmp_path / "hub"),
        "OMP_NUM_THREADS": "1",
    }
    log = (tmp_path / "log").open("w+")
    with subprocess.Popen([sys.executable, "app.py"], cwd=folder, env=environment, stdout=log, stderr=log) as server:
        try:
            wait_for_port(port, server, tmp_path / "log")
            browser.get(f"http://127.0.0.1:{port}")
            yield browser
        finally:
            server.terminate()
    text = (tmp_path / "log").read_text()
    assert "Traceback" not in text, text


def wait_for_port(port: int, server: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.3)
    pytest.fail(f"the page did not start:\n{log.read_text()}")


def wait(page, condition):
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    # The page may redraw an element between finding it and reading it.
    patient = WebDriverWait(page, 30, ignored_exceptions=[StaleElementReferenceException])
    return patient.until(lambda _: condition())


def press(page, text: str) -> None:
    wait(page, lambda: page.find_elements("xpath", f"//button[contains(., '{text}')]"))[0].click()


def body(page) -> str:
    return page.find_element("tag name", "body").text


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


def screenshot(page, name: str) -> None:
    """Kept only if SCREENSHOTS names a folder."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.save_screenshot(str(Path(folder) / f"{name}.png"))


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
