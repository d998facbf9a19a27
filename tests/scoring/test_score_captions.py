"""score-captions: what it writes, how it goes on, and what it refuses."""

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import hub_env
from damage import DAMAGE
from folders import contents
from forking import Forked
from full_disk import files_up_to
from hub_server import WRITER
from huggingface_hub import DatasetCard
from launching import launch
from PIL import Image
from scorings import QUICK, rows_of, run

from sdsclip_hf.commands.score_captions import main
from sdsclip_hf.common.writing import NoRoomError
from sdsclip_hf.data.images import picture_digest
from sdsclip_hf.data.scores import FEATURES, CandidateScores
from sdsclip_hf.scoring.report import print_report
from sdsclip_hf.scoring.score_captions import run_ahead, score_captions
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher


@pytest.fixture(scope="module")
def teacher(teacher_folder):
    return DiffusionTeacher.from_pretrained(teacher_folder, load_vae=True)


@pytest.fixture(scope="module")
def scored(teacher, pairs, tmp_path_factory):
    """A folder of scores with every draw."""
    folder = tmp_path_factory.mktemp("scores")
    score_captions(teacher, pairs, output_dir=folder, stop_confidence=0, **QUICK)
    return folder


def test_the_scores_are_those_of_diffusion_score(scored, teacher, pairs):
    scores = CandidateScores.load(scored)
    assert len(scores) == len(pairs) == 24
    assert scores.data.features == FEATURES
    for number, row in enumerate(pairs):
        item = scores.item(number)
        assert item.caption == row["caption"]
        assert list(scores.numbers_of(picture_digest(row["image"]))) == [number]
        fresh = teacher.diffusion_score([row["image"]], item.candidates, num_draws=5, seed=3)[0]
        np.testing.assert_allclose(item.errors, fresh, rtol=1e-5)
        assert len(item.candidates) == 3 and item.caption in item.candidates


def test_the_true_caption_stands_anywhere(scored):
    places = [row["candidates"].index(row["caption"]) for row in rows_of(scored)]
    assert min(np.bincount(places, minlength=3)) >= 3


def test_settings_and_card_tell_how_it_was_made_and_no_path(scored, teacher_folder, capsys, tmp_path, numbered):
    run("--teacher_name_or_path", teacher_folder, "--dataset_name", numbered, "--output_dir", tmp_path / "s")
    settings, card = (json.loads((tmp_path / "s/scores.json").read_text()), (tmp_path / "s/README.md").read_text())
    assert settings["teacher"]["name"] == Path(teacher_folder).name
    assert settings["dataset"] | {"captions": ""} == {
        "name": "pairs.parquet", "config": None, "split": "train", "revision": None, "rows": 24, "captions": "",
    }  # fmt: skip
    assert settings["timestep_range"] == [0, 999] and settings["control"] is None
    assert settings["denoiser_calls"] + settings["denoiser_calls_saved"] == 24 * 3 * 5
    assert settings["denoiser_calls"] == sum(len(errors) for row in rows_of(tmp_path / "s") for errors in row["errors"])
    assert "ranking-distillation" in DatasetCard(card).data.tags
    for fact in (settings["fingerprint"], settings["teacher"]["fingerprint"], "batch, up to 2", "timesteps 0 to 999"):
        assert fact in card
    assert "--ranking_scores" in card and "| 24, of which 100.0% with two" in card
    for text in (card, json.dumps(settings)):
        assert str(tmp_path) not in text and str(Path(teacher_folder).parent) not in text
        assert str(Path(numbered).parent) not in text
    out = capsys.readouterr().out
    assert "24 items, 100.0% of them" in out and f"{settings['denoiser_calls']:,} made" in out
    files = ["README.md", "data/train-00000-of-00001.parquet", "scores.json"]
    assert sorted(str(path.relative_to(tmp_path / "s")) for path in (tmp_path / "s").rglob("*.*")) == files


def test_folders_of_one_name_are_not_taken_for_each_other(pairs, tmp_path):
    for seed in (0, 1):
        score_captions(None, pairs, output_dir=tmp_path / str(seed) / "scores", **(QUICK | {"seed": seed}))
    for seed in (0, 1):
        scores = CandidateScores.load(tmp_path / str(seed) / "scores")
        assert scores.item(0).candidates == rows_of(tmp_path / str(seed) / "scores")[0]["candidates"]


