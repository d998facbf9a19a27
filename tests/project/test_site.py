"""The documentation site in a browser: search, copy buttons, dark mode, and a phone's width."""

import contextlib
import functools
import http.server
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from browsing import body, chromium, screenshot, wait
from doc_blocks import ROOT

pytestmark = pytest.mark.slow

PHONE = (390, 844)


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site built as CI builds it, and the address where it is served."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium"), needs=()) as browser:
        yield browser


@pytest.fixture
def page(browser, site):
    """Opens a page of the site: ``page("quickstart")``."""

    def opened(name: str):
        browser.get(f"{site[1]}{name}/" if name else site[1])
        wait(browser, lambda: browser.find_elements("css selector", "article h1"))
        return browser

    return opened


def names(folder: Path) -> list[str]:
    pages = sorted(folder.rglob("index.html"))
    return [page.parent.relative_to(folder).as_posix().removeprefix(".") for page in pages]


@contextlib.contextmanager
def phone(browser):
    """The browser as a telephone of 390 pixels, which its window cannot be made as narrow as."""
    metrics = {"width": PHONE[0], "height": PHONE[1], "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_no_page_fetches_anything_from_elsewhere(page, site):
    for name in names(site[0]):
        browser = page(name)
        fetched = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert all(address.startswith(site[1]) for address in fetched), (name, fetched)


def test_search_finds_a_word_and_leads_to_its_page(page):
    browser = page("")
    browser.execute_script("document.querySelector('label.md-search__icon[for=__search]').click()")
    browser.find_element("css selector", "input[name=query]").send_keys("emoji")
    link = "a.md-search-result__link[href*='/your_data/'][href*='#an-example']"
    found = wait(browser, lambda: [one for one in browser.find_elements("css selector", link) if one.is_displayed()])
    screenshot(browser, "search")
    found[0].click()
    marked = wait(browser, lambda: browser.find_elements("css selector", "article mark"))
    assert "emoji" in {mark.text for mark in marked} and "/your_data/" in browser.current_url


def test_a_command_can_be_copied(page):
    from selenium.webdriver import ActionChains

    browser = page("quickstart")
    browser.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite"]})
    copy = wait(browser, lambda: browser.find_elements("css selector", "article button[data-md-type=copy]"))[0]
    ActionChains(browser).move_to_element(copy).click().perform()
    wait(browser, lambda: "Copied to clipboard" in body(browser))
    read = "navigator.clipboard.readText().then(arguments[0], error => arguments[0](String(error)))"
    assert browser.execute_async_script(read).strip() == "pip install -e . && accelerate launch recipes/finetune.py"


def test_dark_mode_toggles_and_stays(page):
    def shade() -> int:
        colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3])

    def toggle() -> str:
        """Press the button in the header; what the page then goes by."""
        labels = browser.find_elements("css selector", "label[for^=__palette]")
        next(label for label in labels if label.is_displayed()).click()
        return browser.execute_script("return document.body.dataset.mdColorMedia")

    browser = page("ranking")
    seen = {toggle(): shade() for _ in range(3)}
    assert seen["(prefers-color-scheme: light)"] > 600 > 200 > seen["(prefers-color-scheme: dark)"]
    while toggle() != "(prefers-color-scheme: dark)":
        pass
    for name in ("", "ranking", "study", "options"):
        page(name)
        assert shade() < 200
        screenshot(browser, f"dark-{name or 'home'}")
    browser.execute_script("localStorage.clear()")


def test_no_page_is_wider_than_a_phone(page, site):
    browser = page("")
    with phone(browser):
        for name in names(site[0]):
            page(name)
            wide = browser.execute_script("return document.documentElement.scrollWidth")
            assert wide <= PHONE[0], f"{name} is {wide} pixels wide"
            screenshot(browser, f"phone-{name.replace('/', '-') or 'home'}")


def test_no_bracket_of_a_reference_is_left_and_all_pictures_load(page, site):
    for name in names(site[0]):
        browser = page(name)
        text = browser.execute_script(
            "const copy = document.querySelector('article').cloneNode(true);"
            "copy.querySelectorAll('code, pre, style, script, .jp-InputArea').forEach(code => code.remove());"
            "return copy.textContent"
        )
        assert "[`" not in body(browser) and "[]" not in text and "][" not in text, name
        missing = "return [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
        assert not browser.execute_script(missing), name
        screenshot(browser, f"light-{name.replace('/', '-') or 'home'}")
