"""A study of prompts: which runs it makes, that they go on after a kill, and its baselines against other libraries."""

import copy
import json

import numpy as np
import pytest
import torch
import yaml
from sklearn.linear_model import LogisticRegression

from sdsclip_hf.commands import prompt_study
from sdsclip_hf.prompts.composition import attribute_pairs
from sdsclip_hf.prompts.data.few_shot import classes_of, few_shot
from sdsclip_hf.prompts.data.shapes import load_labelled_shapes
from sdsclip_hf.prompts.labelled_images import LabelledImages
from sdsclip_hf.prompts.settings import PromptSettings
from sdsclip_hf.prompts.study.baselines import PROBE_C, LinearProbe, tune_lora
from sdsclip_hf.prompts.study.settings import Scored, Task, check, tasks
from sdsclip_hf.prompts.study.study import PromptStudy
from sdsclip_hf.prompts.tuning import accuracy
from sdsclip_hf.prompts.zero_shot import ZeroShot
from sdsclip_hf.shapes import model_path
from sdsclip_hf.students.loading import load_clip

SETTINGS = {
    "model_name_or_path": "shapes/student",
    "protocols": ["few_shot", "base_to_new", "domain_generalization"],
    "seeds": [1, 2],
    "shots": [1],
    "source": "shapes",
    "baseline": "CoOp",
    "common": {"augmentation": False, "max_steps": 2, "per_device_train_batch_size": 4},
    "datasets": {
        "shapes": {"dataset_name": "shapes", "attribute_pairs": True, "test_split_name": "validation"},
        "lines": {"dataset_name": "shapes/lines", "of": "shapes", "halves": True, "test_split_name": "validation"},
    },
    "arms": {
        "zero-shot": {"method": "zero_shot"},
        "linear probe": {"method": "linear_probe"},
        "CoOp": {"method": "coop"},
    },
}
BASE, ALL = Task("shapes", "base", 1), Task("shapes", "all", 1)


@pytest.fixture(autouse=True)
def _few_pictures(monkeypatch):
    monkeypatch.setattr("sdsclip_hf.prompts.data.shapes.PER_CLASS", 4)


@pytest.fixture(scope="module")
def student():
    return load_clip(model_path("student"))


def test_protocols_ask_for_the_runs_of_the_literature():
    settings = copy.deepcopy(SETTINGS) | {"shots": [4, 1]}
    halves = [Scored(name, half) for name in ("shapes", "lines") for half in ("base", "new")]
    own, most, base = Scored("shapes", "all"), Task("shapes", "all", 4), Task("shapes", "base", 4)
    domains = {ALL: [own], most: [own, Scored("lines", "all")]}
    assert tasks(settings) == domains | {base: [*halves, Scored("shapes", "pairs")]}
    settings["datasets"]["other"] = {"dataset_name": "other"}
    settings["protocols"] = ["cross_dataset"]
    assert tasks(settings) == {most: [own, Scored("other", "all")]}


@pytest.mark.slow
def test_a_killed_study_goes_on_to_the_same_end(tmp_path, monkeypatch):
    """Killed at its fourth run, the three are not made again; tables, plots and scores are those of one that was not."""
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(SETTINGS, sort_keys=False))
    made, make = [], PromptStudy._make

    def counted(self, arm, task, tests, seed):
        if len(made) == 3 and self.folder.name == "killed":
            made.append(None)
            raise KeyboardInterrupt
        made.append((arm, task, seed))
        return make(self, arm, task, tests, seed)

    monkeypatch.setattr(PromptStudy, "_make", counted)
    with pytest.raises(SystemExit, match="interrupted"):
        prompt_study.main(["--config", str(file), "--output_dir", str(tmp_path / "killed")])
    prompt_study.main(["--config", str(file), "--output_dir", str(tmp_path / "killed")])
    runs = [run for run in made if run]
    assert len(runs) == len(set(runs)) == 2 * (1 + 2 * 2)
    found = json.loads((tmp_path / "killed/results.json").read_text())["scores"]
    rows = {(row["arm"], row["classes"], row["shots"], row["test"]): row for row in found}
    zero = rows["zero-shot", "base", 1, "shapes new"]
    assert len(zero["seeds"]) == 1 and zero["gain"]["mean"] == pytest.approx(
        zero["seeds"][0] - np.mean(rows["CoOp", "base", 1, "shapes new"]["seeds"])
    )
    assert ("linear probe", "base", 1, "shapes new") not in rows and ("linear probe", "all", 1, "shapes all") in rows
    tables = (tmp_path / "killed/tables.md").read_text()
    for text in (
        "Base to new: trained",
        "Base to new in other domains",
        "Across domains",
        "Few-shot",
        "Pairs of",
        "Gain over CoOp",
    ):
        assert f"### {text}" in tables
    assert {path.name for path in (tmp_path / "killed").glob("*.png")} == {"shots.png", "base_to_new.png", "gains.png"}
    clip, processor = load_clip(model_path("student"))
    data = classes_of(load_labelled_shapes("validation"), "new")
    prompts = [f"a photo of a {name}." for name in data.features["label"].names]
    inputs = processor(text=prompts, images=data["image"][:], return_tensors="pt", padding=True)
    with torch.no_grad():
        right = clip(**inputs).logits_per_image.argmax(-1) == torch.tensor(data["label"][:])
    assert zero["seeds"] == [pytest.approx(100 * right.float().mean().item())]
    changed = copy.deepcopy(SETTINGS) | {"common": {"augmentation": True}}
    with pytest.raises(ValueError, match=r"CoOp.*json comes from other settings"):
        PromptStudy(changed, tmp_path / "killed").run()


