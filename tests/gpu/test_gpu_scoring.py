"""Scoring and evaluation on a GPU: the numbers of the CPU, and on several GPUs those of one."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor
from transformers.utils import is_torchvision_available

from sdsclip_hf import ClipScorer, DiffusionTeacher
from sdsclip_hf.benchmarks import load_benchmark
from sdsclip_hf.commands.score_captions import main
from sdsclip_hf.common.launching import start_processes
from sdsclip_hf.data.decoded import packed, prepared
from sdsclip_hf.data.scores import CandidateScores
from sdsclip_hf.shapes import model_path
from sdsclip_hf.students.sdsclip_model import load_clip

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.filterwarnings("ignore"),
]
WORDS = [
    "--teacher_name_or_path",
    "shapes/teacher",
    "--max_samples",
    "64",
    "--candidates",
    "batch:2",
    "--num_draws",
    "6",
]
WORDS += ["--chunk_size", "4", "--output_dir"]


@pytest.fixture
def exact(monkeypatch):
    """Convolutions in float32, too, which a GPU otherwise rounds to TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def errors_of(folder) -> np.ndarray:
    return CandidateScores.load(str(folder)).errors


def test_the_teacher_s_scores_are_those_of_the_cpu(exact):
    teacher = DiffusionTeacher.from_pretrained(model_path("teacher"), load_vae=True)
    item = load_benchmark("shapes:test").items[0]
    options = {"num_draws": 4, "timestep_range": (100, 990)}
    expected = teacher.diffusion_score(item.images, item.captions, **options)
    found = teacher.to("cuda").diffusion_score(item.images, item.captions, **options)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])  # the second by CUDA graphs
def test_a_compiled_teacher_s_scores_are_those_of_a_plain_one(exact, mode):
    teacher = DiffusionTeacher.from_pretrained(model_path("teacher"), load_vae=True).to("cuda")
    items = load_benchmark("shapes:test").items[:3]
    images, captions = [image for item in items for image in item.images], items[0].captions
    options = {"num_draws": 4, "timestep_range": (100, 990), "batch_size": 8}  # 12 pairs: the last four are filled up
    expected = teacher.diffusion_score(images, captions, **options)
    found = teacher.speed_up(compiled=mode).diffusion_score(images, captions, **options)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


def test_the_student_s_scores_are_those_of_the_cpu(exact):
    items, found = load_benchmark("shapes:test").items[:64], []
    for device in ("cpu", "cuda"):
        clip, processor = load_clip(model_path("student"))
        found.append(np.stack(ClipScorer(clip.to(device), processor).score(items)))
    np.testing.assert_allclose(*found, atol=1e-4)


@pytest.mark.skipif(not is_torchvision_available(), reason="needs torchvision")
def test_pictures_prepared_on_the_gpu_are_those_of_the_cpu_but_for_rounding():
    images = [Image.effect_noise((90, 70), 90).convert("RGB"), Image.effect_noise((70, 90), 90).convert("RGB")]
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    expected = processor(images, return_tensors="pt")["pixel_values"]
    found = prepared(packed(images), processor, torch.device("cuda"))["pixel_values"]
    levels = (found.cpu() - expected).abs() * 255 * torch.tensor(processor.image_std)[:, None, None]
    assert found.device.type == "cuda" and levels.max() < 1.01 and (levels > 0.5).float().mean() < 0.2


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_scores_shared_out_over_gpus_are_those_of_one(exact, tmp_path):
    main([*WORDS, str(tmp_path / "one")])
    assert start_processes("score-captions", [*WORDS, str(tmp_path / "two"), "--num_processes", "2"]) is None
    np.testing.assert_array_equal(errors_of(tmp_path / "one"), errors_of(tmp_path / "two"))
