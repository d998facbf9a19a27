"""What is left of a run: prompts that any CLIP of their kind takes up again, here, in an evaluation, and on the Hub."""

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from damage import DAMAGE
from prompt_tuning import CLASSES, labelled
from transformers import pipeline

from sdsclip_hf import PromptedCLIP
from sdsclip_hf.commands.evaluate import main as evaluate
from sdsclip_hf.commands.push import main as push
from sdsclip_hf.prompts.push import push_prompts
from sdsclip_hf.prompts.saved import CONFIG_FILE, WEIGHTS_FILE

NAMES = ["red star", "cross", "green square", "circle"]


@pytest.fixture(scope="module")
def pictures():
    return labelled(8)["image"][:]


@pytest.fixture
def saved(make_prompt_trainer, tmp_path):
    """Makes saved prompts on the bundled student that were trained for some steps; their folder."""

    def make(method: str = "coop", steps: int = 2, **options):
        trainer = make_prompt_trainer(method, folder=method, max_steps=max(steps, 1), **options)
        trainer.base_name, trainer.record = "shapes/student", replaced(trainer.record)
        if steps:
            trainer.train()
        trainer.save_model()
        trainer.create_model_card()
        return tmp_path / method

    return make


def replaced(record):
    return type(record)(record.settings, record.class_names, "shapes/student", None, record.text_fingerprint)


def test_untrained_prompts_of_words_are_transformers_zero_shot_pipeline(saved, student, pictures):
    prompted = PromptedCLIP.from_pretrained(saved(steps=0))
    theirs = pipeline(
        "zero-shot-image-classification",
        model=student[0],
        tokenizer=student[1].tokenizer,
        image_processor=student[1].image_processor,
    )
    expected = theirs(pictures, candidate_labels=NAMES, hypothesis_template="a photo of a {}.")
    for found, wanted in zip(prompted(pictures, candidate_labels=NAMES), expected, strict=True):
        assert [row["label"] for row in found] == [row["label"] for row in wanted]
        assert [row["score"] for row in found] == pytest.approx([row["score"] for row in wanted], abs=1e-5)
    assert prompted(pictures[0], NAMES) == prompted(pictures[:1], NAMES)[0]


