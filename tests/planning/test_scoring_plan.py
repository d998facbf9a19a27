"""What scoring is planned to take, against the profiler on real teachers, and against sums by hand."""

import json

import pytest
import tiny_pipelines
import torch
from memory import peak
from torch import nn

from sdsclip_hf import DiffusionTeacher
from sdsclip_hf.commands import cli
from sdsclip_hf.common.writing import write_json
from sdsclip_hf.planning.scoring import AUTOENCODER, DENOISER, ENCODERS, rehearse_scoring
from sdsclip_hf.planning.teacher_memory import denoiser_bytes, kept_bytes
from sdsclip_hf.scoring.arguments import ScoringArguments, scoring_settings

pytestmark = pytest.mark.filterwarnings("ignore")


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("stable_diffusion_xl", "flux")]


@pytest.mark.parametrize("name", ["stable_diffusion_3", *SLOW])
def test_memory_is_that_of_real_scoring(tmp_path, name):
    folder = str(tiny_pipelines.save(name, tmp_path))
    cost = rehearse_scoring(ScoringArguments(folder, latent_size=8, batch_size=8, candidates=["batch:1"], chunk_size=1))
    teacher = DiffusionTeacher.from_pretrained(folder, latent_size=8, load_vae=True)
    told = teacher.encode_captions(["a"] * 8)
    edge = 8 * teacher.family.factor
    latents = torch.ones(8, *teacher.latent_shape)
    draw = torch.zeros(8, dtype=torch.long), latents.clone()
    works = {
        ENCODERS: lambda: teacher.encode_captions(["a"] * 8),
        AUTOENCODER: lambda: teacher.encode_images(torch.ones(8, 3, edge, edge)),
        DENOISER: lambda: teacher.denoising_error(latents, told, *draw),
    }
    of_a_chunk = 2 * sum(value.nbytes for value in told.values()) / 8  # two captions of its only picture
    with torch.no_grad():
        for part, work in works.items():
            work()
            planned = cost.alive[part] - (of_a_chunk if part == DENOISER else 0)
            assert planned == pytest.approx(peak(work, tmp_path / "trace.json"), rel=0.05), part
    modules = {ENCODERS: teacher.text_encoders.values(), AUTOENCODER: [teacher.vae], DENOISER: [teacher.denoiser]}
    for part, found in modules.items():
        assert cost.weights[part] == sum(weight.numel() for one in found for weight in one.parameters())


def test_worst_moments_by_hand(teacher_folder):
    cost = rehearse_scoring(ScoringArguments(teacher_folder))
    encoders, autoencoder, denoiser = cost.held[ENCODERS], cost.held[AUTOENCODER], cost.denoiser[None, None]
    at_work = max(cost.alive[AUTOENCODER], cost.alive[DENOISER])
    assert cost.memory(None, None) == encoders + autoencoder + denoiser + max(cost.alive[ENCODERS], at_work)
    assert cost.memory(None, "model") == max(encoders + cost.alive[ENCODERS], autoencoder + denoiser + at_work)
    assert cost.memory(None, "group") <= cost.memory(None, "model") < cost.memory(None, None)


class Blocks(nn.Module):
    _no_split_modules = ("Linear",)

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, size, bias=False) for size in (16, 64, 32, 16))
        self.norm = nn.LayerNorm(64)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ((None,), 4 * 8192 + 512),
        (("torchao-int8",), 8192 + 512),
        (("bitsandbytes-4bit",), 8192 * 9 / 16 + 512),
        ((None, "model"), 4 * 8192 + 512),
        ((None, "group"), 4 * (4096 + 2048) + 512),  # the largest two
        (("torchao-int8", "group"), 4096 + 2048 + 512),
        ((None, None, 2), (4 * 8192 + 512) / 2 + 4 * 4096),
    ],
)
def test_weights_on_a_device_by_hand(form, expected):
    assert denoiser_bytes(Blocks(), *form) == expected
    assert kept_bytes(Blocks()) == 4 * 8192 + 512


def test_a_configuration_plans_both_and_scores(tmp_path, monkeypatch, capsys, teacher_folder, numbered):
    settings = {"model_name_or_path": "shapes/student", "teacher_name_or_path": teacher_folder, "lambda_sds": 0.0}
    settings |= {"dataset_name": str(numbered), "max_train_samples": 6, "lambda_rank": 1.0, "teacher_dtype": "bfloat16"}
    settings |= {"ranking_scores": str(tmp_path / "scores"), "scoring": {"candidates": ["batch:2"], "num_draws": 4}}
    write_json(tmp_path / "mine.yaml", settings)  # json is yaml
    monkeypatch.setattr("sys.argv", ["sdsclip", "plan", "--config", str(tmp_path / "mine.yaml"), "--tflops", "1"])
    cli.main()
    assert "The scoring: 6 pictures x up to 3 captions x 4 draws, at most" in capsys.readouterr().out
    monkeypatch.setattr(
        "sys.argv", ["sdsclip", "score-captions", "--config", str(tmp_path / "mine.yaml"), "--seed", "3"]
    )
    cli.main()
    told = json.loads((tmp_path / "scores/scores.json").read_text())
    assert (
        told["items"] == 6 and told["teacher"]["dtype"] == "bfloat16" and told["num_draws"] == 4 and told["seed"] == 3
    )


def test_the_own_options_of_a_scoring_win():
    assert scoring_settings({"seed": 1, "train_split_name": "val", "scoring": {"seed": 2}, "lambda_sds": 1}) == {
        "seed": 2,
        "split": "val",
    }


def test_a_ranker_takes_the_teacher_s_place_and_is_not_planned():
    """The teacher of the training stays that of the training."""
    found = scoring_settings(
        {"teacher_name_or_path": "a/sd", "teacher_dtype": "float16", "scoring": {"ranker": "b/clip"}}
    )
    assert found == {"ranker": "b/clip"}
    with pytest.raises(ValueError, match="what scoring by the ranker 'b/clip' costs is not planned"):
        rehearse_scoring(ScoringArguments(**found))
