"""A page in headless Chromium, and the server that shows it, in a process of its own."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

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


@contextmanager
def chromium(folder: Path, needs: tuple[str, ...] = ("gradio",)) -> Iterator:
    """A browser that keeps what it needs in ``folder``; the test is skipped where it or what it ``needs`` is missing."""
    for module in needs:
        pytest.importorskip(module, reason=f"{module} is not installed")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    binary, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not (binary and driver):
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (*ARGUMENTS, f"--user-data-dir={folder}"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


@contextmanager
def served(browser, arguments: list[str], folder: Path, cwd: Path | None = None, **settings: str) -> Iterator:
    """The browser with the page open that ``python ARGUMENTS`` serves; at the end its log must hold no traceback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HOME": str(folder / "hub"),
        "OMP_NUM_THREADS": "1",
        **settings,
    }
    log = folder / "log"
    with log.open("w") as written:
        server = subprocess.Popen(
            [sys.executable, *arguments], cwd=cwd, env=environment, stdout=written, stderr=subprocess.STDOUT
        )
        with server:
            try:
                _wait_for_port(port, server, log)
                browser.get(f"http://127.0.0.1:{port}")
                yield browser
            finally:
                server.terminate()
    text = log.read_text()
    assert "Traceback" not in text, text


def _wait_for_port(port: int, server: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.3)
    pytest.fail(f"the page did not start:\n{log.read_text()}")


def wait(page, condition):
    """What ``condition()`` returns, once it is true; half a minute at the longest."""
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    # The page may redraw an element between finding it and reading it.
    patient = WebDriverWait(page, 30, ignored_exceptions=[StaleElementReferenceException])
    return patient.until(lambda _: condition())


def press(page, text: str) -> None:
    """Click the button that has ``text`` in it."""
    wait(page, lambda: page.find_elements("xpath", f"//button[contains(., '{text}')]"))[0].click()


def body(page) -> str:
    """All text that is shown."""
    return page.find_element("tag name", "body").text


def screenshot(page, name: str) -> None:
    """Kept only if SCREENSHOTS names a folder."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.save_screenshot(str(Path(folder) / f"{name}.png"))
