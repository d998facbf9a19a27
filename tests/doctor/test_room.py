"""`sdsclip doctor` before a run's needs of memory and disk, and its output folder."""

from collections import namedtuple
from dataclasses import replace

import psutil
import pytest
import torch
from doctor_cases import local, look, of, the_failure

from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer
from sdsclip_hf.common.writing import size
from sdsclip_hf.doctor import room
from sdsclip_hf.doctor.case import read_case
from sdsclip_hf.doctor.examine import examine
from sdsclip_hf.doctor.findings import Trouble
from sdsclip_hf.planning.rehearsal import WEIGHTS, rehearse

pytestmark = pytest.mark.usefixtures("elsewhere")
Usage = namedtuple("Usage", "total used free")


def test_a_full_disk_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 1000, 1000))
    failed = the_failure()
    assert failed.what == "disk" and "1.0 kB free for" in failed.found and "2 checkpoints" in failed.found
    assert "--save_total_limit" in failed.remedy and "HF_HOME" in failed.remedy


@pytest.mark.skipif(not room.PLACE.is_dir(), reason="only Linux has it")
def test_a_small_shared_memory_is_a_warning_where_there_are_workers(clip_folder, folder_of_pairs, monkeypatch):
    argv = [*local(clip_folder, folder_of_pairs), "--per_device_train_batch_size", "8"]
    assert "shared memory" not in {finding.what for finding in look(*argv)}
    needs = 5 * 8 * 3 * 16 * 16 * 4  # two batches of each of two workers, and one that is in use
    for free, status in ((needs, "ok"), (needs - 1, "warn")):
        monkeypatch.setattr(room.shutil, "disk_usage", lambda path, free=free: Usage(free, 0, free))
        found = of(look(*argv, "--dataloader_num_workers", "2"), "shared memory")
        assert found.status == status and "need 123 kB" in found.found
    assert "without workers" in found.found and "--shm-size" in found.remedy


def test_downloads_count_against_the_disk(models_hub, monkeypatch):
    free = (models_hub.root / "models/org/teacher/unet/diffusion_pytorch_model.safetensors").stat().st_size
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: Usage(10**9, 0, free))
    argv = ("--model_name_or_path", "shapes/student", "--dataset_name", "shapes", "--save_strategy", "no")
    assert the_failure(*argv, "--teacher_name_or_path", "org/teacher").what == "disk"


def test_too_little_memory_is_one_line(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("Memory", "available")(20_000_000))
    failed = the_failure()
    assert failed.what == "memory" and "20 MB of memory are free" in failed.found
    assert "--per_device_train_batch_size" in failed.remedy and "sdsclip plan" in failed.remedy
    monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("Memory", "available")(500_000_000))
    assert of(look(), "memory").status == "warn"


def test_a_run_that_is_compared_stands_beside_this_run_s_models(clip_folder, folder_of_pairs, monkeypatch, rehearsed):
    case = read_case(local(clip_folder, folder_of_pairs, "--teacher_name_or_path", "shapes/teacher"))
    case.compared["paper"] = SDSCLIPConfig("paper", lambda_sds=1.0, use_cpu=True)
    monkeypatch.setattr(room, "run_beside", lambda *_: False)
    (found,) = room.check_memory(case)
    names = case.model.model_name_or_path, case.model.teacher_name_or_path
    main, paper = (rehearse(*names, config).memory for config in case.configs.values())
    beside = sum(held for phase, held in main.items() if phase.stage == WEIGHTS)
    assert f"holds {size(sum(paper.values()) + beside)} of tensors" in found.found