def test_chunks_and_batches_change_nothing_but_rounding(scored, teacher, pairs, tmp_path):
    options = QUICK | {"chunk_size": 3, "batch_size": 4, "stop_confidence": 0, "output_dir": tmp_path}
    score_captions(teacher, pairs, **options)
    for one, other in zip(rows_of(scored), rows_of(tmp_path), strict=True):
        np.testing.assert_allclose(one.pop("errors"), other.pop("errors"), rtol=1e-5)
        assert one == other


def test_wrong_images_are_scored_and_noted(teacher, pairs, tmp_path):
    few, rows = pairs.select(range(8)), {}
    for wrong in (False, True):
        folder = tmp_path / str(wrong)
        score_captions(teacher, few, output_dir=folder, stop_confidence=0, wrong_images=wrong, **QUICK)
        rows[wrong] = rows_of(folder)
    used = set()
    for place, (right, row) in enumerate(zip(rows[False], rows[True], strict=True)):
        assert {**row, "errors": 0} == {**right, "errors": 0}  # it is looked up by its own picture
        fresh = teacher.diffusion_score(few["image"][:], row["candidates"], num_draws=5, seed=3)
        distance = np.abs(fresh.numpy() - np.mean(row["errors"], axis=1)).max(1)
        assert distance.argmin() != place and distance.min() < 1e-5
        used.add(int(distance.argmin()))
    assert len(used) == 8
    assert CandidateScores.load(tmp_path / "True").settings["control"] == "wrong_images"
    assert "Control experiment" in (tmp_path / "True" / "README.md").read_text()
    assert "Control experiment" not in (tmp_path / "False" / "README.md").read_text()


def test_a_teacher_is_not_needed_for_candidates_alone(pairs, tmp_path, scored):
    settings = score_captions(None, pairs, output_dir=tmp_path, **QUICK)
    assert settings["teacher"] is None and settings["num_draws"] is None and "denoiser_calls" not in settings
    for row, other in zip(rows_of(tmp_path), rows_of(scored), strict=True):
        assert row == other | {"errors": [[], [], []]}
    scores = CandidateScores.load(tmp_path)
    assert not scores.ranked.any() and scores.item(0).candidates == rows_of(tmp_path)[0]["candidates"]
    assert "No teacher" in (tmp_path / "README.md").read_text()


def test_items_without_candidates_are_kept_and_reported(teacher, pairs, tmp_path, capsys):
    given = [["a cat", "a dog"] if number % 4 else [] for number in range(24)]
    data = pairs.add_column("others", given)
    options = QUICK | {"candidates": ["column"], "candidates_column": "others", "output_dir": tmp_path}
    assert score_captions(teacher, data, **options)["ranked_share"] == 0.75
    rows = rows_of(tmp_path)
    assert [len(row["candidates"]) for row in rows] == [3 if number % 4 else 1 for number in range(24)]
    assert rows[0]["errors"] == [[]] and rows[0]["candidates"] == [rows[0]["caption"]]
    assert list(CandidateScores.load(tmp_path).ranked) == [bool(number % 4) for number in range(24)]
    assert "75.0% with two" in (tmp_path / "README.md").read_text()


