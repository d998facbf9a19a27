"""What a GPU can do and wants, by stand-ins of torch.cuda's functions."""

import pytest
import torch

from sdsclip_hf import SDSCLIPConfig
from sdsclip_hf.common import precision
from sdsclip_hf.common.devices import refuse_old_driver
from sdsclip_hf.common.precision import mixed_precision

TOO_OLD = "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver."


@pytest.mark.parametrize(("available", "has_bf16", "expected"), [(0, 0, None), (1, 1, "bf16"), (1, 0, "fp16")])
def test_the_student_s_precision_is_the_best_that_the_gpu_has(monkeypatch, available, has_bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(available))
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16 or including_emulation
    )
    assert mixed_precision() == expected


@pytest.mark.skipif(torch.accelerator.is_available(), reason="of machines without an accelerator")
def test_a_run_takes_it_unless_told_otherwise(monkeypatch, tmp_path):
    monkeypatch.setattr(precision, "mixed_precision", lambda: "bf16")
    with pytest.raises(ValueError, match="bf16"):  # is what transformers then asks this machine for
        SDSCLIPConfig(output_dir=str(tmp_path))
    for options in ({"precision": "as_given"}, {"use_cpu": True}):
        assert not SDSCLIPConfig(output_dir=str(tmp_path), **options).bf16


@pytest.mark.parametrize(
    ("cuda", "error", "is_refused"),
    [("13.0", TOO_OLD, True), ("13.0", "Found no NVIDIA driver on your system.", False), (None, TOO_OLD, False)],
)
def test_a_driver_older_than_pytorch_wants_is_an_error_that_says_so(monkeypatch, cuda, error, is_refused):
    def init():
        raise RuntimeError(error)

    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if not is_refused:
        return refuse_old_driver()
    with pytest.raises(OSError, match=r"CUDA 13\.0: the driver .*too old \(found version 11040\)\. Update the driver"):
        refuse_old_driver()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    refuse_old_driver()
