"""Options of score-captions: what does not fit is refused with the remedy, before hours of work."""

import json
import re
import sys

import pytest
from scorings import refuse, run

from sdsclip_hf.commands.score_captions import main
from sdsclip_hf.common import precision
from sdsclip_hf.scoring.arguments import ScoringArguments


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--num_draws", 1], "num_draws is 1; it must be at least 2"),
        (["--captions_per_image", 0], "captions_per_image is 0"),
        (["--chunk_size", 0], "chunk_size is 0"),
        (["--batch_size", -1], "batch_size is -1"),
        (["--seed", -1], "seed is -1; it must be at least 0"),
        (["--stop_confidence", 1], r"stop_confidence is 1.0; it must be in \[0, 1\)"),
        (["--timestep_range", 5], r"timestep_range is \[5\]"),
        (["--candidates", "guess"], "unknown source of candidates 'guess'; choose from column, swap, nearest, batch"),
        (["--candidates", "swap:1", "swap:2"], "'swap' is named twice"),
        (["--candidates", "swap:0"], "the count of candidates is '0'"),
        (["--candidates", "swap:many"], "the count of candidates is 'many'"),
        (["--candidates", "column"], "'column' needs --candidates_column"),
        (["--candidates", "nearest"], "'nearest' needs --model_name_or_path"),
        (["--candidates_column", "given"], "add column to --candidates"),
        (
            ["--candidates", "column", "--candidates_column", "given"],
            "'given' not found; the dataset has 'image', 'ca",
        ),
        (["--candidates", "column", "--candidates_column", "image"], "column 'image' holds .* must be a string or a l"),
        (["--push_to_hub"], "needs --hub_dataset_id"),
        (["--caption_column", "text"], "caption column 'text' not found.*Pass --caption_column"),
        (["--image_column", "number"], r"0 is no image, but a int\. Choose an --image_column"),
        (["--dataset_name", "no/such-data"], "could not load the dataset 'no/such-data'"),
        (["--teacher_name_or_path", "no/such-teacher"], "could not load the teacher 'no/such-teacher'"),
        (["--candidates", "batch:24"], "has only 23 others .* not 24"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_remedy(capsys, numbered, tmp_path, words, said):
    assert re.search(said, refuse(capsys, "--dataset_name", numbered, "--output_dir", tmp_path, *words))
    assert not (tmp_path / "scores.json").exists()


def test_a_range_outside_the_schedule_is_refused_before_anything_is_written(capsys, numbered, tmp_path, teacher_folder):
    words = ["--dataset_name", numbered, "--teacher_name_or_path", teacher_folder, "--output_dir", tmp_path / "s"]
    assert "timestep_range 5 to 1000 lies outside" in refuse(capsys, *words, "--timestep_range", 5, 1000)
    assert not (tmp_path / "s").exists()


def test_the_bundled_teacher_and_its_options_are_found(tmp_path):
    words = ["--teacher_name_or_path", "shapes/teacher", "--teacher_dtype", "bfloat16", "--latent_size", 4]
    words += ["--settled", "first_choice"]
    run(*words, "--max_samples", 6, "--timestep_range", 100, 900, "--weighting", "velocity", "--output_dir", tmp_path)
    told = json.loads((tmp_path / "scores.json").read_text())
    assert told["teacher"]["name"] == "shapes/teacher" and told["items"] == 6
    assert told["teacher"]["dtype"] == "bfloat16" and told["teacher"]["latent_shape"] == [4, 4, 4]
    assert (
        told["settled"] == "first_choice" and told["timestep_range"] == [100, 900] and told["weighting"] == "velocity"
    )


def test_scores_of_a_machine_that_takes_another_format_are_told_apart(
    capsys, numbered, teacher_folder, tmp_path, monkeypatch
):
    words = ["--teacher_name_or_path", teacher_folder, "--dataset_name", numbered, "--output_dir", tmp_path / "s"]
    with monkeypatch.context() as on_gpu:
        on_gpu.setattr(precision, "mixed_precision", lambda: "bf16")
        run(*words)
    assert json.loads((tmp_path / "s/scores.json").read_text())["teacher"]["dtype"] == "bfloat16"
    assert "scores of other settings: its teacher is of dtype 'bfloat16', not 'float32'" in refuse(capsys, *words)
    run(*words, "--teacher_dtype", "bfloat16")


def test_a_tagger_that_is_not_installed_is_named(capsys, numbered, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "textblob.en.taggers", None)
    said = refuse(capsys, "--dataset_name", numbered, "--output_dir", tmp_path, "--candidates", "swap")
    assert 'pip install "sdsclip_hf[candidates]"' in said


def test_pushing_wants_a_login_before_hours_of_work(capsys, numbered, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    words = ["--dataset_name", numbered, "--output_dir", tmp_path / "s", "--push_to_hub", "--hub_dataset_id", "a/b"]
    said = refuse(capsys, *words)
    assert "hf auth login" in said and not (tmp_path / "s").exists()


def test_the_options_have_help(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    for name in ScoringArguments.__dataclass_fields__:
        assert f"--{name} " in printed or f"--{name}]" in printed
