"""Scorers, and the tables made of their scores."""

import json

import numpy as np
import pytest
import torch
from conftest import make_rows
from transformers import CLIPModel, CLIPProcessor

from sdsclip_hf.benchmarks import Item
from sdsclip_hf.evaluation import evaluate_benchmarks, flatten, score_benchmark, summarize, table
from sdsclip_hf.scorers import ClipScorer, DiffusionScorer
from sdsclip_hf.teacher import DiffusionTeacher


@pytest.fixture(scope="module")
def clip(clip_folder):
    return CLIPModel.from_pretrained(clip_folder).eval()


@pytest.fixture(scope="module")
def processor(clip_folder):
    return CLIPProcessor.from_pretrained(clip_folder)


@pytest.fixture(scope="module")
def teacher(teacher_folder):
    return DiffusionTeacher.from_pretrained(teacher_folder, load_vae=True)


@pytest.fixture(scope="module")
def items():
    """Items that share pictures and captions of very different lengths."""
    rows = make_rows(6)
    images, captions = [row["image"] for row in rows], [row["caption"] for row in rows]
    captions[1] = "cat"
    captions[3] = "a photo of a red cat on a blue mat on a chair"
    return [
        Item("0", (images[0], images[1]), (captions[0], captions[1]), "colour"),
        Item("1", (images[1], images[2]), (captions[1], captions[2]), "place"),
        Item("2", (images[3], images[0]), (captions[3], captions[0]), "colour"),
        Item("3", (images[4],), (captions[3], captions[4], captions[5]), "odd"),
    ]


def one_by_one(clip, processor, item) -> np.ndarray:
    """Cosines by CLIPModel.forward for each picture and caption on its own, without padding."""
    rows = []
    for caption in item.captions:
        row = []
        for image in item.images:
            inputs = processor(text=[caption], images=[image], return_tensors="pt")
            with torch.no_grad():
                output = clip(**inputs)
            row.append((output.logits_per_text / clip.logit_scale.exp()).item())
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("batch_size", [1, 3, 128])
def test_clip_scores_equal_the_model_s_own_logits_one_pair_at_a_time(clip, processor, items, batch_size):
    scores = ClipScorer(clip, processor, batch_size).score(items)
    assert [matrix.shape for matrix in scores] == [(2, 2), (2, 2), (2, 2), (3, 1)]
    for item, matrix in zip(items, scores, strict=True):
        np.testing.assert_allclose(matrix, one_by_one(clip, processor, item), atol=1e-5)


def test_padding_does_not_change_an_embedding(clip, processor):
    scorer = ClipScorer(clip, processor)
    alone = scorer.embed_captions(["cat"])
    padded = scorer.embed_captions(["a photo of a red cat on a blue mat on a chair", "cat"])
    torch.testing.assert_close(padded[1:], alone, rtol=0, atol=1e-6)


