"""The demo: what its page computes and says, and the command's errors."""

import math
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import make_clip, make_processor
from dual_encoders import KINDS, STUDENTS, make_dual_encoder
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from sdsclip_hf.commands import demo as command
from sdsclip_hf.demo.page.preference import compare, load
from sdsclip_hf.demo.page.preference.drawings import draw_examples
from sdsclip_hf.demo.page.preference.model import ModelError
from sdsclip_hf.demo.page.preference.rendering import STYLE
from sdsclip_hf.demo.page.preference.scores import Scores
from sdsclip_hf.demo.show import find_models
from sdsclip_hf.metrics.common.winoground import right_items
from sdsclip_hf.shapes import model_path

STUDENT, OTHER = model_path("student"), model_path("student_bag_of_words")
CAPTIONS = ["a red circle left of a blue square", "a blue square left of a red circle"]
BOTH = {"Base": STUDENT, "Tuned": OTHER}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Image.Image]:
    """The two of an example with two pictures."""
    first, second, *_ = draw_examples(tmp_path_factory.mktemp("examples"))["two pictures: which is left"]
    return [Image.open(first), Image.open(second)]


def text_of(html: str) -> str:
    """What a reader sees of the HTML: without styles and tags."""
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)).split())


def card_of(html: str, heading: str) -> str:
    return text_of(html.split(f'<article aria-label="{heading} model">')[1].split("</article>")[0])


