"""PromptTrainer: the published recipe, resuming to the bit, and what it tells of data that do not fit."""

import datasets
import numpy as np
import pytest
import torch
from forking import run_forked
from launching import launch
from PIL import Image
from prompt_tuning import CLASSES, labelled
from safetensors.torch import load_file
from torch.optim.lr_scheduler import CosineAnnealingLR

from sdsclip_hf import PromptConfig
from sdsclip_hf.prompts.config import published_epochs
from sdsclip_hf.prompts.labelled_images import LabelledImages, collate, random_part
from sdsclip_hf.prompts.saved import WEIGHTS_FILE


def trained(trainer) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in trainer.trained_parameters().items()}


@pytest.mark.parametrize(
    "method, shots, epochs",
    [("coop", 1, 50), ("coop", 2, 100), ("coop", 4, 100), ("coop", 8, 200), ("coop", 16, 200), ("cocoop", 16, 10)],
)
def test_epochs_are_the_published_ones(method, shots, epochs):
    assert published_epochs(method, shots) == epochs


def test_the_learning_rate_is_dassl_s_by_epoch(make_prompt_trainer):
    trainer = make_prompt_trainer(max_steps=-1, num_train_epochs=4)  # of three steps
    trainer.train()
    found = [row["learning_rate"] for row in trainer.state.log_history if "loss" in row]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.002)
    cosine, expected = CosineAnnealingLR(optimizer, 4), [1e-5]  # the warm-up epoch; then the cosine begins at its top
    for _ in range(3):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    assert found == pytest.approx([rate for rate in expected for _ in range(3)])


def test_steps_are_sgd_s_with_momentum_and_decay_of_all_that_trains(make_prompt_trainer):
    options = {"per_device_train_batch_size": 12, "augmentation": False, "warmup_epochs": 0, "num_train_epochs": 3}
    trainer = make_prompt_trainer("cocoop", max_steps=-1, lr_scheduler_type="constant", **options)
    learner, batch = trainer.learner, collate([trainer.train_dataset[number] for number in range(12)])
    start = trained(trainer)
    trainer.train()
    found = trained(trainer)
    weights, speed = start, {name: torch.zeros_like(value) for name, value in start.items()}
    for _ in range(3):
        with torch.no_grad():
            for name, one in trainer.trained_parameters().items():
                one.copy_(weights[name])
        gradients = torch.autograd.grad(learner(**batch).loss, list(trainer.trained_parameters().values()))
        for (name, value), gradient in zip(weights.items(), gradients, strict=True):
            speed[name] = 0.9 * speed[name] + gradient + 5e-4 * value
        weights = {name: value - 0.002 * speed[name] for name, value in weights.items()}
    for name, value in weights.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


KILLED = """
import os, sys
from prompt_tuning import labelled
from sdsclip_hf import PromptConfig, PromptTrainer
from sdsclip_hf.training import sealed_checkpoints

seal = sealed_checkpoints.seal
def killed(checkpoint, identity):
    if checkpoint.name == "checkpoint-4":
        os._exit(9)
    seal(checkpoint, identity)
sealed_checkpoints.seal = killed
args = PromptConfig(method=sys.argv[1], output_dir=sys.argv[2], use_cpu=True, max_steps=6, save_steps=2, report_to="none",
                    per_device_train_batch_size=4)
PromptTrainer("shapes/student", args, labelled()).train()
"""


@pytest.mark.parametrize("method", [pytest.param("kgcoop", marks=pytest.mark.slow), "intcoop"])
def test_a_killed_run_goes_on_to_the_same_bits(make_prompt_trainer, tmp_path, method):
    done = run_forked(KILLED, method, tmp_path / "killed")
    assert done.returncode == 9, done.stderr
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    whole, resumed = (make_prompt_trainer(method, folder=name, **options) for name in ("whole", "killed"))
    whole.base_name = resumed.base_name = "shapes/student"
    whole.train()
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    one, other = trained(whole), trained(resumed)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    saved = load_file(tmp_path / "killed/checkpoint-6" / WEIGHTS_FILE)
    assert saved.keys() == one.keys() and all(torch.equal(value, one[name]) for name, value in saved.items())