@pytest.mark.parametrize("method", ["coop", "cocoop", "kgcoop", "intcoop"])
def test_saved_prompts_predict_as_those_that_were_trained(make_prompt_trainer, tmp_path, student, pictures, method):
    trainer = make_prompt_trainer(method, folder=method)
    trainer.train()
    trainer.save_model()
    loaded = PromptedCLIP.from_pretrained(tmp_path / method, copy.deepcopy(student[0]), student[1])
    learner = trainer.learner.eval()
    learner.set_classes(NAMES)
    pixels = student[1].image_processor(pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = learner(pixels).logits
    torch.testing.assert_close(loaded.probabilities(pictures, NAMES, batch_size=3), logits.softmax(-1))
    assert loaded.predict(pictures, NAMES) == [NAMES[number] for number in logits.argmax(-1).tolist()]
    assert set(loaded.predict(pictures)) <= set(CLASSES)
    told = json.loads((tmp_path / method / CONFIG_FILE).read_text())
    assert (told["method"], told["class_names"]) == (method, CLASSES)
    weights = (tmp_path / method / WEIGHTS_FILE).stat().st_size
    assert weights < (5_000 if method in ("coop", "kgcoop") else 20_000 if method == "cocoop" else 500_000)


def test_exported_features_serve_a_plain_clip(saved, student, pictures):
    folder = saved("kgcoop")
    prompted = PromptedCLIP.from_pretrained(folder)
    features = prompted.export_text_features(NAMES)
    clip, processor = student
    images = clip.get_image_features(**processor(images=pictures, return_tensors="pt")).pooler_output
    logits = clip.logit_scale.exp() * torch.nn.functional.normalize(images, dim=-1) @ features.T
    torch.testing.assert_close(logits.softmax(-1), prompted.probabilities(pictures, NAMES))
    with pytest.raises(ValueError, match="the prompts of cocoop hang on the image"):
        PromptedCLIP.from_pretrained(saved("cocoop")).export_text_features(NAMES)


def test_prompts_of_another_clip_are_refused(saved, student):
    folder, (clip, processor) = saved(), student
    other = copy.deepcopy(clip)
    with torch.no_grad():
        other.vision_model.embeddings.class_embedding.add_(1.0)
        PromptedCLIP.from_pretrained(folder, other, processor)  # they are read by the text tower
        other.text_model.final_layer_norm.weight[0] += 1e-3
    with pytest.raises(ValueError, match="trained on the text tower of 'shapes/student', and that of the model"):
        PromptedCLIP.from_pretrained(folder, other, processor)
    with pytest.raises(ValueError, match="trained on the text tower"):
        PromptedCLIP.from_pretrained(folder, "shapes/student_bag_of_words")


def test_what_is_missing_or_damaged_is_told(saved, tmp_path):
    folder = saved()
    for name, other in ((WEIGHTS_FILE, CONFIG_FILE), (CONFIG_FILE, WEIGHTS_FILE)):
        copied = tmp_path / f"without {name}"
        shutil.copytree(folder, copied)
        (copied / name).unlink()
        with pytest.raises(
            ValueError, match=f"holds no saved prompts: it has no {name} beside {other}. Give the folder"
        ):
            PromptedCLIP.from_pretrained(copied)
    for kind, hurt in DAMAGE.items():
        if kind != "missing":
            copied = tmp_path / kind
            shutil.copytree(folder, copied)
            hurt(copied / WEIGHTS_FILE)
            with pytest.raises(ValueError, match=f"{WEIGHTS_FILE} is not what was saved with the {CONFIG_FILE} beside"):
                PromptedCLIP.from_pretrained(copied)
    told = json.loads((folder / CONFIG_FILE).read_text())
    for change, message in (
        ({"settings": told["settings"] | {"shape": 1}}, "settings that this version does not know .shape."),
        ({"settings": told["settings"] | {"method": "cocoop"}}, "do not belong together"),
        ({"settings": told["settings"] | {"method": "coup"}}, "unknown method 'coup'"),
        ({"class_names": None}, "is not what was written"),
    ):
        (folder / CONFIG_FILE).write_text(json.dumps(told | change))
        with pytest.raises(ValueError, match=message):
            PromptedCLIP.from_pretrained(folder)
    with pytest.raises(OSError, match="could not load the prompts 'org/none'"):
        PromptedCLIP.from_pretrained("org/none")


@pytest.fixture
def evaluated(work_folder, monkeypatch):
    """Evaluates on labelled pictures by prompts; the accuracy, or the last words."""
    labelled(12, NAMES).to_parquet("rows.parquet")
    monkeypatch.setattr("sdsclip_hf.commands.evaluate.hush_libraries", lambda: None)

    def run(prompts, *words, benchmark="classification=rows.parquet", folder="out"):
        command = ["--prompts", str(prompts), "--benchmark", benchmark, "--output_dir", folder, "--num_workers", "0"]
        try:
            evaluate([*command, *words])
        except SystemExit as error:
            return str(error)
        results = json.loads(Path(folder, "results.json").read_text())
        (model,) = results["models"].values()
        (rows,) = results["benchmarks"]["classification=rows.parquet"]["scores"].values()
        return model, next(row["value"] for row in rows if row["score"] == "accuracy@1")

    return run


def test_an_evaluation_takes_classes_from_prompts(saved, evaluated):
    folder = saved()
    data = labelled(12, NAMES)
    predicted = PromptedCLIP.from_pretrained(folder).predict(data["image"][:], NAMES)
    right = [NAMES[label] == name for label, name in zip(data["label"], predicted, strict=True)]
    model, value = evaluated(folder)
    assert value == pytest.approx(sum(right) / 12) and model["name"] == "shapes/student"
    assert len(model["prompts"]) == 16
    again = saved("kgcoop")
    assert "holds another evaluation: its prompts is" in evaluated(again)


def test_evaluations_that_prompts_do_not_fit_are_refused(saved, evaluated):
    folder = saved()
    assert "shapes:test has captions; give --benchmark classification=SOURCE" in evaluated(
        folder, benchmark="shapes:test"
    )
    assert "and shapes/teacher is a diffusion model" in evaluated(
        folder, "--teacher", "shapes/teacher", benchmark="shapes:test"
    )
    assert "trained on the text tower" in evaluated(folder, "--model", "shapes/student_bag_of_words")
    told = evaluated(saved("cocoop"))
    assert "are of cocoop, which makes others for each image" in told


def test_prompts_are_pushed_whole_and_used_from_the_hub(saved, hub_here, pictures):
    folder = saved("kgcoop")
    push([str(folder), "org/prompts", "--message", "A first try"])
    files = hub_here.files("models", "org/prompts")
    assert {WEIGHTS_FILE, CONFIG_FILE, "README.md"} <= set(files)
    assert not any("model.safetensors" in name or "checkpoint" in name for name in files)
    from_hub = PromptedCLIP.from_pretrained("org/prompts")
    assert torch.equal(from_hub.probabilities(pictures), PromptedCLIP.from_pretrained(folder).probabilities(pictures))
    card = files["README.md"].decode()
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(snippet, {})
    assert 'from_pretrained("org/prompts")' in snippet and "pipeline_tag: zero-shot-image-classification" in card


def test_a_repository_of_something_else_is_left_as_it_is(saved, hub_here, tmp_path):
    folder, other = saved(), hub_here.root / "models/org/model"
    other.mkdir(parents=True)
    (other / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"org/model on the Hub holds something other than prompts: config.json"):
        push_prompts(folder, "org/model")
    push_prompts(folder, "org/model", force=True)
    assert {"config.json", WEIGHTS_FILE} <= set(hub_here.files("models", "org/model"))


def test_a_run_pushes_at_its_end(make_prompt_trainer, hub_here):
    trainer = make_prompt_trainer(push_to_hub=True, hub_model_id="org/run", save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.scores = {"base": {"images": 12, "zero_shot": 0.25, "prompts": 0.5}}
    trainer.push_to_hub("End")
    assert [commit.title for commit in hub_here.history("models", "org/run")].count("End") == 1
    card = hub_here.files("models", "org/run")["README.md"].decode()
    assert "| base | 12 | 25.0 | 50.0 |" in card


def test_the_card_of_intcoop_says_whose_reading_it_is(saved):
    card = (saved("intcoop", steps=0) / "README.md").read_text()
    assert "as it is read from its abstract and reviews" in card