COMMAND = """
import os, sys
from sdsclip_hf.commands.score_captions import main
main(sys.argv[1:])
os._exit(0)
"""


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not_whatever_the_number_of_processes(teacher_folder, numbered, tmp_path):
    words = ["--teacher_name_or_path", teacher_folder, "--dataset_name", numbered, "--num_draws", 30]
    words += ["--candidates", "batch:3", "--chunk_size", 1, "--stop_confidence", 0.999, "--output_dir"]
    killed = Forked(COMMAND, *words, tmp_path / "killed")
    parts = tmp_path / "killed" / "parts"
    while len(list(parts.glob("chunk-*.parquet"))) < 5:
        time.sleep(0.005)
    killed.kill()
    assert killed.finish().returncode == -signal.SIGKILL
    left = 24 - len(list(parts.glob("chunk-*.parquet")))
    assert 0 < left <= 19 and not (tmp_path / "killed" / "scores.json").exists()
    (parts / "chunk-000000023.elsewhere-99.partial").write_bytes(b"torn")
    said, _ = launch(COMMAND, *words, tmp_path / "killed")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the other processes have
    main([*map(str, words), str(tmp_path / "whole")])
    torch.set_num_threads(threads)
    assert f" 0/{4 * left} " in said and "pair/s" in said  # those of both processes
    for name in ("data/train-00000-of-00001.parquet", "scores.json", "README.md"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["README.md", "data", "scores.json"]


def interrupt(teacher, data, folder, after: int, **options) -> None:
    """A run that ends in an error within its `after`-th call of the denoiser."""
    calls = []

    def stop(*arguments):
        calls.append(0)
        if len(calls) == after:
            raise InterruptedError

    handle = teacher.denoiser.register_forward_pre_hook(stop)
    with pytest.raises(InterruptedError):
        score_captions(teacher, data, output_dir=folder, **options)
    handle.remove()


def count_calls(teacher, action) -> int:
    calls = []
    handle = teacher.denoiser.register_forward_pre_hook(lambda *arguments: calls.append(0))
    action()
    handle.remove()
    return len(calls)


def test_finished_chunks_are_not_scored_again(scored, teacher, pairs, tmp_path):
    options = QUICK | {"stop_confidence": 0}
    interrupt(teacher, pairs, tmp_path, 12, **options)  # in the third chunk of four, five calls each
    assert count_calls(teacher, lambda: score_captions(teacher, pairs, output_dir=tmp_path, **options)) == 10
    assert rows_of(tmp_path) == rows_of(scored)
    assert count_calls(teacher, lambda: score_captions(teacher, pairs, output_dir=tmp_path, **options)) == 0


@pytest.fixture(scope="module")
def begun(teacher, pairs, tmp_path_factory):
    """A folder with two chunks of four."""
    folder = tmp_path_factory.mktemp("begun")
    interrupt(teacher, pairs, folder, 12, stop_confidence=0, **QUICK)
    return folder


@pytest.mark.parametrize(
    ("name", "kind", "calls"),
    [
        *(("chunk-000000001", "missing", 15), ("chunk-000000001", "one bit", 15), ("chunk-000000000", "cut", 15)),
        *(("items", "text", 10), ("settings", "empty", None), ("settings", "one bit", None)),
    ],
)
def test_damage_to_what_is_begun_is_named_and_never_scored_by(
    scored, begun, teacher, pairs, tmp_path, name, kind, calls, caplog
):
    folder = tmp_path / "s"
    shutil.copytree(begun, folder)
    (path,) = (folder / "parts").glob(f"{name}*")
    DAMAGE[kind](path)
    go_on = partial(score_captions, teacher, pairs, output_dir=folder, stop_confidence=0, **QUICK)
    if calls is None:
        with pytest.raises(
            ValueError, match=rf"{path} is .*not what was written.* delete {folder}/parts to score anew"
        ):
            go_on()
        return
    assert count_calls(teacher, go_on) == calls
    assert kind == "missing" or f"{path} is not what was written: it is made anew" in caplog.text
    assert contents(folder) == contents(scored)


def test_a_full_disk_ends_a_scoring_and_with_more_room_it_goes_on(scored, teacher, pairs, tmp_path):
    go_on = partial(score_captions, teacher, pairs, output_dir=tmp_path, stop_confidence=0, **QUICK)
    told, room = [], 500
    while not (tmp_path / "scores.json").exists():
        before = contents(tmp_path)
        try:
            with files_up_to(room):
                go_on()
        except NoRoomError as error:
            told.append(
                re.match(rf"{tmp_path}/(\S+?)[-.].* could not be written: \w.* needed, .*Make room", str(error))[1]
            )
            assert before.items() <= contents(tmp_path).items()
        room += 200
    assert [*dict.fromkeys(told)] == ["parts/settings", "parts/items", "parts/chunk", "data/train"]
    assert contents(tmp_path) == contents(scored)


def test_the_next_result_is_made_while_one_is_used():
    made = [threading.Event() for _ in range(4)]

    def double(number):
        made[number].set()
        return 2 * number

    for place, result in enumerate(run_ahead(double, range(4))):
        assert result == 2 * place
        assert made[min(place + 1, 3)].wait(10)
        assert not any(event.is_set() for event in made[place + 2 :])


def test_an_error_in_what_is_made_ahead_comes_in_its_turn():
    results = run_ahead(lambda number: 1 / number, [2, 1, 0])
    assert [next(results), next(results)] == [0.5, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_draws": 6}, "num_draws is 5, not 6"),
        ({"candidates": ["batch:1"]}, r"candidates is \['batch:2'\], not \['batch:1'\]"),
        ({"wrong_images": True}, "control is None, not 'wrong_images'"),
        ({"split": "test"}, "dataset is of split 'train', not 'test'"),
    ],
)
def test_a_folder_of_other_settings_is_refused(scored, teacher, pairs, tmp_path, change, named):
    interrupt(teacher, pairs, tmp_path, 12, stop_confidence=0, **QUICK)
    for folder in (scored, tmp_path):
        before = sorted((path, path.stat().st_mtime_ns) for path in Path(folder).rglob("*"))
        with pytest.raises(ValueError, match=rf"other settings: its {named}\. Choose another --output_dir"):
            score_captions(teacher, pairs, output_dir=folder, stop_confidence=0, **(QUICK | change))
        assert sorted((path, path.stat().st_mtime_ns) for path in Path(folder).rglob("*")) == before


