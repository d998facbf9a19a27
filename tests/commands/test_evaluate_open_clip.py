"""Checkpoints in open_clip's form, scored by the command: as the same weights in transformers' form."""

import shutil

import pytest
import torch
from evaluations import SHAPES, error_of, run
from open_clip_package import MODEL_CFG
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

from sdsclip_hf.students.open_clip_format import to_clip_config, to_clip_weights

pytestmark = pytest.mark.usefixtures("work_folder")


@pytest.fixture
def transformers_folder(open_clip_models, tmp_path):
    """What ``quick_gelu/plain.pt`` is in transformers' form, made without what is tested."""
    config = to_clip_config(MODEL_CFG | {"quick_gelu": True})
    model = CLIPModel(config)
    model.load_state_dict(to_clip_weights(torch.load(open_clip_models / "quick_gelu/plain.pt"), config))
    model.save_pretrained(tmp_path / "same")
    tokenizer = AutoTokenizer.from_pretrained(open_clip_models / "tokenizer", model_max_length=77)
    size = {"height": 32, "width": 32}
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size)
    CLIPProcessor(images, tokenizer).save_pretrained(tmp_path / "same")
    return tmp_path / "same"


def scores(results: dict, name: str) -> list[dict]:
    return results["benchmarks"][SHAPES]["scores"][name]


def test_a_file_scores_as_the_same_in_transformers_form(open_clip_models, transformers_folder, capsys):
    files = [open_clip_models / "quick_gelu" / name for name in ("training.pt", "archive.pt")]
    architecture, tokenizer = files[0].with_name("architecture.json"), open_clip_models / "tokenizer"
    words = ["--architecture", architecture, "--processor", tokenizer, "--benchmark", SHAPES]
    results = run("--model", *files, transformers_folder, *words)
    assert scores(results, "training.pt") == scores(results, "archive.pt") == scores(results, "same")
    told = {"architecture": str(architecture), "activation": "quick_gelu", "activation_told_by": "--architecture"}
    assert results["models"]["training.pt"]["open_clip"] == told | {"checkpoint_key": "state_dict"}
    assert results["models"]["archive.pt"]["open_clip"] == told | {"checkpoint_key": None}
    assert "open_clip" not in results["models"]["same"]
    prints = {result["fingerprint"] for result in results["models"].values()}
    assert len(prints) == 1  # weights, tokenizer and preprocessing are one
    assert f"training.pt: read as {architecture} with quick_gelu, as --architecture tells." in capsys.readouterr().out
    other = open_clip_models / "gelu/architecture.json"
    words[1] = other
    assert "holds another evaluation: its architecture is" in error_of("--model", *files, transformers_folder, *words)
    words[1:2] = [other, other, other]
    told = error_of("--model", *files, transformers_folder, *words, output="others")
    assert "there are 3 architectures for 2 files of weights" in told


def test_each_file_may_have_an_architecture_of_its_own(open_clip_models):
    files = [open_clip_models / name / "plain.safetensors" for name in ("gelu", "quick_gelu")]
    architectures = [file.with_name("architecture.json") for file in files]
    words = ["--architecture", *architectures, "--processor", open_clip_models / "tokenizer", "--benchmark", SHAPES]
    models = run("--model", *files, *words)["models"]
    assert [one["open_clip"]["activation"] for one in models.values()] == ["gelu", "quick_gelu"]


@pytest.mark.parametrize("name", ["hf-hub:org/rival@main", "org/rival"])
def test_a_repository_on_the_hub_needs_nothing_told(open_clip_models, hub_here, name):
    folder = hub_here.root / "models/org/rival"
    shutil.copytree(open_clip_models / "quick_gelu/repository", folder)
    shutil.copytree(open_clip_models / "tokenizer", folder, dirs_exist_ok=True)
    results = run("--model", name, folder, "--benchmark", SHAPES)
    first, second = results["models"].values()
    assert first["fingerprint"] == second["fingerprint"] and first["open_clip"] == second["open_clip"]
    assert first["open_clip"]["activation_told_by"] == "open_clip_config.json"
