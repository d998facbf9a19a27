"""The page: one or two pictures and two captions go in, what two models make of them comes out."""

import json
import tempfile
from functools import partial
from pathlib import Path

import gradio as gr
from PIL import Image
from pixels import to_rgb
from preference import ModelError, compare, draw_examples, load, show_error

SETTINGS = Path(__file__).with_name("sdsclip_demo.json")
TITLE = "Which caption fits?"
TEXT = """
Drop a picture and write two captions, best of the same words in another order. You see which one each model prefers: the
base model, and the same model after tuning. With two pictures, write picture 1's caption as A and picture 2's as B.
"""
ABOUT = """
The score is the cosine of the model's embeddings of caption and picture, times the model's own scale. The percentage is
the softmax over the two captions of a picture. The higher score is the preferred one, however small the difference. Scores
of different models are on different scales.

The three verdicts on two pictures are those of Winoground (Thrush et al. 2022). Text: each picture prefers its own
caption. Image: each caption prefers its own picture. Group: both. A tie is wrong. Chance gives 1/4, 1/4 and 1/6.
"""
THEME = gr.themes.Default(primary_hue="indigo", font=["system-ui", "sans-serif"])
CSS = """
.gradio-container { max-width: 960px !important; margin: 0 auto !important; }
.html-container:has(.duel) { padding: 0 !important; }
"""


def picture(label: str) -> gr.Image:
    """A place for a picture, which tells in plain words when a file cannot be read as one."""
    image = gr.Image(
        label=label,
        alt_text=label,
        type="pil",
        image_mode="RGBA",  # gradio would make transparency black
        sources=["upload", "clipboard"],
        height=240,
        min_width=240,
    )
    read = image.preprocess

    def preprocess(payload):
        try:
            return read(payload)
        except gr.Error:
            raise
        except Exception as error:  # whatever the file makes Pillow raise
            text = f"{label}: this file cannot be read as a picture. Choose a PNG, JPEG or WebP file."
            raise gr.Error(text, duration=20, print_exception=False) from error

    # A class of its own would have gradio write a file beside this one.
    image.preprocess = preprocess
    return image


def compare_on_white(first: Image.Image | None, second: Image.Image | None, *captions: str, **options) -> str:
    """[`compare`] of the pictures as the package reads them."""
    pictures = (None if picture is None else to_rgb(picture) for picture in (first, second))
    return compare(*pictures, *captions, **options)


def build(models: dict[str, str], names: dict[str, str] | None = None, notice: str = "") -> gr.Blocks:
    """The page.

    Args:
        models: heading -> the model's folder or Hub id.
        names: heading -> what the model is called on the page; default: as in ``models``.
        notice: HTML that stands in the place of the results at first.
    """
    with gr.Blocks(title=TITLE) as page:
        gr.Markdown(f"# {TITLE}\n{TEXT}")
        with gr.Row():
            pictures = [picture("Picture 1"), picture("Picture 2 (optional)")]
        with gr.Row():
            captions = [
                gr.Textbox(label=f"Caption {letter}", placeholder=text, max_lines=3, min_width=240)
                for letter, text in (("A", "a dog on a cat"), ("B", "a cat on a dog"))
            ]
        button = gr.Button("Compare", variant="primary")
        results = gr.HTML(notice, apply_default_css=False)
        inputs, run = [*pictures, *captions], partial(compare_on_white, models=models, names=names)
        examples = draw_examples(Path(tempfile.mkdtemp(prefix="examples-")))
        gr.Examples(
            list(examples.values()), inputs, results, run, False, example_labels=list(examples), run_on_click=True
        )
        gr.on([button.click, *(caption.submit for caption in captions)], run, inputs, results, api_name="compare")
        with gr.Accordion("What the numbers mean", open=False):
            gr.Markdown(ABOUT)
    return page


def launch(page: gr.Blocks, **options) -> None:
    """Show the page until it is stopped; ``options`` are those of gradio's ``launch``."""
    page.launch(theme=THEME, css=CSS, footer_links=["gradio", "settings"], **options)


def load_all(models: dict[str, str]) -> None:
    """Load the models ahead of the first comparison.

    Raises:
        ModelError: one cannot be used.
    """
    for name in models.values():
        load(name)


def main() -> None:
    """Show the page of the models that the settings beside this file name."""
    models = json.loads(SETTINGS.read_text(encoding="utf-8"))["models"]
    try:
        load_all(models)
        notice = ""
    except ModelError as error:
        notice = show_error(str(error))
    launch(build(models, notice=notice))


if __name__ == "__main__":
    main()