def test_captions_keep_their_order_and_have_unit_length(clip, processor):
    captions = ["a red cat on a mat", "dog", "blue chair", "a photo of a dog", "dog on mat"]
    embeds = ClipScorer(clip, processor, batch_size=2).embed_captions(captions)
    for caption, embed in zip(captions, embeds, strict=True):
        torch.testing.assert_close(embed, ClipScorer(clip, processor).embed_captions([caption])[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(embeds.norm(dim=1), torch.ones(5))


def test_caption_longer_than_the_text_tower_is_cut(clip, processor):
    scorer = ClipScorer(clip, processor)
    long = "red " * 40
    torch.testing.assert_close(scorer.embed_captions([long]), scorer.embed_captions(["red " * 18]))


def test_each_distinct_picture_and_caption_is_encoded_once(clip, processor, items, monkeypatch):
    seen = {"images": 0, "captions": 0}
    for method, name, part in (
        ("get_image_features", "images", "pixel_values"),
        ("get_text_features", "captions", "input_ids"),
    ):
        original = getattr(clip, method)

        def counted(original=original, name=name, part=part, **inputs):
            seen[name] += len(inputs[part])
            return original(**inputs)

        monkeypatch.setattr(clip, method, counted)
    ClipScorer(clip, processor, batch_size=2).score(items)
    assert seen == {
        "images": len({id(image) for item in items for image in item.images}),
        "captions": len({caption for item in items for caption in item.captions}),
    }


def test_scoring_leaves_the_mode_of_the_model_and_ignores_dropout(clip, processor, items):
    expected = ClipScorer(clip, processor).score(items)
    clip.train()
    try:
        again = ClipScorer(clip, processor).score(items)
        assert clip.training
    finally:
        clip.eval()
    for one, other in zip(expected, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_diffusion_scores_are_minus_the_teacher_s_errors(teacher, items):
    options = {"num_draws": 2, "timestep_range": (100, 800), "seed": 5}
    scores = DiffusionScorer(teacher, **options).score(items[:3])
    for item, matrix in zip(items[:3], scores, strict=True):
        for column, image in enumerate(item.images):
            for row, caption in enumerate(item.captions):
                error = teacher.diffusion_score([image], [caption], **options)
                assert matrix[row, column] == pytest.approx(-error.item(), abs=1e-5)


# Three items of each tag whose verdicts are plain to see; captions in rows, images in columns.
ALL_RIGHT = [[2.0, 1.0], [1.0, 2.0]]
TEXT_ONLY = [[2.0, 3.0], [1.0, 4.0]]  # each image prefers its caption, but both captions prefer image 1
IMAGE_ONLY = [[2.0, 1.0], [3.0, 4.0]]
ALL_WRONG = [[1.0, 2.0], [2.0, 1.0]]


def test_summary_tells_the_scores_of_each_tag():
    scores = np.array([ALL_RIGHT, TEXT_ONLY, IMAGE_ONLY, ALL_WRONG, ALL_WRONG, TEXT_ONLY])
    summary = summarize(scores, ["a", "a", "a", "a", "b", "b"])
    assert list(summary) == ["a", "b"]
    assert [summary["a"][part] for part in ("text", "image", "group")] == [0.5, 0.5, 0.25]
    assert [summary["b"][part] for part in ("text", "image", "group")] == [0.5, 0.0, 0.0]
    assert (summary["a"]["n"], summary["b"]["n"]) == (4, 2)
    low, high = summary["a"]["intervals"]["group"]
    assert 0 <= low <= 0.25 <= high <= 1
    assert json.loads(json.dumps(summary))["a"]["group"] == 0.25


def test_ties_are_wrong_and_counted():
    summary = summarize(np.array([[[1.0, 1.0], [1.0, 1.0]], ALL_RIGHT]), ["a", "a"])
    assert summary["a"]["group"] == 0.5
    assert summary["a"]["ties"] == 1


def test_flat_scores_have_one_key_each_without_blanks():
    part = {"text": 0.5, "image": 0.25, "group": 0.125, "intervals": {}, "n": 8, "ties": 0}
    flat = flatten({"shapes:test": {"attribute in relation": part}})
    assert flat == {
        "shapes:test/attribute_in_relation/text": 0.5,
        "shapes:test/attribute_in_relation/image": 0.25,
        "shapes:test/attribute_in_relation/group": 0.125,
    }


def test_table_gives_per_cent_with_intervals_a_line_for_each_run():
    scores = {
        "text": 0.5,
        "image": 0.25,
        "group": 0.125,
        "intervals": {"text": (0.4, 0.6), "image": (0.2, 0.3), "group": (0.0, 1.0)},
        "n": 8,
        "ties": 0,
    }
    better = scores | {"group": 1.0}
    lines = table({"before": {"shapes": {"all": scores}}, "after": {"shapes": {"all": better}}}).splitlines()
    assert lines[0].split() == ["benchmark", "tag", "items", "run", "text", "image", "group"]
    assert set(lines[1]) == {"-"}
    assert " ".join(lines[2].split()) == "shapes all 8 before 50.0 [40.0, 60.0] 25.0 [20.0, 30.0] 12.5 [ 0.0, 100.0]"
    assert "100.0 [ 0.0, 100.0]" in lines[3] and "after" in lines[3]
    starts = {line.index("[") for line in lines[2:]}
    assert len(starts) == 1


class Oracle:
    """Scores every item right, or every item of one tag wrong."""

    def __init__(self, wrong_tag=None):
        self.wrong_tag = wrong_tag

    def score(self, items):
        return [np.array(ALL_WRONG if item.tag == self.wrong_tag else ALL_RIGHT) for item in items]


def test_benchmark_scores_follow_the_scorer():
    results = evaluate_benchmarks(Oracle("relation"), ["shapes:validation", "shapes:test"])
    assert list(results) == ["shapes:validation", "shapes:test"]
    for tags in results.values():
        assert {tag: scores["group"] for tag, scores in tags.items()} == {
            "attribute": 1.0,
            "attribute in relation": 1.0,
            "relation": 0.0,
        }


def test_benchmark_scores_are_those_of_its_items(clip, processor):
    scores, tags = score_benchmark(ClipScorer(clip, processor), "shapes:validation")
    assert scores.shape == (len(tags), 2, 2)
    assert np.abs(scores).max() <= 1 + 1e-5


def test_unknown_benchmark_raises_with_the_choices():
    with pytest.raises(ValueError, match=r"unknown benchmark 'winogrand'; choose from .*shapes"):
        evaluate_benchmarks(Oracle(), ["winogrand"])
