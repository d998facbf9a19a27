"""A disk that fills up, and kills: the last whole checkpoint and export stay, and the run goes on to the same end."""

import os
import shutil
from pathlib import Path

import pytest
from folders import contents
from full_disk import files_up_to

from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer
from sdsclip_hf.common.checkpoints import RUN_FILE, last_checkpoint
from sdsclip_hf.common.writing import NoRoomError

NEXT = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")  # what decides how a run goes on


@pytest.fixture(scope="module")
def run(tmp_path_factory, clip_folder, pairs):
    """The folder of a run with a checkpoint after steps 2 and 4, and a maker of trainers like its own."""
    folder = tmp_path_factory.mktemp("run")

    def make(output_dir=folder, **options) -> SDSCLIPTrainer:
        settings = {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "max_steps": 4, "trainable": "lora"}
        settings |= {
            "save_strategy": "steps",
            "save_steps": 2,
            "disable_tqdm": True,
            "use_cpu": True,
            "lambda_sds": 0.0,
        }
        args = SDSCLIPConfig(output_dir=str(output_dir), **(settings | options))
        return SDSCLIPTrainer(model=clip_folder, args=args, train_dataset=pairs)

    make().train()
    return folder, make


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", RUN_FILE])
def test_a_full_disk_costs_the_checkpoint_that_is_written_and_ends_the_run(run, tmp_path, name):
    folder, make = run
    shutil.copytree(folder / "checkpoint-2", tmp_path / "checkpoint-2")
    before, trainer = contents(tmp_path), make(tmp_path)
    too_small = (folder / "checkpoint-4" / name).stat().st_size - 1
    told = r"checkpoint-4 could not be written: .*\(some \d+ kB needed, .* free in .*--resume_from_checkpoint last"
    with pytest.raises(NoRoomError, match=told), files_up_to(too_small):
        trainer.train(resume_from_checkpoint=True)
    assert contents(tmp_path) == before and [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    make(tmp_path).train(resume_from_checkpoint=True)
    assert [(folder / "checkpoint-4" / one).read_bytes() for one in NEXT] == [
        (tmp_path / "checkpoint-4" / one).read_bytes() for one in NEXT
    ]


def test_what_is_needed_is_told_as_it_is(run):
    folder, make = run
    trainer = make()
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    states = sum((folder / "checkpoint-4" / name).stat().st_size for name in ("model.safetensors", "optimizer.pt"))
    assert trainer._checkpoint_bytes(trainer.trained_parameters()) == pytest.approx(states, rel=0.5)


def test_what_a_kill_left_of_a_checkpoint_goes_at_the_next_start(run, tmp_path):
    folder, make = run
    for step, left in ((2, None), (4, None), (9, "unfinished.here-1.partial"), (11, None)):
        shutil.copytree(folder / f"checkpoint-{min(step, 4)}", tmp_path / f"checkpoint-{step}")
        if step > 2:
            (tmp_path / f"checkpoint-{step}" / RUN_FILE).unlink()
            (tmp_path / f"checkpoint-{step}" / ".tmpX1Y2").write_text("half of the weights")
        if left:
            _old(tmp_path / f"checkpoint-{step}" / left)
    _old(tmp_path / "checkpoint-2" / "unfinished.here-1.partial")  # killed just when it was whole
    _old(tmp_path / "new.here-1.partial")
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    make(tmp_path).train(resume_from_checkpoint=True)
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-11",
    }  # none of ours
    for step in (2, 4):
        assert contents(folder / f"checkpoint-{step}").keys() == contents(tmp_path / f"checkpoint-{step}").keys()


def _old(path: Path) -> None:
    path.touch()
    os.utime(path, (0, 0))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "adapter/adapter_model.safetensors"])
def test_a_full_disk_leaves_an_earlier_export_as_it_was(run, tmp_path, name):
    trainer = run[1](tmp_path)
    trainer.save_model(str(tmp_path / "export"))
    before = contents(tmp_path / "export")
    next(iter(trainer.student.base_clip.parameters())).data.add_(1)
    too_small, told = len(before[name]) - 1, "export could not be written: .* kB needed"
    with pytest.raises(NoRoomError, match=told), files_up_to(too_small):
        trainer.save_model(str(tmp_path / "export"))
    assert contents(tmp_path / "export") == before
    trainer.save_model(str(tmp_path / "export"))
    after = contents(tmp_path / "export")
    assert after.keys() == before.keys() and after["model.safetensors"] != before["model.safetensors"]
