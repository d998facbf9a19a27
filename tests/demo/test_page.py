"""The demo's page in a real browser: by ``sdsclip demo``, and from a Space's folder as the Space starts it."""

import base64
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from browsing import body, chromium, press, screenshot, served, wait
from huggingface_hub import snapshot_download
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from sdsclip_hf.commands.space import main
from sdsclip_hf.demo.page.preference import load
from sdsclip_hf.demo.page.preference.drawings import draw_examples
from sdsclip_hf.demo.show import import_page
from sdsclip_hf.demo.space import write_space
from sdsclip_hf.shapes import model_path

pytestmark = pytest.mark.slow

RUN = "from sdsclip_hf.commands.demo import main; main()"
CAPTIONS = ["a red circle left of a blue square", "a blue square left of a red circle"]
DROP = """
const [target, name, base64] = arguments;
const bytes = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], name, {type: "image/png"}));
for (const event of ["dragenter", "dragover", "drop"])
  target.dispatchEvent(new DragEvent(event, {dataTransfer: data, bubbles: true, cancelable: true}));
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[str]:
    first, second, *_ = draw_examples(tmp_path_factory.mktemp("pictures"))["two pictures: which is left"]
    return [first, second]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, pictures) -> Path:
    """A run's folder: the bundled student after ten steps on the two pictures, and what it was made from."""
    folder = tmp_path_factory.mktemp("runs") / "tuned"
    shutil.copytree(model_path("student"), folder)
    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    images = [Image.open(path) for path in pictures]
    inputs = processor(text=CAPTIONS, images=images, padding=True, return_tensors="pt")
    optimizer = torch.optim.Adam(model.vision_model.parameters(), lr=1e-4)
    for _ in range(10):
        optimizer.zero_grad()
        model(**inputs, return_loss=True).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    (folder / "run.yaml").write_text("model_name_or_path: shapes/student\n")
    return folder


def drop(page, place: int, path: str) -> None:
    """Drop a file where the page wants picture 1 or 2."""
    target = wait(page, lambda: page.find_elements("css selector", "button[aria-label^='Drop an image']"))[place]
    page.execute_script(DROP, target, Path(path).name, base64.b64encode(Path(path).read_bytes()).decode())


def shown_pictures(page) -> int:
    """How many pictures the page has taken and shows."""
    return len(page.find_elements("css selector", "img[alt^='Picture ']"))


def write(page, captions: list[str]) -> None:
    from selenium.webdriver.common.keys import Keys

    for letter, caption in zip("AB", captions, strict=True):
        box = page.find_element("xpath", f"//label[contains(., 'Caption {letter}')]//textarea")
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(Keys.BACKSPACE, caption)


def cards(page) -> dict[str, str]:
    """heading -> what the model's card says, on one line."""
    return {
        card.get_attribute("aria-label").split()[0]: " ".join(card.text.split())
        for card in page.find_elements("css selector", "article")
    }


def expected(name: str, paths: list[str]) -> tuple[list[str], dict[str, bool] | None]:
    """The preferred caption of each picture, and Winoground's verdicts of two."""
    scores = load(name).score([Image.open(path) for path in paths], CAPTIONS)
    chosen = ["AB"[scores.caption_of(picture)] for picture in range(len(paths))]
    return chosen, scores.winoground() if len(paths) == 2 else None


def test_one_picture_then_two_by_sdsclip_demo(browser, tmp_path, tuned, pictures):
    models = {"Base": model_path("student"), "Tuned": str(tuned)}
    with served(browser, ["-c", RUN, "--model", str(tuned)], tmp_path) as page:
        wait(page, lambda: "Which caption fits?" in body(page))
        drop(page, 0, pictures[0])
        wait(page, lambda: shown_pictures(page) == 1)
        write(page, CAPTIONS)
        press(page, "Compare")
        wait(page, lambda: len(cards(page)) == 2)
        choices = {heading: expected(name, pictures[:1])[0][0] for heading, name in models.items()}
        assert choices == {"Base": "B", "Tuned": "A"}
        assert "Base prefers caption B, Tuned prefers caption A." in body(page)
        for heading, card in cards(page).items():
            assert f"Prefers caption {choices[heading]}" in card
        assert "shapes/student" in cards(page)["Base"] and str(tuned) in cards(page)["Tuned"]
        screenshot(page, "demo-one")

        drop(page, 1, pictures[1])
        wait(page, lambda: shown_pictures(page) == 2)
        press(page, "Compare")
        wait(page, lambda: "Group:" in body(page))
        for heading, name in models.items():
            chosen, verdicts = expected(name, pictures)
            card = cards(page)[heading]
            assert f"picture 1 prefers caption {chosen[0]}, picture 2 caption {chosen[1]}" in card
            for part, right in verdicts.items():
                assert f"{part.capitalize()}: {'right' if right else 'wrong'}" in card
            assert len(re.findall(r"\d+\.\d\d \d+\.\d %", card)) == 4
        assert "All four comparisons are right with Tuned alone." in body(page)
        screenshot(page, "demo-two")