@pytest.mark.parametrize(
    "options, data, message",
    [
        (
            {"context_init": "random", "context_length": 5},
            labelled(),
            "other settings: --context_length was None and is now 5; --context_init was",
        ),
        ({}, labelled(15), "12 rows, and there are 15 now"),
        ({}, labelled(12, [*CLASSES[:2], "star"]), "a run on other labels"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(make_prompt_trainer, tmp_path, options, data, message):
    make_prompt_trainer(save_strategy="steps", save_steps=2).train()
    with pytest.raises(ValueError, match=message):
        make_prompt_trainer(data=data, **options).train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))


def test_each_term_is_logged_and_evaluation_is_among_the_classes_of_its_data(make_prompt_trainer):
    others = {"same": labelled(9), "others": labelled(8, ["star", "cross", "triangle", "green"], attributes=False)}
    trainer = make_prompt_trainer("intcoop", eval_dataset=others, eval_strategy="steps", eval_steps=2)
    trainer.train()
    logged = [row for row in trainer.state.log_history if "loss" in row]
    for row in logged:
        sums = row["cross_entropy"] + 4 * row["attribute"] + 4 * row["regularizer"]
        assert row["loss"] == pytest.approx(sums, rel=1e-3)
    learner = trainer.learner.eval()
    for name, data in others.items():
        (found,) = [row[f"eval_{name}_accuracy"] for row in trainer.state.log_history if f"eval_{name}_loss" in row]
        pixels = trainer.processing_class.image_processor(data["image"][:], return_tensors="pt")["pixel_values"]
        with torch.no_grad(), learner.for_classes(data.features["label"].names):
            right = learner(pixels).logits.argmax(-1) == torch.tensor(data["label"][:])
        assert found == pytest.approx(right.float().mean().item())
    assert learner.class_names == CLASSES


def test_bfloat16_leaves_what_trains_in_float32(make_prompt_trainer):
    trainer = make_prompt_trainer("cocoop", bf16=True, max_steps=1)
    trainer.train()
    assert all(one.dtype == torch.float32 for one in trainer.trained_parameters().values())


TWO = """
import sys, torch
from prompt_tuning import labelled
from sdsclip_hf import PromptConfig, PromptTrainer

size = 12 // int(sys.argv[2])
args = PromptConfig(method=sys.argv[1], output_dir=sys.argv[3], use_cpu=True, max_steps=3, save_strategy="no",
                    report_to="none", per_device_train_batch_size=size, augmentation=False, warmup_epochs=0)
trainer = PromptTrainer("shapes/student", args, labelled())
trainer.train()
trainer.save_model()
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["coop", "intcoop"])
def test_two_processes_end_with_the_prompts_of_one(tmp_path, method):
    for processes in (1, 2):
        launch(TWO, method, processes, tmp_path / str(processes), processes=processes)
    one, two = (load_file(tmp_path / name / WEIGHTS_FILE) for name in "12")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)


# The data


@pytest.fixture
def image_processor(student):
    return student[1].image_processor


def test_random_parts_hang_on_seed_epoch_and_row_alone(image_processor):
    data = LabelledImages(labelled(4), image_processor, augment=True, seed=1)
    first = [data[number]["pixel_values"] for number in (0, 1, 0)]
    assert torch.equal(first[0], first[2]) and not torch.equal(first[0], first[1])
    data.set_epoch(1)
    again = data[0]["pixel_values"]
    assert not torch.equal(again, first[0])
    for batch in torch.utils.data.DataLoader(data, 4, num_workers=1, collate_fn=collate):
        assert torch.equal(batch["pixel_values"][0], again)


def test_random_parts_have_torchvision_s_areas_and_sides(monkeypatch):
    image, boxes = Image.new("RGB", (400, 300)), []
    crop = Image.Image.crop
    monkeypatch.setattr(Image.Image, "crop", lambda self, box: boxes.append(box) or crop(self, box))
    for number in range(800):
        assert random_part(image, (8, 8), np.random.default_rng(number)).size == (8, 8)
    left, top, right, bottom = np.array(boxes).T
    areas, ratios = (right - left) * (bottom - top) / 120_000, (right - left) / (bottom - top)
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= 400 and bottom.max() <= 300
    assert 0.078 < areas.min() < 0.1 and 0.85 < areas.max() <= 1.0
    assert 0.74 < ratios.min() < 0.77 and 1.31 < ratios.max() < 1.36
    # Uniform between 0.08 and 1 but for those that do not fit, of which there are more among the large.
    assert 0.4 < np.median(areas) < 0.54


def test_pictures_are_prepared_as_the_image_processor_prepares_them(image_processor):
    data = LabelledImages(labelled(1), image_processor, augment=True)
    picture = labelled(1)[0]["image"].resize((32, 32))
    expected = image_processor([picture], return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(data._normalized(picture), expected, rtol=0, atol=1e-6)


def without(column: str, rows=(1, 3)) -> datasets.Dataset:
    data = labelled()
    values = [None if number in rows else value for number, value in enumerate(data[column][:])]
    return data.remove_columns(column).add_column(column, values, feature=data.features[column])


@pytest.mark.parametrize(
    "data, message",
    [
        (without("attribute"), "2 of 12 rows of the training data have no attribute: 1, 3"),
        (labelled(attributes=False), "12 of 12 rows of the training data have no attribute: 0, 1, 2"),
        (without("label"), "2 of 12 rows have no label: 1, 3"),
        (labelled().rename_column("image", "picture"), "image column 'image' not found; the dataset has 'picture'"),
        (
            labelled().cast_column("label", datasets.Value("int64")),
            "the column 'label' holds Value.*class_encode_column",
        ),
    ],
)
def test_data_that_do_not_fit_are_told(make_prompt_trainer, data, message):
    with pytest.raises(ValueError, match=message):
        make_prompt_trainer("intcoop", data)


def test_attributes_are_needed_by_intcoop_alone(make_prompt_trainer):
    make_prompt_trainer("cocoop", without("attribute"))


def test_a_picture_that_cannot_be_read_is_named(make_prompt_trainer):
    rows = [{"image": {"bytes": b"no picture", "path": None}, "label": number} for number in range(3)]
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)}
    with pytest.raises(OSError, match=r"the picture of row . cannot be read"):
        make_prompt_trainer(data=datasets.Dataset.from_list(rows, features=datasets.Features(features))).train()


def test_few_pictures_give_batches_all_the_same(make_prompt_trainer):
    trainer = make_prompt_trainer(per_device_train_batch_size=32, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["epoch"] == 1.0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "coup"}, "unknown method 'coup'"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0; set --learning_rate"),
        ({"warmup_epochs": -1}, "warmup_epochs is -1"),
        ({"remove_unused_columns": True}, "leave --remove_unused_columns out"),
    ],
)
def test_options_outside_their_range_are_told(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        PromptConfig(output_dir=str(tmp_path), use_cpu=True, **options)