def test_other_captions_and_another_teacher_are_other_settings(scored, teacher, velocity_teacher_folder, pairs):
    other = pairs.map(lambda row: {"caption": row["caption"] + " a"})
    with pytest.raises(ValueError, match="its dataset is of captions"):
        score_captions(teacher, other, output_dir=scored, stop_confidence=0, **QUICK)
    stranger = DiffusionTeacher.from_pretrained(velocity_teacher_folder, load_vae=True)
    stranger.name_or_path = teacher.name_or_path
    with pytest.raises(ValueError, match="its teacher is of fingerprint"):
        score_captions(stranger, pairs, output_dir=scored, stop_confidence=0, **QUICK)


def test_a_finished_run_given_again_says_so(numbered, tmp_path, capsys):
    run("--dataset_name", numbered, "--output_dir", tmp_path)
    assert "is finished" not in capsys.readouterr().out
    before = (tmp_path / "scores.json").stat().st_mtime_ns
    run("--dataset_name", numbered, "--output_dir", tmp_path)
    assert f"{tmp_path} is finished" in capsys.readouterr().out
    assert (tmp_path / "scores.json").stat().st_mtime_ns == before


def test_what_a_run_killed_at_its_very_end_left_is_dropped(scored, teacher, pairs):
    (scored / "parts").mkdir()
    for name in ("settings.json", "items.parquet", "chunk-000000000.parquet"):
        (scored / "parts" / name).touch()
    score_captions(teacher, pairs, output_dir=scored, stop_confidence=0, **QUICK)
    assert not (scored / "parts").exists()


def test_a_run_that_failed_before_it_scored_may_be_given_otherwise(pairs, tmp_path):
    with pytest.raises(ValueError, match="has only 23 others"):
        score_captions(None, pairs, output_dir=tmp_path, candidates=["batch:99"])
    score_captions(None, pairs, output_dir=tmp_path, candidates=["batch:2"])


def test_a_folder_of_other_files_is_refused(pairs, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ValueError, match="holds files that are no scores"):
        score_captions(None, pairs, output_dir=tmp_path, **QUICK)
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.fixture
def broken(several) -> datasets.Dataset:
    """The third picture is no picture, the fifth shows it only when its pixels are read; the seventh has no caption."""
    rows = several.cast_column("image", datasets.Image(decode=False)).to_list()[:8]
    file = io.BytesIO()
    Image.effect_noise((64, 64), 60).convert("RGB").save(file, "JPEG")
    rows[2]["image"], rows[4]["image"] = {"bytes": b"\x89PNG\r\n broken"}, {"bytes": file.getvalue()[:200]}
    rows[6]["caption"] = rows[6]["given"] = None
    return datasets.Dataset.from_list(rows, features=several.features)


def test_an_unreadable_picture_is_an_error_that_names_it(teacher, broken, tmp_path):
    with pytest.raises(
        ValueError, match=r"1 image or caption could not be read, the last one row 2 .*--max_bad_images"
    ):
        score_captions(teacher, broken.select(range(6)), output_dir=tmp_path, **QUICK)


def test_a_missing_caption_is_an_error_that_names_it_before_anything_is_written(teacher, broken, tmp_path):
    with pytest.raises(ValueError, match=r"row 6: column 'caption' holds None; .*--max_bad_images"):
        score_captions(teacher, broken, output_dir=tmp_path / "scores", **QUICK)
    assert not (tmp_path / "scores").exists()