@pytest.mark.parametrize("count", [1, 2])
def test_scores_are_the_models_own_logits(pictures, count):
    scores = load(STUDENT).score(pictures[:count], CAPTIONS)
    inputs = CLIPProcessor.from_pretrained(STUDENT)(
        text=CAPTIONS, images=pictures[:count], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(STUDENT)(**inputs).logits_per_image  # (pictures, captions)
    assert scores.pictures == count
    logits = [[scores.logit(caption, picture) for caption in (0, 1)] for picture in range(count)]
    shares = [[scores.share(caption, picture) for caption in (0, 1)] for picture in range(count)]
    torch.testing.assert_close(torch.tensor(logits), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(torch.tensor(shares), expected.softmax(dim=1), atol=1e-4, rtol=1e-4)
    chosen = expected.argmax(dim=1).tolist()
    assert [scores.caption_of(picture) for picture in range(count)] == chosen


@pytest.mark.parametrize("kind", STUDENTS)
def test_scores_are_the_model_s_own_logits_but_for_a_bias(kind, tmp_path):
    """SigLIP reads its padding, and adds a bias, which no preference hangs on; TIPSv2 divides by its temperature."""
    model, processor = make_dual_encoder(kind)
    bias = model.logit_bias.item() if hasattr(model, "logit_bias") else 0.0
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    captions, picture = ["a cat", "a red dog on a mat"], Image.new("RGB", (30, 20), "red")
    text = {"padding": "max_length", "max_length": 12 if kind.startswith("siglip") else 20, "return_tensors": "pt"}
    inputs = processor(text=captions, images=picture, **text, **KINDS[kind].options)
    with torch.no_grad():
        expected = model(**inputs).logits_per_image[0] - bias
    scores = load(str(tmp_path)).score([picture], captions)
    torch.testing.assert_close(torch.tensor([scores.logit(0, 0), scores.logit(1, 0)]), expected, atol=1e-4, rtol=1e-4)


def test_a_caption_that_is_the_same_to_the_model_ties(pictures):
    scores = load(STUDENT).score(pictures, ["a red circle", "A  red circle"])
    assert scores.caption_of(0) is None and scores.caption_of(1) is None
    assert scores.share(0, 0) == 0.5


def test_a_caption_longer_than_the_model_reads_is_named(pictures):
    long = "a circle and " * 60
    assert load(STUDENT).score(pictures, [long, CAPTIONS[0]]).cut == (0,)
    assert load(STUDENT).score(pictures, [CAPTIONS[0], long]).cut == (1,)
    shown = compare(pictures[0], None, CAPTIONS[0], long, BOTH)
    assert text_of(shown).count("Caption B is longer than this model reads; its end was left out.") == 2


def test_verdicts_are_those_of_the_metrics():
    rng = np.random.default_rng(0)
    matrices = rng.integers(0, 4, size=(500, 2, 2)) / 4  # with many ties
    expected = right_items(matrices)
    for number, matrix in enumerate(matrices):
        verdicts = Scores(matrix.tolist(), scale=3.0).winoground()
        assert verdicts == {part: bool(right[number]) for part, right in expected.items()}
    assert 0 < expected["group"].sum() < expected["image"].sum() < 500


def test_a_model_that_cannot_be_used_is_told_with_its_name(tmp_path, pictures):
    with pytest.raises(ModelError, match=r"nowhere could not be loaded .*HF_TOKEN"):
        load(str(tmp_path / "nowhere"))
    text_tower = tmp_path / "text"
    clip, processor = make_clip(), make_processor()
    clip.text_model.save_pretrained(text_tower)
    processor.save_pretrained(text_tower)
    with pytest.raises(ModelError, match=r"no dual encoder such as CLIP: it has no get_image_features"):
        load(str(text_tower))
    without_tokenizer = tmp_path / "wordless"
    shutil.copytree(STUDENT, without_tokenizer, ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(ModelError, match="wordless"):
        load(str(without_tokenizer))
    shown = compare(pictures[0], None, *CAPTIONS, {"Base": STUDENT, "Tuned": str(tmp_path / "nowhere")})
    assert 'role="alert"' in shown and "nowhere could not be loaded" in text_of(shown)


def test_one_picture_shows_which_caption_each_model_prefers(pictures):
    shown = compare(pictures[0], None, f"  {CAPTIONS[0]} ", CAPTIONS[1], BOTH, {"Base": "org/base", "Tuned": "<i>"})
    choices = {}
    for heading, name in (("Base", STUDENT), ("Tuned", OTHER)):
        scores = load(name).score(pictures[:1], CAPTIONS)
        choices[heading] = "AB"[scores.caption_of(0)]
        card = card_of(shown, heading)
        assert f"Prefers caption {choices[heading]}" in card
        for number, letter in enumerate("AB"):
            percent, logit = 100 * scores.share(number, 0), scores.logit(number, 0)
            assert f"{letter} {CAPTIONS[number]} {percent:.1f} % score {logit:.2f}" in card
    assert choices == {"Base": "B", "Tuned": "A"}
    assert "Base prefers caption B, Tuned prefers caption A." in text_of(shown)
    assert "org/base" in card_of(shown, "Base") and "&lt;i&gt;" in card_of(shown, "Tuned")
    same = compare(None, pictures[0], *CAPTIONS, {"Base": STUDENT, "Tuned": STUDENT})
    assert "Both models prefer caption B." in text_of(same)


def test_two_pictures_show_the_four_scores_and_three_verdicts(tmp_path):
    first, second, *captions = draw_examples(tmp_path)["two pictures: which has which colour"]
    pictures = [Image.open(first), Image.open(second)]
    shown = compare(*pictures, *captions, BOTH)
    right = []
    for heading, name in BOTH.items():
        scores, card = load(name).score(pictures, captions), card_of(shown, heading)
        for number in (0, 1):
            cells = [f"{scores.logit(number, at):.2f} {100 * scores.share(number, at):.1f} %" for at in (0, 1)]
            assert f"{'AB'[number]} {captions[number]} {' '.join(cells)}" in card
            assert f"picture {number + 1} prefers caption " not in card or scores.caption_of(number) is not None
        for part, verdict in scores.winoground().items():
            assert f"{part.capitalize()}: {'right' if verdict else 'wrong'}" in card
        if scores.winoground()["group"]:
            right.append(heading)
    assert right == ["Base"]
    assert "All four comparisons are right with Base alone." in text_of(shown)
    swapped = compare(*pictures[::-1], *captions, BOTH)
    assert "All four comparisons are right with neither model." in text_of(swapped)
    assert "picture 1 prefers caption B, picture 2 caption A" in card_of(swapped, "Base")
    assert "caption A prefers picture 2, caption B picture 1" in card_of(swapped, "Base")


def test_ties_are_told_as_such(pictures):
    shown = compare(*pictures, "a red circle", "A red circle", {"Base": STUDENT, "Tuned": OTHER})
    assert "picture 1 prefers neither caption (an exact tie), picture 2 neither caption" in card_of(shown, "Base")
    one = compare(pictures[0], None, "a red circle", "A red circle", {"Base": STUDENT, "Tuned": OTHER})
    assert "Both models prefer neither caption (an exact tie)." in text_of(one)


@pytest.mark.parametrize(
    ("captions", "with_picture", "message"),
    [
        (CAPTIONS, False, "There is no picture yet."),
        (["", "a dog"], True, "Caption A is empty."),
        (["a dog", " \n"], True, "Caption B is empty."),
        ([None, None], True, "Caption A and caption B are empty."),
        (["a dog", "a dog "], True, "The two captions are the same."),
    ],
)
def test_what_is_missing_is_told_in_plain_words(pictures, captions, with_picture, message):
    shown = compare(pictures[0] if with_picture else None, None, *captions, {"Base": "/nowhere"})
    assert 'role="alert"' in shown
    assert message in text_of(shown)


@pytest.mark.parametrize("count", [1, 2])
def test_captions_are_text_and_no_html(pictures, count):
    shown = compare(pictures[0], pictures[1] if count == 2 else None, "<script>a</script>", "<b>b", BOTH)
    assert "<script>" not in shown and "<b>b" not in shown
    assert shown.count("&lt;script&gt;a&lt;/script&gt;") == 2


def test_odd_pictures_are_read():
    scores = [
        load(STUDENT).score([picture], CAPTIONS).cosines
        for picture in (Image.new("L", (1, 300)), Image.new("RGBA", (300, 1)), Image.new("P", (5, 7)))
    ]
    assert all(math.isfinite(value) for matrix in scores for row in matrix for value in row)


def test_examples_are_drawn_in_the_words_of_the_captions(tmp_path):
    examples = draw_examples(tmp_path)
    assert any(second is None for _, second, *_ in examples.values())
    for first, second, *captions in examples.values():
        assert sorted(captions[0].split()) == sorted(captions[1].split())
        assert captions[0] != captions[1]
        for path in filter(None, (first, second)):
            assert Image.open(path).size == (256, 256)
    first, second, *_ = examples["two pictures: which is left"]
    left, right = ((66, 128), (190, 128))
    colours = [[Image.open(path).getpixel(place) for place in (left, right)] for path in (first, second)]
    (red, blue), other_way_round = colours
    assert other_way_round == [blue, red]
    assert red[0] > 200 > 100 > red[2] and blue[2] > 200 > 100 > blue[0]


def test_a_model_is_not_compared_with_itself(tmp_path):
    with pytest.raises(ValueError, match="compared with itself; give another model as --base"):
        find_models("org/name", "org/name")


def test_the_command_names_the_extra_where_gradio_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit, match=r'gradio, which is not installed; pip install "sdsclip_hf\[demo\]"'):
        command.main(["--model", STUDENT, "--base", OTHER])


def test_the_command_asks_for_a_base():
    with pytest.raises(SystemExit, match=r"sdsclip demo: error: .*give it as --base"):
        command.main(["--model", STUDENT])


def test_what_is_shown_has_colours_of_its_own_where_the_page_around_it_has_none():
    own = set(re.findall(r"(--[\w-]+):", STYLE))
    for use in re.findall(r"var\(([^)]+(?:\([^)]*\))?[^)]*)\)", STYLE):
        name, comma, _ = use.partition(",")
        assert bool(comma) != (name in own), use
