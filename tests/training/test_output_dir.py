"""The folder of a run: empty, its own, numbered, and never that of something else."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from finetuning import error_of
from folders import contents

from sdsclip_hf import SDSCLIPConfig
from sdsclip_hf.commands.finetune import main
from sdsclip_hf.training import output_dir
from sdsclip_hf.training.arguments import DataArguments
from sdsclip_hf.training.output_dir import claim_output_dir, own_output_dir

pytestmark = pytest.mark.usefixtures("work_folder")


def test_folder_of_another_run_is_kept_unless_told_otherwise(words):
    main(words())
    before = contents("out")
    message = error_of(words(seed=7))
    assert all(
        word in message for word in ("holds another run", "--resume_from_checkpoint last", "--overwrite_output_dir")
    )
    assert contents("out") == before
    Path("out/left_over.txt").write_text("old")
    main([*words(seed=7), "--overwrite_output_dir"])
    assert not Path("out/left_over.txt").exists()
    assert Path("out/model.safetensors").read_bytes() != before["model.safetensors"]


@pytest.mark.parametrize("resume", [[], ["--resume_from_checkpoint", "last"]])
def test_folder_of_something_else_is_never_deleted(words, resume):
    Path("out").mkdir()
    Path("out/thesis.tex").write_text("precious")
    message = error_of([*words(), "--overwrite_output_dir", *resume])
    assert "no run of this program wrote" in message
    assert Path("out/thesis.tex").read_text() == "precious"


def test_a_mistake_in_the_arguments_does_not_delete_the_run_to_be_overwritten(words):
    main(words())
    before = contents("out")
    error_of([*words(caption_column="txt"), "--overwrite_output_dir"])
    assert contents("out") == before


def test_empty_output_folder_is_used(words):
    Path("out").mkdir()
    main(words())
    assert Path("out/model.safetensors").exists()


def test_default_output_folders_are_numbered(words):
    Path("tiny.yaml").write_text("max_steps: 1")
    for expected in ("outputs/tiny", "outputs/tiny-2", "outputs/tiny-3"):
        main([*words(output_dir=None, max_steps=None), "--config", "tiny.yaml"])
        assert Path(expected, "model.safetensors").exists()
    assert sorted(path.name for path in Path("outputs").iterdir()) == ["tiny", "tiny-2", "tiny-3"]
    main([*words(output_dir=None, max_steps=None), "--config", "tiny.yaml", "--resume_from_checkpoint", "last"])
    assert sorted(path.name for path in Path("outputs").iterdir()) == ["tiny", "tiny-2", "tiny-3"]


def test_default_output_folder_is_named_finetune_without_a_configuration(words):
    main(words(output_dir=None))
    assert Path("outputs/finetune/model.safetensors").exists()
    assert not Path("trainer_output").exists()


def config(folder=None, resume=None) -> SDSCLIPConfig:
    made = SDSCLIPConfig(output_dir=str(folder or "x"), resume_from_checkpoint=resume, use_cpu=True)
    made.output_dir = folder and str(folder)
    return made


def test_of_runs_that_choose_a_name_at_the_same_moment_each_has_its_own(monkeypatch):
    count = 4
    chosen, done = Barrier(count, timeout=20), Barrier(count, timeout=20)
    configs, choose = [config() for _ in range(count)], output_dir._choose
    waiting = {id(one) for one in configs}

    def choose_together(mine: SDSCLIPConfig, name: str) -> bool:
        is_free = choose(mine, name)
        if id(mine) in waiting:  # none of them has made its folder yet
            waiting.remove(id(mine))
            chosen.wait()
        return is_free

    monkeypatch.setattr(output_dir, "_choose", choose_together)

    def run(mine: SDSCLIPConfig) -> None:
        with own_output_dir(DataArguments(), mine, "name"):
            Path(mine.output_dir, "run.yaml").touch()
            done.wait()

    with ThreadPoolExecutor(count) as threads:
        list(threads.map(run, configs))
    names = {"outputs/name", *(f"outputs/name-{number}" for number in range(2, count + 1))}
    assert {one.output_dir for one in configs} == names
    assert all(os.listdir(name) == ["run.yaml"] for name in names)


@pytest.mark.parametrize("resume", [None, "last"])
def test_a_second_run_in_a_folder_is_told_who_works_there(resume):
    told = rf"another process works in .*name \(process {os.getpid()} on .*--output_dir"
    with own_output_dir(DataArguments(), config(), "name"):
        with (
            pytest.raises(OSError, match=told),
            own_output_dir(DataArguments(), config("outputs/name", resume), "name"),
        ):
            pass
        if resume:
            with pytest.raises(OSError, match=told), own_output_dir(DataArguments(), config(None, resume), "name"):
                pass


def test_a_folder_into_which_nothing_came_goes_and_one_that_was_there_stays():
    Path("there").mkdir()
    for folder in (None, "new", "there"):
        with pytest.raises(KeyError), own_output_dir(DataArguments(), config(folder), "name"):
            raise KeyError
    assert os.listdir() == ["there", "outputs"] or os.listdir() == ["outputs", "there"]
    assert not os.listdir("there") and not os.listdir("outputs")


def test_what_a_killed_run_left_of_its_lock_and_half_written_is_in_nobody_s_way():
    folder = Path("outputs/name")
    folder.mkdir(parents=True)
    for name in ("_in_use.lock", "_in_use.json", "results.json.elsewhere-1.partial"):
        (folder / name).touch()
    with own_output_dir(DataArguments(), config(folder), "name"):
        assert {path.name for path in folder.iterdir()} == {"_in_use.lock", "_in_use.json"}
    assert not os.listdir(folder)


def test_to_look_which_folder_it_will_be_makes_none():
    looked = config()
    claim_output_dir(DataArguments(), looked, "name")
    assert looked.output_dir == "outputs/name" and not os.listdir()


def test_a_folder_of_other_files_is_refused_as_it_is():
    Path("mine.txt").touch()
    with (
        pytest.raises(ValueError, match="holds files that no run"),
        own_output_dir(DataArguments(), config("."), "name"),
    ):
        pass
    assert os.listdir() == ["mine.txt"]
