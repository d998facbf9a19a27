"""What a GPU can do and wants, by stand-ins of torch.cuda's functions."""

from dataclasses import replace

import pytest
import torch
import yaml
from transformers import TrainingArguments

from sdsclip_hf import SDSCLIPConfig
from sdsclip_hf.common import precision
from sdsclip_hf.common.devices import default_device, refuse_old_driver, sent
from sdsclip_hf.common.precision import mixed_precision, settled_dtype
from sdsclip_hf.prompts.config import PromptConfig
from sdsclip_hf.scoring.arguments import ScoringArguments
from sdsclip_hf.training.record import as_yaml
from sdsclip_hf.training.resumed_options import kept_options

TOO_OLD = "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver."


@pytest.mark.parametrize(("available", "expected"), [(False, "cpu"), (True, "cuda")])
def test_a_pytorch_built_for_gpus_computes_on_the_cpu_where_there_is_none(monkeypatch, available, expected):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))  # as it was built
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: available)
    assert default_device() == torch.device(expected)


@pytest.mark.parametrize("config", [SDSCLIPConfig, PromptConfig])
def test_a_process_takes_one_of_several_gpus_and_tells(monkeypatch, tmp_path, config, caplog):
    args = config(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=8, per_device_eval_batch_size=8)
    args.tell_of_idle_gpus()
    assert not caplog.text
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for name, value in (("n_gpu", 4), ("device", torch.device("cuda")), ("world_size", 1)):
        monkeypatch.setattr(TrainingArguments, name, value)
    assert args.n_gpu == 1 and args.train_batch_size == args.eval_batch_size == 8  # of DataParallel four times as many
    args.tell_of_idle_gpus()
    assert "this process trains on one of 4 GPUs. To take all give --num_processes 4" in caplog.text


@pytest.mark.parametrize(
    ("available", "has_bf16", "on_cpu", "expected", "dtype"),
    [
        (0, 0, "false", None, "float32"),
        (1, 1, "false", "bf16", "bfloat16"),
        (1, 0, "false", "fp16", "float16"),
        (1, 1, "true", None, "float32"),
    ],
)
def test_precision_is_the_best_that_the_gpu_has(monkeypatch, available, has_bf16, on_cpu, expected, dtype):
    monkeypatch.setenv("ACCELERATE_USE_CPU", on_cpu)  # as `accelerate launch --cpu` sets it
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(available))
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16 or including_emulation
    )
    assert mixed_precision() == expected
    assert settled_dtype("auto") == dtype == ScoringArguments().teacher_dtype == ScoringArguments().ranker_dtype
    assert settled_dtype("auto", use_cpu=True) == "float32" and settled_dtype("float16", use_cpu=True) == "float16"
    assert ScoringArguments(teacher_dtype="float16", ranker_dtype="float32").teacher_dtype == "float16"


@pytest.mark.skipif(torch.accelerator.is_available(), reason="of machines without an accelerator")
def test_a_run_takes_it_unless_told_otherwise(monkeypatch, tmp_path):
    monkeypatch.setattr(precision, "mixed_precision", lambda: "bf16")
    with pytest.raises(ValueError, match="bf16"):  # is what transformers then asks this machine for
        SDSCLIPConfig(output_dir=str(tmp_path))
    for options in ({"precision": "as_given"}, {"use_cpu": True}):
        assert not SDSCLIPConfig(output_dir=str(tmp_path), **options).bf16


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "bfloat16"),
        ({"use_cpu": True}, "float32"),
        ({"teacher_dtype": "float16"}, "float16"),
        ({"teacher_dtype": "float32"}, "float32"),
    ],
)
def test_the_teacher_s_format_is_settled_once_and_so_recorded(monkeypatch, tmp_path, options, expected):
    monkeypatch.setattr(precision, "mixed_precision", lambda: "bf16")
    config = SDSCLIPConfig(output_dir=str(tmp_path), precision="as_given", **options)
    monkeypatch.undo()
    assert replace(config, max_steps=3).teacher_dtype == config.teacher_dtype == expected
    assert yaml.safe_load(as_yaml(config))["teacher_dtype"] == expected == kept_options(config)["teacher_dtype"]


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


@pytest.mark.parametrize(("device", "waits"), [("mps", True), ("cuda", False)])
def test_only_to_apple_s_gpus_a_copy_is_waited_for(monkeypatch, device, waits):
    asked, tensor = {}, torch.zeros(2)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, **options: asked.update(options) or self)
    sent(tensor, torch.device(device))
    assert asked == {"non_blocking": not waits}