@pytest.mark.parametrize("wrong_images", [False, True])
def test_unreadable_pictures_and_missing_captions_are_left_out(teacher, broken, tmp_path, wrong_images, capsys):
    options = QUICK | {"max_bad_images": 3, "wrong_images": wrong_images, "output_dir": tmp_path}
    options |= {"candidates": ["batch:2", "column:1"], "candidates_column": "given"}
    settings = score_captions(teacher, broken, **options)
    assert settings["items"] == 5 and settings["dataset"]["rows"] == 8
    named = (tmp_path / "bad_images.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in named] == ["row 2", "row 6", "row 4"]
    assert all(len(errors) for row in rows_of(tmp_path) for errors in row["errors"])
    print_report(settings, tmp_path)
    assert "\n3 unreadable images or missing captions were skipped; " in capsys.readouterr().out


def test_no_candidate_at_all_is_an_error(pairs, tmp_path):
    data = pairs.add_column("none", [[]] * 23 + [[]])
    with pytest.raises(ValueError, match="none of the 24 items has a candidate beside its caption"):
        score_captions(None, data, candidates=["column"], candidates_column="none", output_dir=tmp_path)


def test_one_picture_has_no_wrong_one(teacher, several, tmp_path):
    options = {"candidates": ["column"], "candidates_column": "given", "output_dir": tmp_path}
    with pytest.raises(ValueError, match="at least two different pictures"):
        score_captions(teacher, several.select([7, 8]), wrong_images=True, **options)
    with pytest.raises(ValueError, match=r"--wrong_images .* --teacher_name_or_path"):
        score_captions(None, several, wrong_images=True, **options)


def test_a_teacher_without_a_signal_is_warned_of(capsys, tmp_path, numbered, teacher_folder):
    words = ["--dataset_name", numbered, "--teacher_name_or_path", teacher_folder, "--output_dir", tmp_path]
    run(*words)
    told, said = json.loads((tmp_path / "scores.json").read_text()), capsys.readouterr()
    first = [
        np.mean(row["errors"], axis=1).argmin() == row["candidates"].index(row["caption"]) for row in rows_of(tmp_path)
    ]
    assert told["own_first_share"] == pytest.approx(np.mean(first), abs=1e-4)
    assert told["own_first_by_chance"] == pytest.approx(1 / 3, abs=1e-4)
    assert f"warning: it puts the picture's own caption first on {np.mean(first):.0%}, by chance 33%" in said.err
    assert f"The teacher is sure (confidence above 0.9) of its first choice on {told['sure_share']:.0%} of " in said.out
    confidence = CandidateScores.load(tmp_path).confidence
    assert told["sure_share"] == pytest.approx((confidence > 0.9).mean(), abs=1e-4)
    assert told["mean_confidence"] == pytest.approx(confidence.mean(), abs=1e-4)


FROM_HUB = """
import sys
from sdsclip_hf.data.scores import CandidateScores
from sdsclip_hf.commands.score_captions import main

scores = CandidateScores.load("someone/scores")
print(scores.fingerprint, len(scores), scores.settings["items"])
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_scores_go_to_the_hub_and_load_from_there_and_a_failed_push_keeps_the_folder(hub, tmp_path, pairs, numbered):
    folder = hub.root / "datasets" / "someone" / "scores"
    settings = score_captions(None, pairs, output_dir=folder, dataset_name=numbered, **QUICK)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    words = ["--candidates", "batch:2", "--chunk_size", "7", "--seed", "3", "--dataset_name", numbered]
    words += ["--output_dir", str(folder), "--push_to_hub", "--hub_dataset_id", "org/scores", "--private"]
    fault = hub.fault("commit", status=400, message="The Hub does not like it", times=None)

    def run():
        code = "import time; time.sleep = lambda seconds: None\n" + FROM_HUB
        env = hub_env(hub, HF_TOKEN=WRITER)
        return subprocess.run([sys.executable, "-c", code, *words], env=env, capture_output=True, text=True)

    done = run()
    assert f"{settings['fingerprint']} 24 24" in done.stdout
    assert f"{folder} is finished" in done.stdout
    error = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and error.startswith("error: could not put the scores on the Hub") and fault.fired == 2
    assert f"They are whole in {folder}: give the same command again to push them." in error
    assert WRITER not in done.stdout + done.stderr
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files
    hub.faults.clear()
    assert "On the Hub: http" in run().stdout
    there = hub.files("datasets", "org/scores")
    assert {name: content for name, content in there.items() if name != ".gitattributes"} == {
        path.relative_to(folder).as_posix(): content for path, content in files.items()
    }
    assert hub.repository("datasets", "org/scores").private