def test_shuffled_attributes_are_the_same_words_elsewhere(tmp_path):
    study = PromptStudy(copy.deepcopy(SETTINGS), tmp_path)
    own, dealt = (study._train_data(ALL, 1, shuffled) for shuffled in (False, True))
    assert sorted(own["attribute"]) == sorted(dealt["attribute"]) and own["attribute"][:] != dealt["attribute"][:]
    assert own["label"][:] == dealt["label"][:]


def test_the_linear_probe_is_logistic_regression(student):
    """Against scikit-learn's on the same features."""
    clip, processor = student
    data, other = (
        LabelledImages(load_labelled_shapes(split), processor.image_processor) for split in ("train", "test")
    )
    probe = LinearProbe(clip, data)
    (features, labels), (seen, wanted) = probe.features(data), probe.features(other)
    expected = LogisticRegression(C=PROBE_C, max_iter=2000, tol=1e-8).fit(features.numpy(), labels.numpy())
    ours = probe.linear(seen).softmax(-1).detach().numpy()
    assert np.abs(ours - expected.predict_proba(seen.numpy())).max() < 2e-3
    assert probe.accuracy(other) == pytest.approx(expected.score(seen.numpy(), wanted.numpy()))


def test_lora_learns_and_moves_both_towers():
    clip, processor = load_clip(model_path("student"))
    data = LabelledImages(few_shot(load_labelled_shapes("train"), 4, 1), processor.image_processor)
    settings = PromptSettings()
    before = accuracy(ZeroShot(clip, processor.tokenizer, data.class_names, settings), data)
    tuned = tune_lora(clip, processor.tokenizer, data, settings, 1, learning_rate=3e-3, dropout=0.0, steps_per_shot=4)
    assert accuracy(tuned, data) > before + 0.05
    moved = {name.split(".")[0] for name, one in clip.named_parameters() if "lora_B" in name and one.abs().max() > 0}
    assert moved == {"text_model", "vision_model"}


def test_attribute_pairs_are_two_prompts_each(student):
    """Against a plain loop: a picture, its own colour and the one that was drawn beside it."""
    clip, processor = student
    data = load_labelled_shapes("validation")
    names = data.features["label"].names
    learner = ZeroShot(clip, processor.tokenizer, names, PromptSettings())
    found = attribute_pairs(learner, data, processor.image_processor, seed=3)
    words = sorted(set(data["attribute"]))
    steps, right = np.random.default_rng(3).integers(1, len(words), size=len(data)), []
    for row, step in zip(data, steps, strict=True):
        other = words[(words.index(row["attribute"]) + step) % len(words)]
        prompts = [f"a photo of a {word} {names[row['label']]}." for word in (row["attribute"], other)]
        inputs = processor(text=prompts, images=row["image"], return_tensors="pt", padding=True)
        with torch.no_grad():
            right.append(clip(**inputs).logits_per_image[0].diff().item() < 0)
    assert found == pytest.approx(np.mean(right)) and 0.5 < found < 1
    assert learner.class_names == names


BAD = {
    "missing": ({"seeds": []}, "the settings of the prompts' study lack seeds; they are"),
    "strange": ({"methods": 1}, "the settings of the prompts' study know no methods"),
    "protocol": ({"protocols": ["zero"]}, "unknown protocol zero; choose from"),
    "source": ({"source": "imagenet"}, "unknown source imagenet; choose from lines, shapes"),
    "baseline": ({"baseline": "MaPLe"}, "unknown baseline MaPLe"),
    "method": ({"arms": {"a": {"method": "maple"}}}, "unknown method maple; choose from"),
    "option": ({"arms": {"a": {"method": "coop", "rate": 1}}}, "unknown option of the arm a: rate"),
    "slug": (
        {"arms": {"a b": {"method": "coop"}, "a_b": {"method": "coop"}}, "baseline": None},
        "would share a folder",
    ),
    "dataset": (
        {"datasets": {"shapes": {"of": "lines"}}},
        "the dataset shapes of the prompts' study has no dataset_name",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_settings_that_would_fail_late_are_refused(case):
    change, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        check(copy.deepcopy(SETTINGS) | change)