def test_of_too_little_memory_the_setting_that_fits_is_told(clip_folder, folder_of_pairs, monkeypatch, rehearsed):
    case = read_case(local(clip_folder, folder_of_pairs, "--per_device_train_batch_size", "64"))
    names = case.model.model_name_or_path, None
    needs = {size: _needs(names, case, size) for size in (64, 16)}
    free = needs[16] / 0.9 + 1
    assert free < needs[64]
    monkeypatch.setattr(room, "free_memory", lambda _: free)
    with pytest.raises(Trouble) as raised:
        list(room.check_memory(case))
    assert raised.value.remedy.startswith("--per_device_train_batch_size 16 --contrastive_batch_size 64 would fit;")


def _needs(names, case, size: int) -> int:
    whole = {"contrastive_batch_size": 64} if size < 64 else {}
    config = replace(case.config, per_device_train_batch_size=size, **whole)
    return sum(room.rehearse(*names, config).memory.values())


def test_a_gpu_s_own_memory_counts(clip_folder, folder_of_pairs, monkeypatch):
    case = read_case(local(clip_folder, folder_of_pairs))
    monkeypatch.setattr(type(case), "device", torch.device("cuda"))
    for free, status in ((2 * 10**9, "ok"), (3 * 10**8, "warn")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, 8 * 10**10))
        (found,) = room.check_memory(case)
        assert found.status == status and "of the GPU's memory are free" in found.found


def test_an_output_folder_that_holds_another_run_is_one_line(clip_folder, folder_of_pairs, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.yaml").write_text("")
    argv = local(clip_folder, folder_of_pairs, "--output_dir", str(tmp_path / "run"))
    failed = the_failure(*argv)
    assert failed.what == "output folder" and "holds another run" in failed.found
    findings = look(*argv, "--overwrite_output_dir")
    assert of(findings, "output folder").status == "warn" and "will delete" in of(findings, "output folder").found
    assert (tmp_path / "run/run.yaml").exists()
    (tmp_path / "file").touch()
    failed = the_failure(*local(clip_folder, folder_of_pairs, "--output_dir", str(tmp_path / "file/run")))
    assert failed.what == "output folder" and "cannot be written to" in failed.found


def test_checkpoints_are_as_large_as_what_a_run_writes(rehearsed, tmp_path, pairs, folder_of_pairs):
    """Beside a real run's: its folder of checkpoints, and its export."""
    options = {"lambda_sds": 0.0, "trainable": "full", "max_steps": 4, "save_steps": 1, "save_total_limit": 2}
    options |= {"per_device_train_batch_size": 4, "report_to": "none", "disable_tqdm": True}
    argv = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    case = read_case(local("shapes/student", folder_of_pairs, *argv))
    list(examine(case))
    told = {what: count for _, what, count in room.needs_of_run(case)}
    config = SDSCLIPConfig(output_dir=str(tmp_path / "run"), **options)
    trainer = SDSCLIPTrainer("shapes/student", config, train_dataset=pairs)
    trainer.train()
    written = sum(
        path.stat().st_size
        for path in (tmp_path / "run/checkpoint-4").iterdir()
        if path.suffix in (".safetensors", ".pt")
    )
    assert told["3 checkpoints"] / 3 == pytest.approx(written, rel=0.1)
    trainer.save_model(str(tmp_path / "export"))
    assert told["exports"] == pytest.approx((tmp_path / "export/model.safetensors").stat().st_size, rel=0.1)


def test_how_many_checkpoints_there_will_be(clip_folder, folder_of_pairs):
    argv = local(clip_folder, folder_of_pairs)
    steps = ("--max_steps", "100", "--save_steps", "10")
    for more, count in (((), 10), (("--save_total_limit", "2"), 3), (("--save_total_limit", "20"), 10)):
        assert room.checkpoints(read_case([*argv, *steps, *more])) == count
    assert room.checkpoints(read_case([*argv, "--save_strategy", "no"])) == 0
    assert room.checkpoints(read_case([*argv, "--save_strategy", "epoch", "--num_train_epochs", "4"])) == 4
    *_, last = look(*argv)  # of how many rows, the parquet file does not tell
    assert last.status == "warn" and "all checkpoints are kept" in last.found and "--save_total_limit" in last.remedy
