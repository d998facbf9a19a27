"""Denoisers in fewer bits: refused where they cannot serve, and close to the whole one where a library is there."""

import pytest
import tiny_pipelines
import torch

from sdsclip_hf import DiffusionTeacher, SDSCLIPConfig
from sdsclip_hf.common.checkpoints import fingerprint
from sdsclip_hf.teachers import quantization
from sdsclip_hf.training.parts import load_teacher


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"teacher_quantization": "torchao-int8"}, r"torchao-int8 rounds the weights .* give --sds_gradient stop_grad"),
        ({"teacher_quantization": "int3"}, "teacher_quantization is 'int3'; it must be one of bitsandbytes-4bit, "),
        ({"teacher_offload": "group"}, "teacher_offload group takes a block away .* or --teacher_offload model"),
        ({"teacher_offload": "model"}, "would bring the text encoders back at each step; give --prompt_cache_dir"),
        ({"teacher_offload": "disk"}, "teacher_offload is 'disk'; it must be one of model, group"),
        (
            {"teacher_offload": "model", "shard_teacher": True},
            "row by row; leave --teacher_quantization and --teacher_off",
        ),
        (
            {
                "teacher_offload": "group",
                "sds_gradient": "stop_gradient",
                "prompt_cache_dir": "p",
                "teacher_compile": True,
            },
            "teacher_compile wants the whole denoiser",
        ),
    ],
)
def test_a_form_that_cannot_serve_is_refused(tmp_path, options, refused):
    with pytest.raises(ValueError, match=refused):
        load_teacher("none", SDSCLIPConfig(**{"output_dir": str(tmp_path), "use_cpu": True} | options))


@pytest.mark.parametrize("name", quantization.PACKAGES)
def test_a_library_that_is_not_installed_is_named(teacher_folder, monkeypatch, name):
    monkeypatch.setattr(quantization, "find_spec", lambda package: None)
    with pytest.raises(ImportError, match=f"--teacher_quantization {name} needs .*: pip install "):
        DiffusionTeacher.from_pretrained(teacher_folder, quantization=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchao-int8", "quanto-int8"])
def test_a_denoiser_of_eight_bits_is_close_to_the_whole_one(tmp_path, name):
    """With torchao and optimum-quanto installed beside the package, which does not ask for them."""
    folder = tiny_pipelines.save("stable_diffusion_3", tmp_path)
    whole, rounded = (
        DiffusionTeacher.from_pretrained(folder, latent_size=8, quantization=one).speed_up(packed=True)
        for one in (None, name)
    )
    told = whole.encode_captions(["a red dog", "a cat"])
    latents, noise = torch.randn(2, 2, *whole.latent_shape)
    given = latents, told, torch.tensor([300, 800]), noise
    errors = [teacher.denoising_error(*given) for teacher in (whole, rounded)]
    torch.testing.assert_close(*errors, rtol=1e-2, atol=0)
    assert not torch.equal(*errors) and fingerprint(whole.denoiser) != fingerprint(rounded.denoiser)
    again = DiffusionTeacher.from_pretrained(folder, latent_size=8, quantization=name)
    assert fingerprint(again.denoiser) == fingerprint(rounded.denoiser)
