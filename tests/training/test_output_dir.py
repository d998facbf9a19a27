"""A run has its folder for itself: of two that choose one, the second takes another name, or is told who works there."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from sdsclip_hf import SDSCLIPConfig
from sdsclip_hf.training import output_dir
from sdsclip_hf.training.arguments import DataArguments
from sdsclip_hf.training.output_dir import claim_output_dir, own_output_dir


def config(folder=None, resume=None) -> SDSCLIPConfig:
    made = SDSCLIPConfig(output_dir=str(folder or "x"), resume_from_checkpoint=resume, use_cpu=True)
    made.output_dir = folder and str(folder)
    return made


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


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
