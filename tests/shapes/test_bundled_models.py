"""The models that come with the package: standard formats, small, and as skilled as their card says."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPModel, CLIPTokenizer

from sdsclip_hf.benchmarks import Benchmark, load_benchmark
from sdsclip_hf.evaluation.results import evaluate_benchmark
from sdsclip_hf.evaluation.scorers import ClipScorer, DiffusionScorer
from sdsclip_hf.shapes import load_shapes, model_path, resolve, scenes
from sdsclip_hf.students.sdsclip_model import load_clip
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher


@pytest.fixture(scope="module")
def teacher():
    return DiffusionTeacher.from_pretrained(model_path("teacher"), load_vae=True)


def scores(scorer, items) -> dict:
    """(tag, score) -> row."""
    rows = evaluate_benchmark(scorer, Benchmark("shapes", "winoground", items, {}))
    return {(row["subset"], row["score"]): row for row in rows}


def test_the_models_are_safetensors_of_under_20_mb_together():
    files = [file for file in Path(scenes.__file__).parent.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 20e6
    assert not [file for file in files if file.suffix in (".bin", ".pt", ".pkl")]


@pytest.mark.slow
def test_the_teacher_scores_unseen_combinations_by_its_own_error(teacher):
    items = load_benchmark("shapes:test").items[::4]
    scorer = DiffusionScorer(teacher, num_draws=11, timestep_range=(100, 990), weighting="velocity")
    found = scores(scorer, items)
    for tag in ("attribute", "attribute in relation", "relation"):
        assert found[tag, "group"]["n"] == 48
        assert found[tag, "text"]["value"] >= 0.95 and found[tag, "group"]["value"] >= 0.90, tag


def test_the_teacher_is_at_chance_when_the_captions_are_exchanged_for_those_of_other_items(teacher):
    items = [item for item in load_benchmark("shapes:test").items if item.tag == "relation"][::8]
    mixed = [item._replace(captions=other.captions) for item, other in zip(items, items[1:] + items[:1], strict=True)]
    scorer = DiffusionScorer(teacher, num_draws=5, timestep_range=(600, 990), weighting="velocity")
    assert scores(scorer, mixed)["all", "group"]["value"] < 0.6


def test_diffusers_samples_from_the_teacher():
    pipeline = StableDiffusionPipeline.from_pretrained(model_path("teacher"))
    pipeline.set_progress_bar_config(disable=True)
    seed = torch.Generator().manual_seed(0)
    image = pipeline("a red circle left of a blue square", num_inference_steps=20, generator=seed).images[0]
    pixels = np.asarray(image, dtype=int)
    assert pixels.shape == (32, 32, 3)
    left, right = pixels[10:22, 4:13].mean((0, 1)), pixels[10:22, 19:28].mean((0, 1))
    assert left[0] - left[2] > 60 and right[2] - right[0] > 60  # red on the left, blue on the right


def test_the_student_tells_objects_and_colours_but_not_their_order():
    clip, processor = load_clip(model_path("student"))
    scorer = ClipScorer(clip, processor)
    combinations = scenes.combinations("test")
    captions = [f"a {colors[0]} {shapes[0]} and a {colors[1]} {shapes[1]}" for shapes, colors in combinations]
    pictures = load_shapes("test", per_scene=1)
    truth = []
    for row in pictures:
        words = set(row["caption"][0].split())
        truth.append([set(caption.split()) - {"and"} <= words for caption in captions].index(True))
    similarity = scorer.embed_images(pictures["image"]) @ scorer.embed_captions(captions).T
    found = (similarity.argmax(1) == torch.tensor(truth)).float().mean()
    assert found > 0.8  # chance is 1 in 24
    results = scores(scorer, load_benchmark("shapes:test").items)
    assert len(results) == 12
    assert all(row["value"] < 0.15 for (_, score), row in results.items() if score == "group")


def test_the_student_is_a_plain_clip():
    model, info = CLIPModel.from_pretrained(model_path("student"), output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.logit_scale.exp().item() == pytest.approx(100, rel=1e-5)


@pytest.mark.parametrize("model", ["student", "teacher/tokenizer"])
@pytest.mark.parametrize("caption", ["a red circle", "Grinning face!", "日本語 ünïcode 😀", "x" * 15])
def test_any_caption_can_be_encoded(model, caption):
    tokenizer = CLIPTokenizer.from_pretrained(str(Path(model_path("student")).parent / model))
    ids = tokenizer(caption).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == caption.lower().replace(" ", "")
    assert tokenizer.unk_token_id not in ids[1:-1]
    assert max(ids) < len(tokenizer)


def test_names_resolve_to_bundled_folders_and_others_stay():
    assert Path(resolve("shapes/teacher")).is_dir()
    assert resolve("openai/clip-vit-base-patch32") == "openai/clip-vit-base-patch32"
    with pytest.raises(ValueError, match="teacher, student"):
        model_path("nothing")
