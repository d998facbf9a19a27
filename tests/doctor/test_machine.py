"""`sdsclip doctor` before a machine: libraries, precision, processes and packages that the options need."""

import re
from contextlib import nullcontext

import pytest
import torch
from doctor_cases import failures, local, look, of, the_failure

from sdsclip_hf import SDSCLIPConfig
from sdsclip_hf.doctor import machine
from sdsclip_hf.doctor.case import Case, read_case
from sdsclip_hf.doctor.findings import Trouble

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_a_library_out_of_its_bounds_is_one_line_for_each(monkeypatch):
    real = machine.importlib.metadata.version
    monkeypatch.setattr(
        machine.importlib.metadata, "version", lambda name: "0.1" if name in ("peft", "diffusers") else real(name)
    )
    failed = [finding for finding in look() if finding.status == "fail"]
    assert {finding.what for finding in failed} == {"libraries"} and len(failed) == 2
    assert any("peft 0.1 is installed; the package needs >=" in finding.found for finding in failed)
    assert all(re.fullmatch(r'pip install "(peft|diffusers)>=[\d.]+"', finding.remedy) for finding in failed)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="of machines without an accelerator")
@pytest.mark.parametrize("option", ["--bf16", "--fp16"])
def test_half_precision_without_a_device_that_has_it_is_one_line(option, clip_folder, folder_of_pairs):
    failed = the_failure(*local(clip_folder, folder_of_pairs, option))
    assert failed.what == "precision" and failed.found.startswith(option) and f"Leave {option} out" in failed.remedy
    findings = look(*local(clip_folder, folder_of_pairs, "--bf16", "--use_cpu"))
    assert not failures(findings) and of(findings, "precision").found.startswith("bf16")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="of machines without an accelerator")
def test_a_float16_teacher_on_a_cpu_is_a_warning(folder_of_pairs):
    argv = ("--model_name_or_path", "shapes/student", "--teacher_name_or_path", "shapes/teacher")
    findings = look(*argv, "--dataset_name", str(folder_of_pairs), "--teacher_dtype", "float16")
    assert of(findings, "precision").status == "warn" and "slow" in of(findings, "precision").found


def test_processes_against_devices_and_the_contrastive_batch(clip_folder, folder_of_pairs, monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 2)
    argv = local(clip_folder, folder_of_pairs, "--contrastive_batch_size", "64", "--per_device_train_batch_size", "8")
    found = {count: list(machine.check_processes(read_case(argv, count))) for count in (2, 4)}
    assert [one.status for of_count in found.values() for one in of_count] == ["ok", "warn"]
    with pytest.raises(Exception, match="no multiple of 24") as raised:
        list(machine.check_processes(read_case(argv, 3)))
    assert "Set it to 48" in raised.value.remedy
    monkeypatch.setattr(machine.torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(type(read_case(argv)), "device", torch.device("cuda"))
    assert [one.status for one in machine.check_processes(read_case(argv, 1))] == ["warn"]
    assert [one.status for one in machine.check_processes(read_case(argv, 2))] == ["ok"]
    with pytest.raises(Exception, match="4 processes on 2 devices"):
        list(machine.check_processes(read_case(argv, 4)))


@pytest.fixture
def on_gpus(monkeypatch, clip_folder, folder_of_pairs):
    """What doctor finds on a machine of GPUs of these names: a check of it by the run's further options."""

    def look_at(check, *names, options=(), has_bf16=True):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: names[number])
        for place in (torch.cuda, torch.accelerator):
            monkeypatch.setattr(place, "device_count", lambda: len(names))
            monkeypatch.setattr(place, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16)
        monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
        for name, value in (("device", torch.device("cuda")), ("world_size", 1)):  # for which no GPU is asked then
            monkeypatch.setattr(SDSCLIPConfig, name, value)
        case = read_case(local(clip_folder, folder_of_pairs, "--precision", "as_given", *options))
        monkeypatch.setattr(type(case), "device", torch.device("cuda"))
        (found,) = check(case)
        return found

    return look_at


def test_gpus_of_two_kinds_are_a_warning_that_names_those_of_one(on_gpus):
    found = on_gpus(machine.check_device, "A100", "T4", "A100")
    assert found.status == "warn" and "3 GPUs of 2 kinds, A100, T4" in found.found
    assert "CUDA_VISIBLE_DEVICES=0,2." in found.remedy
    assert on_gpus(machine.check_device, "A100", "A100").found == "2 x A100"


@pytest.mark.parametrize(
    ("dtype", "has_bf16", "told", "remedy"),
    [
        ("float32", True, "twice the memory", "bfloat16"),
        ("float32", False, "twice the memory", "float16"),
        ("bfloat16", False, "emulated on this GPU", "float16"),
        ("float16", False, "the teacher in float16", ""),
        ("auto", False, "the teacher in float16", ""),
        ("auto", True, "the teacher in bfloat16", ""),
    ],
)
def test_the_teacher_s_precision_is_held_against_the_gpu(on_gpus, dtype, has_bf16, told, remedy):
    options = ("--lambda_sds", "1", "--teacher_name_or_path", "shapes/teacher", "--teacher_dtype", dtype)
    found = on_gpus(machine.check_precision, "GPU", options=options, has_bf16=has_bf16)
    assert told in found.found and found.remedy == (remedy and f"Set --teacher_dtype {remedy}.")
    assert (found.status == "ok") == (not remedy)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("--report_to", "wandb"), "--report_to wandb: it is not installed"),
        (("--report_to", "nowhere"), "there is no such tracker"),
        (("--optim", "adamw_bnb_8bit"), "--optim adamw_bnb_8bit"),
        (("--deepspeed", "ds.json"), "--deepspeed needs deepspeed, which is not installed"),
    ],
)
def test_a_package_that_the_options_need_is_one_line(argv, told, clip_folder, folder_of_pairs, monkeypatch):
    monkeypatch.setattr(machine, "get_available_reporting_integrations", list)
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    failed = the_failure(*local(clip_folder, folder_of_pairs, *argv))
    assert failed.what == "packages" and told in failed.found


@pytest.mark.parametrize(("device", "fails"), [("cpu", False), ("cuda", True)])
def test_a_torchvision_that_is_missing_is_told(device, fails, clip_folder, folder_of_pairs, monkeypatch):
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(Case, "device", torch.device(device))
    case = read_case(local(clip_folder, folder_of_pairs, "--preprocess_on_device"))
    with pytest.raises(Trouble, match="--preprocess_on_device needs torchvision") if fails else nullcontext():
        list(machine.check_extras(case))


@pytest.mark.parametrize("option", ["torch_compile", "teacher_compile"])
def test_a_compiler_that_is_missing_is_told(option, clip_folder, folder_of_pairs, monkeypatch):
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    case = read_case(local(clip_folder, folder_of_pairs, f"--{option}", "--lambda_sds", "1"))
    (found,) = machine.check_extras(case)
    assert found.status == "warn" and f"--{option} needs a C++ compiler" in found.found
    assert f"or leave --{option} out" in found.remedy


def test_a_run_to_compare_with_that_cannot_be_is_one_line(clip_folder, folder_of_pairs):
    failed = the_failure(*local(clip_folder, folder_of_pairs, "--compare", "{plain: {lambda_rnak: 1}}"))
    assert failed.what == "compare" and "lambda_rnak" in failed.found
    failed = the_failure(*local(clip_folder, folder_of_pairs, "--compare", "{paper: {lambda_sds: 1}}"))
    assert failed.what == "teacher"  # which that run alone needs
