"""``sdsclip prompt-tune``: one run on any labelled images, and all methods on the embedded world."""

import json
from pathlib import Path

import pytest
import yaml
from prompt_tuning import labelled

from sdsclip_hf import PromptedCLIP
from sdsclip_hf.commands.prompt_tune import main
from sdsclip_hf.prompts import tuning
from sdsclip_hf.prompts.arguments import asks_for_one_run, parse_arguments
from sdsclip_hf.prompts.data.shapes import load_labelled_shapes
from sdsclip_hf.prompts.saved import WEIGHTS_FILE

NAMES = ["circle", "square", "star", "cross", "triangle"]
SHORT = ["--use_cpu", "--report_to", "none", "--max_steps", "2", "--per_device_train_batch_size", "4"]
SHORT += ["--disable_tqdm", "true"]


@pytest.fixture
def tuned(work_folder, monkeypatch):
    """Runs the command on labelled pictures with more options; the output folder's results, or the last words."""
    monkeypatch.setattr("sdsclip_hf.commands.prompt_tune.hush_libraries", lambda: None)
    labelled(20, NAMES).to_parquet("rows.parquet")

    def run(*words: str, folder: str = "out"):
        data = ["--dataset_name", "rows.parquet", "--test_split_name", "train", "--output_dir", folder]
        try:
            main([*data, *SHORT, *words])
        except SystemExit as error:
            return str(error)
        return json.loads(Path(folder, "results.json").read_text())

    return run


def test_a_run_leaves_prompts_with_their_scores_and_what_made_them(tuned, capsys):
    results = tuned("--method", "kgcoop", "--classes", "base", "--shots", "2", "--picks", "picks.json")
    prompted = PromptedCLIP.from_pretrained("out")
    assert prompted.record.class_names == NAMES[:3] and prompted.record.base_model == "shapes/student"
    data = labelled(20, NAMES)
    for half, names in (("base", NAMES[:3]), ("new", NAMES[3:])):
        rows = [row for row in data if NAMES[row["label"]] in names]
        found = prompted.predict([row["image"] for row in rows], names)
        right = [NAMES[row["label"]] == name for row, name in zip(rows, found, strict=True)]
        assert results["scores"][half]["images"] == len(rows)
        assert results["scores"][half]["prompts"] == pytest.approx(sum(right) / len(rows))
    printed = capsys.readouterr().out
    assert "3 classes, 2 pictures of each, 100 epochs" in printed
    words = [line.split() for line in printed.splitlines() if line.startswith(("zero-shot", "KgCoOp"))]
    assert [len(line) for line in words] == [4, 4]  # base, new, HM
    for (name, *shown), which in zip(words, ("zero_shot", "prompts"), strict=True):
        base, new = (results["scores"][half][which] for half in ("base", "new"))
        mean = 2 * base * new / (base + new) if base + new else 0
        assert [float(value) for value in shown] == pytest.approx([100 * base, 100 * new, 100 * mean], abs=0.06), name
    assert len(json.loads(Path("picks.json").read_text())["pictures"]) == 3
    recorded = yaml.safe_load(Path("out/run.yaml").read_text())
    assert (recorded["method"], recorded["learning_rate"], recorded["shots"]) == ("kgcoop", 0.002, 2)
    Path("again.yaml").write_text(yaml.safe_dump(recorded | {"output_dir": "again"}))
    main(["--config", "again.yaml"])  # the record is a configuration
    assert Path("again", WEIGHTS_FILE).read_bytes() == Path("out", WEIGHTS_FILE).read_bytes()


def test_another_dataset_without_attributes_may_be_scored(tuned):
    labelled(10, NAMES, attributes=False).to_parquet("plain.parquet")
    words = ["--method", "intcoop", "--attribute_column", "attribute", "--test_dataset_name", "plain.parquet"]
    assert tuned(*words)["scores"]["all"]["images"] == 10


@pytest.mark.slow
def test_a_run_is_gone_on_with_and_no_other_is_lost(tuned):
    whole = ["--method", "cocoop", "--save_steps", "1", "--max_steps", "3"]
    tuned(*whole, folder="whole")
    tuned(*whole[:-1], "2")
    assert "holds another run. Go on with it by --resume_from_checkpoint last" in tuned(*whole)
    tuned(*whole, "--resume_from_checkpoint", "last")
    assert Path("out", WEIGHTS_FILE).read_bytes() == Path("whole", WEIGHTS_FILE).read_bytes()
    told = tuned(*whole, "--context_init", "random", "--context_length", "2", "--resume_from_checkpoint", "last")
    assert "belongs to a run with other settings" in told


@pytest.mark.parametrize(
    "words, message",
    [
        (["--method", "coup"], "unknown method 'coup'"),
        (["--shots", "0"], "shots is 0"),
        (["--nonsense", "1"], "unknown options --nonsense"),
        (["--config", "nowhere"], "--config nowhere: there is no such file"),
        (["--method", "intcoop", "--attribute_column", "colour"], "no attribute column 'colour'"),
        (["--model_name_or_path", "shapes/teacher"], "could not load the student"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(tuned, words, message):
    told = tuned(*words)
    assert isinstance(told, str) and message in told and told.startswith("error: ")
    assert not Path("out").exists()


def test_which_command_lines_are_one_run():
    assert not asks_for_one_run(["--seed", "1", "--output_dir", "out"])
    for word in ("--method", "--dataset-name", "--model_name_or_path=org/clip", "--config"):
        assert asks_for_one_run([word])


def test_a_template_may_be_a_dataset_s_name():
    _, config, _ = parse_arguments(["--template", "oxford_pets", "--use_cpu"])
    assert config.settings.template == "a photo of a {}, a type of pet."


ROWS = ["zero-shot", "CoOp", "CoCoOp", "KgCoOp", "IntCoOp"]


def table(printed: str) -> dict[str, list[float]]:
    lines = [line.split() for line in printed.splitlines() if line.split()[:1] and line.split()[0] in ROWS]
    return {name: [float(value) for value in values] for name, *values in lines if len(values) == 4}


@pytest.mark.slow
def test_without_a_word_all_methods_are_compared_on_the_embedded_world(work_folder, monkeypatch, capsys):
    def few(name: str, split: str, **_):
        return load_labelled_shapes(split, name.partition("/")[2] or "same", per_class=3)

    monkeypatch.setattr(tuning, "load_labelled", few)
    main([*SHORT, "--output_dir", "out", "--shots", "2"])
    found = table(capsys.readouterr().out)
    assert list(found) == ROWS
    results = json.loads(Path("out/results.json").read_text())["scores"]
    assert {name: scores["shifted"]["images"] for name, scores in results.items()} == dict.fromkeys(ROWS[1:], 15)
    for base, new, mean, _ in found.values():
        assert mean == pytest.approx(2 * base * new / (base + new), abs=0.2)
    for method in ("coop", "cocoop", "kgcoop", "intcoop"):
        assert PromptedCLIP.from_pretrained(f"out/{method}").record.settings.method == method


@pytest.mark.slow
def test_the_first_command_is_done_in_three_minutes_and_learns(work_folder, capsys):
    main([])
    found = table(capsys.readouterr().out)
    assert found["CoOp"][0] > found["zero-shot"][0] + 2
    assert json.loads(Path("outputs/prompts/results.json").read_text())["seconds"] < 180
