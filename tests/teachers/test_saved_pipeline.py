"""Checkpoints that are no teachers, or whose parts do not fit one another: refused by what is wrong."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import tiny_pipelines
import torch
from conftest import make_pipeline
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from transformers.utils import import_utils

from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher


@pytest.fixture
def broken(teacher_folder, tmp_path):
    """A copy of the teacher's folder, to be broken."""
    return Path(shutil.copytree(teacher_folder, tmp_path / "broken"))


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_folder_without_model_index_raises_with_both_names(broken):
    (broken / "model_index.json").unlink()
    with pytest.raises(OSError, match=r"broken.*model_index\.json"):
        DiffusionTeacher.from_pretrained(broken)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "tokenizer", "scheduler"])
def test_index_without_a_part_raises_with_its_name(broken, part):
    edit_json(broken / "model_index.json", **{part: [None, None]})
    with pytest.raises(ValueError, match=rf"broken.*has no {part}\b"):
        DiffusionTeacher.from_pretrained(broken)


@pytest.mark.parametrize(
    "part",
    [
        "unet",
        "text_encoder",
        "tokenizer",
        "scheduler",
    ],
)
def test_folder_without_a_part_s_files_raises_with_the_folder(broken, part):
    shutil.rmtree(broken / part)
    with pytest.raises(OSError, match=r"the teacher '.*broken'.*could not be loaded"):
        DiffusionTeacher.from_pretrained(broken)


@pytest.mark.parametrize("kind", ["StableDiffusionInpaintPipeline", "KandinskyV22Pipeline"])
def test_a_pipeline_that_cannot_be_a_teacher_raises_with_its_class_and_those_that_can(broken, kind):
    edit_json(broken / "model_index.json", _class_name=kind)
    with pytest.raises(
        ValueError, match=rf"is a {kind}, which cannot be one.*StableDiffusionXLPipeline.*sdsclip teachers"
    ):
        DiffusionTeacher.from_pretrained(broken)


def test_inpainting_denoiser_raises_with_its_channels(tmp_path):
    make_pipeline(in_channels=9).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"takes 9 channels and gives 4.*inpainting"):
        DiffusionTeacher.from_pretrained(tmp_path)


def test_prompt_width_that_does_not_fit_raises_with_both_widths(tmp_path):
    make_pipeline(cross_attention_dim=24).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"encoder is 16 wide.*24 wide"):
        DiffusionTeacher.from_pretrained(tmp_path)


def test_autoencoder_of_other_channels_raises_with_both_numbers(broken):
    AutoencoderKL(block_out_channels=(8,), latent_channels=3, norm_num_groups=4).save_pretrained(broken / "vae")
    with pytest.raises(ValueError, match=r"latents of 3 channels.*takes 4"):
        DiffusionTeacher.from_pretrained(broken, load_vae=True)


def test_unused_autoencoder_may_be_missing(broken):
    shutil.rmtree(broken / "vae")
    assert DiffusionTeacher.from_pretrained(broken).vae is None


def test_prediction_of_the_clean_sample_raises_with_the_supported_types(broken):
    edit_json(broken / "scheduler" / "scheduler_config.json", prediction_type="sample")
    with pytest.raises(ValueError, match=r"'sample' is not supported.*epsilon or v_prediction"):
        DiffusionTeacher.from_pretrained(broken)


@pytest.mark.parametrize(
    "sampler",
    [EDMEulerScheduler(), FlowMatchEulerDiscreteScheduler(), UniPCMultistepScheduler(use_flow_sigmas=True)],
    ids=["EDM", "flow", "flow by an option"],
)
def test_a_schedule_without_betas_raises_with_its_name(broken, sampler):
    sampler.save_pretrained(broken / "scheduler")
    with pytest.raises(ValueError, match=f"{type(sampler).__name__} has no schedule of betas"):
        DiffusionTeacher.from_pretrained(broken)


def test_betas_that_were_left_in_a_flow_s_configuration_count_for_nothing(broken):
    edit_json(broken / "scheduler" / "scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler")
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler has no schedule of betas"):
        DiffusionTeacher.from_pretrained(broken)


@pytest.mark.parametrize(
    "kind", [PNDMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler]
)
def test_the_noise_is_that_of_the_checkpoint_whatever_sampler_it_names(broken, kind):
    sampler = kind(beta_start=0.001, beta_end=0.02, beta_schedule="linear")
    sampler.save_pretrained(broken / "scheduler")
    teacher = DiffusionTeacher.from_pretrained(broken)
    torch.testing.assert_close(teacher.alphas.square(), sampler.alphas_cumprod.float())


@pytest.mark.parametrize(("option", "value"), [("class_embed_type", "timestep"), ("addition_embed_type", "text")])
def test_denoiser_with_a_second_condition_raises_with_its_name(option, value):
    parts = make_pipeline(**{option: value})
    with pytest.raises(ValueError, match=f"{option}='{value}'"):
        DiffusionTeacher(parts)


def test_unknown_hub_id_offline_raises_with_the_id_and_the_remedy():
    with pytest.raises(OSError, match=r"'nobody/no-such-teacher'.*give --teacher_name_or_path a local folder"):
        DiffusionTeacher.from_pretrained("nobody/no-such-teacher")


def test_misspelt_folder_raises_with_its_name(tmp_path):
    with pytest.raises(OSError, match=r"no/such/folder'.*no such folder"):
        DiffusionTeacher.from_pretrained(tmp_path / "no/such/folder")


def hide(monkeypatch, package: str) -> None:
    """Have a package be absent, to Python and to transformers, which remembers what there is."""
    monkeypatch.setitem(sys.modules, package, None)
    if package in import_utils.BACKENDS_MAPPING:
        told = import_utils.BACKENDS_MAPPING[package][1]
        monkeypatch.setitem(import_utils.BACKENDS_MAPPING, package, (lambda: False, told))


@pytest.mark.parametrize(
    ("name", "part", "file"),
    [
        ("pixart", "tokenizer", "spiece.model"),
        ("stable_diffusion_3", "tokenizer_3", "spiece.model"),
        ("flux", "tokenizer_2", "spiece.model"),
        ("aura_flow", "tokenizer", "spiece.model"),
        ("sana", "tokenizer", "tokenizer.model"),
        ("lumina_2", "tokenizer", "tokenizer.model"),
    ],
)
def test_words_in_a_file_of_sentencepiece_s_ask_for_what_reads_it(tmp_path, monkeypatch, name, part, file):
    folder = tiny_pipelines.save(name, tmp_path)
    (folder / part / "tokenizer.json").unlink()
    (folder / part / file).write_bytes(b"\n\x0e\n\x05<pad>\x15\x00\x00\x00\x00\x18\x03")
    hide(monkeypatch, "sentencepiece")
    with pytest.raises(ImportError, match=rf"the teacher '.*{name}' needs .*: pip install sentencepiece protobuf\."):
        DiffusionTeacher.from_pretrained(folder)


def test_captions_that_cannot_be_cleaned_as_pixart_s_pipeline_does_are_told_of(tmp_path, monkeypatch, caplog):
    for package in ("bs4", "ftfy"):
        hide(monkeypatch, package)
    DiffusionTeacher.from_pretrained(tiny_pipelines.save("pixart", tmp_path))
    assert "pip install beautifulsoup4 ftfy" in caplog.text