def test_a_pushed_space_runs_examples_tells_errors_and_fits_a_phone(browser, tmp_path, hub_here, tuned):
    """As the Hub runs it: from the Space's files alone, with the models from the Hub."""
    models = hub_here.root / "models" / "org"
    shutil.copytree(model_path("student"), models / "base")
    shutil.copytree(tuned, models / "tuned")
    (models / "tuned" / "README.md").write_text("---\nbase_model: org/base\n---\n")
    main(["push", "org/demo", "--model", "org/tuned"])
    folder = tmp_path / "app"
    snapshot_download("org/demo", repo_type="space", local_dir=folder)
    without_package = tmp_path / "without"
    without_package.mkdir()
    (without_package / "sitecustomize.py").write_text("import sys; sys.modules['sdsclip_hf'] = None\n")
    settings = {"HF_ENDPOINT": hub_here.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with served(browser, ["app.py"], tmp_path, folder, PYTHONPATH=str(without_package), **settings) as page:
        press(page, "Compare")
        wait(page, lambda: "There is no picture yet." in body(page))
        screenshot(page, "demo-error")
        for width in (360, 1280):
            page.set_window_size(width, 1400)
            for label in ("one picture: which is left", "two pictures: which has which colour"):
                press(page, label)
                wait(page, lambda two="two" in label: len(cards(page)) == 2 and ("Group:" in body(page)) == two)
                wait(page, lambda: page.execute_script("return document.body.scrollWidth <= window.innerWidth"))
                screenshot(page, f"demo-{label[:3]}-{width}")
        assert "org/base" in cards(page)["Base"] and "org/tuned" in cards(page)["Tuned"]
        write(page, ["", CAPTIONS[0]])
        press(page, "Compare")
        wait(page, lambda: "Caption A is empty." in body(page))
        page.refresh()
        wait(page, lambda: "Compare" in body(page) and not cards(page))
        drop(page, 0, str(tmp_path / "bad.png"))
        wait(page, lambda: shown_pictures(page) == 1)
        write(page, CAPTIONS)
        press(page, "Compare")
        wait(page, lambda: "Picture 1: this file cannot be read as a picture." in body(page))
        screenshot(page, "demo-bad-picture")


def test_the_page_reads_transparency_as_the_package_does(pictures, tuned):
    page, models = import_page(), {"Tuned": str(tuned)}
    with Image.open(pictures[0]) as opened:
        clear = np.asarray(opened.convert("RGBA")).copy()
    clear[:4, :, :] = 0  # black, and not seen
    white = clear.copy()
    white[:4, :, :] = 255
    shown = [page.compare_on_white(Image.fromarray(one), None, *CAPTIONS, models=models) for one in (clear, white)]
    assert shown[0] == shown[1] and "Tuned" in shown[0]
    assert page.compare_on_white(None, None, *CAPTIONS, models=models) == page.compare(
        None, None, *CAPTIONS, models=models
    )


def test_a_space_whose_model_cannot_be_loaded_says_so(browser, tmp_path):
    folder = tmp_path / "app"
    folder.mkdir()
    write_space(folder, "org/tuned", "org/base")
    with served(browser, ["app.py"], tmp_path, folder, HF_HUB_OFFLINE="1") as page:
        wait(page, lambda: "The model org/base could not be loaded" in body(page))
        assert "HF_TOKEN" in body(page)
        screenshot(page, "demo-no-model")


def test_sdsclip_demo_stops_at_a_model_that_cannot_be_loaded(tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed")
    command = [sys.executable, "-c", RUN, "--model", str(tmp_path), "--base", "shapes/student"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert f"sdsclip demo: error: The model {tmp_path} could not be loaded" in done.stderr
    assert "Traceback" not in done.stderr
