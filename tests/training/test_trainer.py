"""SDSCLIPTrainer: its loss, what it trains, its checkpoints and what happens when something goes wrong."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_clip, make_processor
from diffusers import StableDiffusionPipeline
from forking import run_forked
from peft import LoHaConfig, LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPProcessor, EarlyStoppingCallback, TrainerCallback

from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer
from sdsclip_hf.benchmarks import load_benchmark
from sdsclip_hf.benchmarks.sugarcrepe import SUBSETS
from sdsclip_hf.common.checkpoints import RUN_FILE, fingerprint, last_checkpoint
from sdsclip_hf.data import captioned_images as data_module
from sdsclip_hf.evaluation.scorers import ClipScorer
from sdsclip_hf.shapes import model_path
from sdsclip_hf.students.latent_mapper import LatentMapper
from sdsclip_hf.students.sdsclip_model import load_clip
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher
from sdsclip_hf.training import trainer as trainer_module

pytestmark = pytest.mark.filterwarnings("ignore")
LN_100 = math.log(100)
# renamed in transformers 5.23; Python 3.10 gets an older one
RECOMPUTE = {
    "activation_checkpointing" if hasattr(SDSCLIPConfig, "activation_checkpointing") else "gradient_checkpointing": True
}


@pytest.fixture
def make_trainer(tmp_path, clip_folder, teacher_folder, pairs):
    """A trainer of the tiny models; ``folder`` is below tmp_path, what is not listed goes to the configuration."""

    def make(folder="run", *, model=clip_folder, teacher=teacher_folder, data=pairs, **options):
        given = ("eval_dataset", "callbacks", "peft_config", "processing_class")
        parts = {name: options.pop(name) for name in given if name in options}
        settings = {
            "output_dir": str(tmp_path / folder),
            "use_cpu": True,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "learning_rate": 1e-2,
            "max_steps": 2,
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
        }
        args = SDSCLIPConfig(**(settings | options))
        return SDSCLIPTrainer(model=model, args=args, teacher=teacher, train_dataset=data, **parts)

    return make


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trainer.student.state_dict().items()}


def changed(before: dict, after: dict) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def assert_same_weights(one, other):
    assert changed(weights(one), weights(other)) == set()


def draw(trainer, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """t and eps of the trainer's next call."""
    return trainer.distillation.draw(latents, trainer._draw_number())


def first_batch(trainer) -> dict[str, torch.Tensor]:
    return next(iter(trainer.get_train_dataloader()))


class At(TrainerCallback):
    """Calls a function at the beginning of every step."""

    def __init__(self, function):
        self.function = function

    def on_step_begin(self, args, state, control, **kwargs):
        self.function(state.global_step)


# Resuming


RUNS = {
    "layernorm": {"mapper_learning_rate": 3e-2},
    "layernorm, mapper prepared": {"mapper_whitening": True, "mapper_warmup_steps": 3},
    "lora with dropout": {"trainable": "lora", "lora_dropout": 0.3, "lora_r": 2},
    "full, temperature, accumulation": {
        "trainable": "full",
        "train_logit_scale": True,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
    },
    "no teacher": {"lambda_sds": 0.0},
    "text warm-up, stop-gradient": {
        "mapper_warmup_steps": 2,
        "mapper_warmup_inputs": "text",
        "sds_gradient": "stop_gradient",
    },
}


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is something to pin memory for")
def test_no_loader_pins_memory_where_there_is_no_device_to_copy_to(make_trainer, pairs, recwarn):
    trainer = make_trainer(eval_dataset=pairs, use_cpu=False)
    assert trainer.args.dataloader_pin_memory
    for loader in (trainer.get_train_dataloader(), trainer.get_eval_dataloader()):
        next(iter(loader))
    assert not [warning for warning in recwarn if "pin_memory" in str(warning.message)]


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_resumed_run_ends_bit_identical_to_the_uninterrupted_one(make_trainer, several_captions, tmp_path, options):
    options = options | {"data": several_captions, "max_steps": 8, "save_strategy": "steps", "save_steps": 1}
    whole = make_trainer("whole", **options)
    whole.train()
    start = make_trainer("start", **options)
    assert changed(weights(start), weights(whole))
    for step in (4, 6):  # mid-epoch and, without accumulation, the end of an epoch of six steps
        resumed = make_trainer(f"resumed-{step}", **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"whole/checkpoint-{step}"))
        assert resumed.state.global_step == 8
        assert_same_weights(resumed, whole)
        tail = [row["loss"] for row in whole.state.log_history if "loss" in row and row["step"] > step]
        assert [row["loss"] for row in resumed.state.log_history if "loss" in row][step:] == tail


def test_resumed_stream_ends_bit_identical_to_the_uninterrupted_one(make_trainer, several_captions, tmp_path):
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 1}
    whole = make_trainer("whole", data=several_captions.to_iterable_dataset(), **options)
    whole.train()
    resumed = make_trainer("resumed", data=several_captions.to_iterable_dataset(), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-4"))
    assert_same_weights(resumed, whole)


def test_resume_true_takes_the_last_checkpoint_and_does_not_warm_up_again(make_trainer, tmp_path, monkeypatch):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 3, "mapper_warmup_steps": 2}
    whole = make_trainer("run", **options)
    whole.train()
    for path in (tmp_path / "run/checkpoint-4").iterdir():
        path.unlink()
    resumed = make_trainer("run", **options)
    monkeypatch.setattr(trainer_module.MapperWarmup, "run", lambda _: pytest.fail("the mapper was warmed up twice"))
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(resumed, whole)


def test_resume_true_without_a_checkpoint_starts_at_the_beginning(make_trainer):
    fresh, resumed = make_trainer("fresh"), make_trainer("resumed")
    fresh.train()
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(fresh, resumed)


def test_evaluating_and_measuring_do_not_change_the_training(make_trainer, pairs):
    plain = make_trainer("plain", max_steps=4, health_steps=0)
    plain.train()
    watched = make_trainer(
        "watched",
        max_steps=4,
        health_steps=1,
        gradient_norm_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        eval_dataset=pairs.select(range(8)),
        benchmarks=["shapes:validation"],
    )
    watched.train()
    assert_same_weights(plain, watched)


KILLED = """
import os, sys
from datasets import load_from_disk
from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer
from sdsclip_hf.data import captioned_images as data_module
from sdsclip_hf.training import trainer as trainer_module
from sdsclip_hf.benchmarks import load_benchmark
from sdsclip_hf.benchmarks.sugarcrepe import SUBSETS

clip, teacher, data, out = sys.argv[1:]

class Killed(SDSCLIPTrainer):
    def _save_optimizer_and_scheduler(self, output_dir):
        if self.state.global_step == 4:
            assert os.path.exists(os.path.join(output_dir, "model.safetensors"))
            os._exit(9)
        super()._save_optimizer_and_scheduler(output_dir)

args = SDSCLIPConfig(
    output_dir=out, use_cpu=True, per_device_train_batch_size=4, per_device_eval_batch_size=4, learning_rate=1e-2,
    max_steps=6, save_strategy="steps", save_steps=2, logging_steps=1, disable_tqdm=True, trainable="full",
)
Killed(model=clip, teacher=teacher, args=args, train_dataset=load_from_disk(data)).train()
"""


def test_run_killed_while_it_saved_goes_on_from_the_last_whole_checkpoint(
    make_trainer, several_captions, clip_folder, teacher_folder, tmp_path
):
    several_captions.save_to_disk(tmp_path / "data")
    arguments = [clip_folder, teacher_folder, str(tmp_path / "data"), str(tmp_path / "killed")]
    killed = run_forked(KILLED, *arguments)
    assert killed.returncode == 9, killed.stderr
    assert (tmp_path / "killed/checkpoint-4/model.safetensors").exists()
    assert last_checkpoint(tmp_path / "killed") == str(tmp_path / "killed/checkpoint-2")

    options = {"data": several_captions, "max_steps": 6, "trainable": "full", "save_strategy": "steps", "save_steps": 2}
    resumed, whole = make_trainer("killed", **options), make_trainer("whole", **options)
    resumed.train(resume_from_checkpoint=True)
    whole.train()
    assert_same_weights(resumed, whole)
    assert last_checkpoint(tmp_path / "killed") == str(tmp_path / "killed/checkpoint-6")


@pytest.mark.parametrize("moment", ["_save_rng_state", "seal"])
def test_a_whole_checkpoint_is_left_whenever_saving_is_cut_short(make_trainer, tmp_path, monkeypatch, moment):
    trainer = make_trainer(max_steps=4, save_strategy="steps", save_steps=2, save_total_limit=1)

    def cut_short(original):
        def stop(*args):
            if trainer.state.global_step == 4:
                raise KeyboardInterrupt
            return original(*args)

        return stop

    if moment == "seal":
        from sdsclip_hf.training import checkpoint_trainer as module

        monkeypatch.setattr(module, "seal", cut_short(module.seal))
    else:
        monkeypatch.setattr(trainer, moment, cut_short(getattr(trainer, moment)))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert last_checkpoint(tmp_path / "run") == str(tmp_path / "run/checkpoint-2")


def test_a_checkpoint_that_is_being_written_anew_is_not_taken_for_whole(make_trainer, tmp_path, monkeypatch):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    make_trainer(**options).train()
    again = make_trainer(**options)

    def stop(output_dir):
        raise KeyboardInterrupt

    monkeypatch.setattr(again, "_save_rng_state", stop)
    with pytest.raises(KeyboardInterrupt):
        again.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))
    assert last_checkpoint(tmp_path / "run") == str(tmp_path / "run/checkpoint-2")


def test_old_checkpoints_are_removed_down_to_the_limit(make_trainer, tmp_path):
    make_trainer(max_steps=4, save_strategy="steps", save_steps=1, save_total_limit=2).train()
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


def test_last_checkpoint_compares_steps_as_numbers(tmp_path):
    for step in (9, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    mark = json.dumps(
        {"base_fingerprint": "0", "teacher_fingerprint": None, "settings": {}}
    )  # before they were numbered
    for name in (9, 10, "best"):
        (tmp_path / f"checkpoint-{name}" / RUN_FILE).write_text(mark)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert last_checkpoint(tmp_path / "nowhere") is None


def test_the_last_checkpoint_is_the_last_written_after_going_on_from_an_earlier_one(make_trainer, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    make_trainer(max_steps=4, **options | {"save_total_limit": None}).train()
    back = make_trainer(max_steps=2, **options)
    back.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-1"))
    assert last_checkpoint(tmp_path / "run") == str(tmp_path / "run/checkpoint-2")
    kept = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert kept == ["checkpoint-2", "checkpoint-4"]  # the two that were written last


# The loss


def independent_terms(trainer, batch, clip_folder, teacher_folder, mode="train") -> tuple[float, float]:
    """L_CLIP by transformers' own loss and L_SDS by diffusers' own parts, as the paper's formulas stand."""
    args = trainer.args
    clip = CLIPModel.from_pretrained(clip_folder).eval()
    pipeline = StableDiffusionPipeline.from_pretrained(teacher_folder)
    linear = trainer.student.mapper.linear
    with torch.no_grad():
        output = clip(
            pixel_values=batch["pixel_values"],
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            return_loss=True,
        )
        z0 = F.linear(math.sqrt(12) * output.image_embeds, linear.weight, linear.bias)
        if args.mapper_unit_rms:
            z0 = args.mapper_scale * z0 / z0.square().mean(1, keepdim=True).sqrt()
        z0 = z0.view(-1, 4, 4, 4)
        timesteps, eps = draw(trainer, z0)
        prompts = pipeline.text_encoder(batch["teacher_input_ids"]).last_hidden_state
        if args.shuffle_captions:
            prompts = torch.cat([prompts[-1:], prompts[:-1]])
        alpha = pipeline.scheduler.alphas_cumprod[timesteps].sqrt().view(-1, 1, 1, 1)
        sigma = (1 - pipeline.scheduler.alphas_cumprod[timesteps]).sqrt().view(-1, 1, 1, 1)
        z_t = alpha * z0 + sigma * eps if args.sds_reading == "noised" else z0
        predicted = pipeline.unet(z_t, timesteps, prompts).sample
        if pipeline.scheduler.config.prediction_type == "v_prediction":
            predicted = alpha * predicted + sigma * z_t
        weight = {"constant": 1.0, "sigma_squared": sigma.flatten() ** 2}[args.sds_weighting]
        sds = (weight * ((predicted - eps) ** 2).mean((1, 2, 3))).mean()
    return output.loss.item(), sds.item()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lambda_sds": 3.5, "velocity": True},
        {"lambda_clip": 0.25},
        {"lambda_clip": 0.0, "lambda_sds": 2.0},
        {"sds_reading": "as_printed", "mapper_unit_rms": False},
        {"sds_weighting": "sigma_squared", "timestep_range": [700, 900], "mapper_scale": 0.5},
        {"shuffle_captions": True, "sds_gradient": "stop_gradient"},
    ],
    ids=str,
)
def test_loss_is_the_weighted_sum_of_both_terms_computed_by_hand(
    request, make_trainer, clip_folder, teacher_folder, options
):
    options = dict(options)
    if options.pop("velocity", False):
        teacher_folder = request.getfixturevalue("velocity_teacher_folder")
    trainer = make_trainer(teacher=teacher_folder, **options)
    trainer.model.train()
    batch = first_batch(trainer)
    contrastive, sds = independent_terms(trainer, batch, clip_folder, teacher_folder)
    loss = trainer.compute_loss(trainer.model, batch)
    args = trainer.args
    assert loss.item() == pytest.approx(args.lambda_clip * contrastive + args.lambda_sds * sds, rel=1e-5)
    notes = trainer.take_notes("train")
    assert notes["contrastive"] == pytest.approx(contrastive, rel=1e-5)
    assert notes["sds"] == pytest.approx(sds, rel=1e-5)


def test_shuffled_captions_change_the_distillation_term_alone(make_trainer):
    true, shuffled = make_trainer(), make_trainer(shuffle_captions=True)
    for trainer in (true, shuffled):
        trainer.model.train()
        trainer.compute_loss(trainer.model, first_batch(trainer))
    one, other = true.take_notes("train"), shuffled.take_notes("train")
    assert one["contrastive"] == other["contrastive"]
    assert abs(one["sds"] - other["sds"]) > 1e-5


def test_gap_is_the_loss_under_shuffled_captions_less_that_under_true_ones(make_trainer):
    true, shuffled = make_trainer(), make_trainer(shuffle_captions=True)
    for trainer in (true, shuffled):
        trainer.model.train()
        trainer.compute_loss(trainer.model, first_batch(trainer))
    gap = true.take_notes("train")
    assert gap["sds_gap"] == pytest.approx(shuffled.take_notes("train")["sds"] - gap["sds"], abs=1e-6)
    assert gap["sds_gap"] != 0


def test_health_figures_are_those_of_the_latents(make_trainer):
    trainer = make_trainer(mapper_scale=0.7, mapper_unit_rms=False)
    trainer.model.train()
    batch = first_batch(trainer)
    trainer.compute_loss(trainer.model, batch)
    notes = trainer.take_notes("train")
    inputs = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    z0 = trainer.student(**inputs).latents.detach().double().numpy().reshape(4, -1)
    assert notes["latent_rms"] == pytest.approx(np.mean([np.sqrt(np.mean(row**2)) for row in z0]), rel=1e-5)
    assert notes["latent_spread"] == pytest.approx(np.sqrt(np.mean((z0 - z0.mean(0)) ** 2) / np.mean(z0**2)), rel=1e-5)


def test_draws_follow_the_seed_and_the_step_and_not_the_global_generator(make_trainer):
    def drawn(step, seed=42, call=0):
        trainer = make_trainer(f"{step}-{seed}", seed=seed)
        trainer.model.train()
        trainer.state.global_step = trainer._last_step = step
        trainer._calls = call
        torch.manual_seed(drawn.noise)
        drawn.noise += 1
        return draw(trainer, torch.zeros(64, 4, 4, 4))

    drawn.noise = 0
    base = drawn(3)
    assert all(torch.equal(one, other) for one, other in zip(base, drawn(3), strict=True))
    for other in (drawn(4), drawn(3, seed=43), drawn(3, call=1)):
        assert not torch.equal(base[0], other[0])
        assert abs(np.corrcoef(base[1].flatten(), other[1].flatten())[0, 1]) < 0.1


def test_timesteps_stay_in_the_range_with_both_ends(make_trainer):
    trainer = make_trainer(timestep_range=[7, 9])
    trainer.model.train()
    assert set(draw(trainer, torch.zeros(200, 4, 4, 4))[0].tolist()) == {7, 8, 9}
    whole = make_trainer()
    whole.model.train()
    timesteps = draw(whole, torch.zeros(20_000, 1, 1, 1))[0]
    assert (timesteps.min(), timesteps.max()) == (0, 999)


def test_each_term_and_health_figure_is_logged_and_the_terms_add_up(make_trainer):
    trainer = make_trainer(max_steps=3, lambda_sds=2.5, health_steps=2)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert row["loss"] == pytest.approx(row["contrastive"] + 2.5 * row["sds"], rel=1e-5)
        assert row["latent_rms"] == pytest.approx(1, rel=1e-4)
        assert 0 < row["latent_spread"] < 2
        assert row["captions_cut"] == 0
    assert ["sds_gap" in row for row in rows] == [True, False, True]


def test_logged_terms_are_means_over_the_steps_since_the_last_log(make_trainer):
    fine, coarse = make_trainer("fine", max_steps=4), make_trainer("coarse", max_steps=4, logging_steps=2)
    fine.train()
    coarse.train()
    each = [row for row in fine.state.log_history if "loss" in row]
    two = [row for row in coarse.state.log_history if "loss" in row]
    for name in ("contrastive", "sds"):
        values = np.array([row[name] for row in each]).reshape(2, 2).mean(1)
        np.testing.assert_allclose([row[name] for row in two], values, rtol=1e-6)


def test_evaluation_gives_each_term_apart_and_the_same_each_time(make_trainer, pairs):
    trainer = make_trainer(lambda_sds=2.5, eval_dataset=pairs.select(range(8)))
    metrics = trainer.evaluate()
    total = metrics["eval_contrastive"] + 2.5 * metrics["eval_sds"]
    assert metrics["eval_loss"] == pytest.approx(total, rel=1e-5)
    again = trainer.evaluate()
    assert [again[name] for name in ("eval_loss", "eval_sds")] == [metrics[name] for name in ("eval_loss", "eval_sds")]


def test_evaluation_equals_the_terms_computed_by_hand(make_trainer, pairs, clip_folder, teacher_folder):
    trainer = make_trainer(eval_dataset=pairs.select(range(4)))
    batch = next(iter(trainer.get_eval_dataloader()))
    trainer.model.eval()
    contrastive, sds = independent_terms(trainer, batch, clip_folder, teacher_folder)
    metrics = trainer.evaluate()
    assert metrics["eval_contrastive"] == pytest.approx(contrastive, rel=1e-5)
    assert metrics["eval_sds"] == pytest.approx(sds, rel=1e-5)


def test_several_evaluation_sets_are_logged_under_their_names(make_trainer, pairs):
    trainer = make_trainer(eval_dataset={"near": pairs.select(range(4)), "far": pairs.select(range(4, 8))})
    metrics = trainer.evaluate()
    assert metrics["eval_near_contrastive"] != metrics["eval_far_contrastive"]


def test_gradient_norms_and_cosine_equal_those_of_two_separate_backward_passes(make_trainer):
    def gradient(**options):
        trainer = make_trainer("g", **options)
        trainer.model.train()
        trainer.compute_loss(trainer.model, first_batch(trainer)).backward()
        trained = [weight for weight in trainer.student.clip.parameters() if weight.requires_grad]
        return torch.cat([weight.grad.flatten() for weight in trained]).double().numpy()

    contrastive = gradient(lambda_sds=0.0)
    sds = gradient(lambda_sds=50.0) - contrastive
    trainer = make_trainer(lambda_sds=50.0, gradient_norm_steps=1)
    trainer.model.train()
    trainer.compute_loss(trainer.model, first_batch(trainer))
    notes = trainer.take_notes("train")
    norms = np.linalg.norm(contrastive), np.linalg.norm(sds)
    assert notes["grad_norm_contrastive"] == pytest.approx(norms[0], rel=1e-4)
    assert notes["grad_norm_sds"] == pytest.approx(norms[1], rel=1e-4)
    assert notes["grad_cosine"] == pytest.approx(contrastive @ sds / norms[0] / norms[1], abs=1e-4)


def test_a_term_without_weight_has_no_part_in_the_gradient_norms(make_trainer):
    trainer = make_trainer(lambda_clip=0.0, lambda_cosine=1.0, gradient_norm_steps=1)
    trainer.model.train()
    trainer.compute_loss(trainer.model, first_batch(trainer))
    notes = trainer.take_notes("train")
    assert {name for name in notes if name.startswith("grad_")} == {"grad_norm_sds", "grad_norm_cosine", "grad_cosine"}
    assert notes["grad_cosine"] != 0
    trainer = make_trainer(lambda_clip=0.0, gradient_norm_steps=1)
    trainer.compute_loss(trainer.model, first_batch(trainer))
    assert "grad_cosine" not in trainer.take_notes("train")


def test_gradient_norms_are_logged_at_the_steps_asked_for_alone(make_trainer):
    trainer = make_trainer(max_steps=4, gradient_norm_steps=3)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert ["grad_cosine" in row for row in rows] == [True, False, False, True]
    assert all(-1 <= row["grad_cosine"] <= 1 for row in rows if "grad_cosine" in row)


def test_without_the_term_no_teacher_is_loaded_and_no_mapper_made(make_trainer):
    trainer = make_trainer(lambda_sds=0.0, teacher="/nowhere/at/all")
    assert trainer.teacher is None
    assert trainer.student.mapper is None
    assert "teacher_input_ids" not in first_batch(trainer)
    trainer.train()
    assert not any("sds" in row for row in trainer.state.log_history)


# What trains


def test_layernorm_run_changes_layernorms_and_mapper_and_nothing_else(make_trainer):
    trainer = make_trainer(max_steps=3)
    before, teacher_before = weights(trainer), {k: v.clone() for k, v in trainer.teacher.state_dict().items()}
    trainer.train()
    norms = {name for name in before if "layer_norm" in name or "layernorm" in name or "layrnorm" in name}
    assert norms
    assert changed(before, weights(trainer)) == norms | {"mapper.linear.weight", "mapper.linear.bias"}
    assert changed(teacher_before, trainer.teacher.state_dict()) == set()


def test_teacher_is_in_no_optimizer_group_and_in_no_checkpoint(make_trainer, tmp_path):
    trainer = make_trainer(save_strategy="steps", save_steps=2)
    trainer.train()
    groups = trainer.optimizer.optimizer.param_groups if hasattr(trainer.optimizer, "optimizer") else None
    optimised = {id(weight) for group in groups or trainer.optimizer.param_groups for weight in group["params"]}
    trained = {id(weight) for weight in trainer.student.parameters() if weight.requires_grad}
    assert optimised == trained
    assert not optimised & {id(weight) for weight in trainer.teacher.parameters()}
    saved = load_file(tmp_path / "run/checkpoint-2/model.safetensors")
    names = {name for name, weight in trainer.student.named_parameters() if weight.requires_grad}
    assert set(saved) == names | {"mapper.center", "mapper.axes"}
    for name, tensor in saved.items():
        assert torch.equal(tensor, trainer.student.state_dict()[name])


def test_mapper_has_a_learning_rate_of_its_own(make_trainer):
    trainer = make_trainer(learning_rate=1e-3, mapper_learning_rate=0.5, lr_scheduler_type="constant")
    optimizer = trainer.create_optimizer()
    of_mapper = {id(weight) for weight in trainer.student.mapper.parameters()}
    rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    assert set(rates) == {id(weight) for weight in trainer.student.parameters() if weight.requires_grad}
    assert {rates[weight] for weight in of_mapper} == {0.5}
    assert {rate for weight, rate in rates.items() if weight not in of_mapper} == {1e-3}


def test_mapper_s_learning_rate_follows_the_schedule(make_trainer):
    rates = []
    trainer = make_trainer(
        max_steps=4,
        learning_rate=1e-3,
        mapper_learning_rate=0.5,
        lr_scheduler_type="linear",
        callbacks=[At(lambda step: rates.append([group["lr"] for group in trainer.optimizer.param_groups]))],
    )
    trainer.train()
    for step, row in enumerate(rates):
        assert sorted(set(row)) == pytest.approx([1e-3 * (1 - step / 4), 0.5 * (1 - step / 4)])


def test_mapper_is_frozen_by_a_learning_rate_of_zero(make_trainer):
    trainer = make_trainer(mapper_learning_rate=0.0, weight_decay=0.1)
    before = weights(trainer)
    trainer.train()
    moved = changed(before, weights(trainer))
    assert moved and not any(name.startswith("mapper.") for name in moved)


def test_warm_up_moves_the_mapper_alone_and_lowers_the_distillation_term(make_trainer, pairs):
    logged = []

    class Keep(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            logged.append(logs)

    trainer = make_trainer(
        mapper_warmup_steps=41,
        mapper_warmup_learning_rate=3e-2,
        learning_rate=0.0,
        max_steps=1,
        eval_dataset=pairs,
        callbacks=[Keep()],
    )
    before, loss_before = weights(trainer), trainer.evaluate()["eval_sds"]
    trainer.train()
    assert changed(before, weights(trainer)) == {"mapper.linear.weight", "mapper.linear.bias"}
    assert trainer.evaluate()["eval_sds"] < loss_before - 0.02
    assert [row["warmup_step"] for row in logged if "warmup/sds" in row] == [8, 16, 24, 32, 40, 41]


def test_whitening_measures_the_training_images(make_trainer):
    trainer = make_trainer(mapper_whitening=True, learning_rate=0.0, max_steps=1)
    trainer.train()
    embeds = torch.cat(
        [trainer.student.encode_images(batch["pixel_values"]) for batch in trainer.get_train_dataloader()]
    )
    expected = LatentMapper(12, (4, 4, 4))
    # 2,048 draws from 24 images repeat each of them about equally often, so that only the count's correction differs.
    expected.whiten(embeds.detach().repeat(86, 1))
    torch.testing.assert_close(trainer.student.mapper.center, expected.center, rtol=1e-2, atol=1e-3)


def test_temperature_stays_at_or_below_ln_100_at_a_huge_learning_rate(make_trainer, tmp_path):
    clip = make_clip()
    clip.logit_scale.data.fill_(5.0)
    seen = []
    trainer = make_trainer(
        model=clip,
        processing_class=make_processor(),
        lambda_sds=0.0,
        train_vision=False,
        train_text=False,
        train_logit_scale=True,
        learning_rate=10.0,
        max_grad_norm=0.0,
        max_steps=6,
        callbacks=[At(lambda step: seen.append(trainer.student.base_clip.logit_scale.item()))],
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "export"))
    scales = [*seen[1:], CLIPModel.from_pretrained(tmp_path / "export").logit_scale.item()]
    assert len(scales) == 6
    assert max(scales) <= LN_100 + 1e-6
    assert len(set(scales)) > 1


def test_accumulated_gradient_is_the_mean_over_the_batches(make_trainer):
    options = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    trainer = make_trainer("run", max_steps=1, gradient_accumulation_steps=2, **options)
    by_hand = make_trainer("hand", **options)
    by_hand.model.train()
    losses = []
    torch.manual_seed(trainer.args.seed)
    for _, batch in zip(range(2), by_hand.get_train_dataloader(), strict=False):
        losses.append(by_hand.compute_loss(by_hand.model, batch))
    (sum(losses) / 2).backward()
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx((sum(losses) / 2).item(), rel=1e-5)
    for (name, weight), other in zip(by_hand.student.named_parameters(), trainer.student.parameters(), strict=True):
        expected = weight if weight.grad is None else weight - 0.1 * weight.grad
        torch.testing.assert_close(other, expected, rtol=1e-5, atol=1e-6, msg=name)


def test_activation_checkpointing_gives_the_same_weights(make_trainer):
    plain, recomputed = make_trainer("plain"), make_trainer("recomputed", **RECOMPUTE)
    plain.train()
    recomputed.train()
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(weights(recomputed)[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    assert changed(weights(make_trainer("fresh")), weights(recomputed))


@pytest.mark.parametrize("trainable", ["layernorm", "lora"])
def test_activation_checkpointing_really_recomputes(make_trainer, trainable):
    calls = []
    trainer = make_trainer(trainable=trainable, max_steps=1, **RECOMPUTE)
    layer = trainer.student.base_clip.vision_model.encoder.layers[0].layer_norm1
    layer.register_forward_hook(lambda *_: calls.append(1))
    trainer.train()
    assert len(calls) == 2


def test_bfloat16_run_keeps_float32_weights_and_logs_finite_losses(make_trainer, pairs):
    trainer = make_trainer(bf16=True, max_steps=3, eval_dataset=pairs.select(range(4)), gradient_norm_steps=1)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 3
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert {weight.dtype for weight in trainer.student.parameters()} == {torch.float32}
    assert math.isfinite(trainer.evaluate()["eval_sds"])


def test_teacher_of_half_precision_trains(make_trainer):
    trainer = make_trainer(teacher_dtype="bfloat16")
    trainer.train()
    assert trainer.teacher.dtype == torch.bfloat16
    assert all(math.isfinite(row["sds"]) for row in trainer.state.log_history if "sds" in row)


def test_peft_configuration_is_taken_whole(make_trainer):
    config = LoraConfig(r=3, target_modules=["fc1"])
    trainer = make_trainer(trainable="lora", peft_config=config)
    trained = {name for name, weight in trainer.student.clip.named_parameters() if weight.requires_grad}
    assert trained and all(".fc1.lora_" in name for name in trained)


def test_example_model_may_be_an_object_with_its_processor(make_trainer):
    clip = make_clip()
    trainer = make_trainer(model=clip, processing_class=make_processor())
    trainer.train()
    with pytest.raises(ValueError, match="processing_class is missing"):
        make_trainer(model=make_clip())


@pytest.mark.parametrize("trainable", ["lora", "layernorm"])
def test_a_model_given_as_an_object_stays_as_it_is_and_serves_again(make_trainer, clip_folder, tmp_path, trainable):
    clip = CLIPModel.from_pretrained(clip_folder)
    before = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    exports = []
    for number in range(2):
        trainer = make_trainer(f"run{number}", model=clip, processing_class=make_processor(), trainable=trainable)
        trainer.train()
        trainer.save_model(str(tmp_path / f"export{number}"))
        exports.append(CLIPModel.from_pretrained(tmp_path / f"export{number}").state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in clip.state_dict().items())
    assert clip.state_dict().keys() == before.keys() and all(weight.requires_grad for weight in clip.parameters())
    assert all(torch.equal(tensor, exports[1][name]) for name, tensor in exports[0].items())
    assert not all(torch.equal(tensor, before[name]) for name, tensor in exports[0].items())


def test_a_model_with_adapters_inside_and_other_dual_encoders_are_refused(make_trainer):
    adapted = make_clip()
    wrapped = get_peft_model(adapted, LoraConfig(target_modules=["fc1"]))
    for model in (adapted, wrapped):
        with pytest.raises(ValueError, match=r"adapters inside.*merge_and_unload"):
            make_trainer(model=model, processing_class=make_processor())
    make_trainer(model=wrapped.merge_and_unload(), processing_class=make_processor())
    clip = make_clip()
    clip.config.model_type = "metaclip_2"
    with pytest.raises(ValueError, match="'metaclip_2'; only a CLIPModel of type 'clip'"):
        make_trainer(model=clip, processing_class=make_processor())


@pytest.mark.parametrize(
    "name", ["compute_metrics", "compute_loss_func", "preprocess_logits_for_metrics", "model_init"]
)
def test_arguments_of_trainer_that_would_be_ignored_are_refused(clip_folder, tmp_path, pairs, name):
    args = SDSCLIPConfig(output_dir=str(tmp_path), lambda_sds=0.0)
    with pytest.raises(ValueError, match=f"{name} would have no effect"):
        SDSCLIPTrainer(clip_folder, args, train_dataset=pairs, **{name: lambda *_: None})


def test_prompt_learning_is_refused_by_name(make_trainer):
    with pytest.raises(ValueError, match=r"cannot carry a PromptTuningConfig.*LoraConfig"):
        make_trainer(
            trainable="lora", peft_config=PromptTuningConfig(num_virtual_tokens=4, task_type="FEATURE_EXTRACTION")
        )


# Selecting, logging, exporting


def test_best_checkpoint_by_a_benchmark_score_is_loaded_and_the_run_stops_early(
    make_trainer, pairs, tmp_path, monkeypatch
):
    scores = iter([0.2, 0.5, 0.3, 0.1, 0.9])

    def scripted(scorer, names):
        row = {"subset": "relation", "score": "group", "value": next(scores), "headline": True}
        return {names[0]: [row]}

    monkeypatch.setattr("sdsclip_hf.training.validation.evaluate_benchmarks", scripted)
    trainer = make_trainer(
        max_steps=5,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        eval_dataset=pairs.select(range(4)),
        benchmarks=["shapes:validation"],
        load_best_model_at_end=True,
        metric_for_best_model="eval_shapes:validation/relation/group",
        greater_is_better=True,
        callbacks=[EarlyStoppingCallback(2)],
    )
    trainer.train()
    assert trainer.state.global_step == 4
    assert trainer.state.best_model_checkpoint == str(tmp_path / "run/checkpoint-2")
    best = load_file(tmp_path / "run/checkpoint-2/model.safetensors")
    last = load_file(tmp_path / "run/checkpoint-4/model.safetensors")
    student = trainer.student.state_dict()
    assert all(torch.equal(student[name], tensor) for name, tensor in best.items())
    assert not all(torch.equal(student[name], tensor) for name, tensor in last.items())


@pytest.fixture
def sugarcrepe(tmp_path, pairs):
    """Three items of each subset in the authors' format."""
    for subset in SUBSETS:
        items = {}
        for number, row in enumerate(pairs.select(range(3))):
            row["image"].save(tmp_path / f"{number}.jpg")
            items[number] = {"filename": f"{number}.jpg", "caption": row["caption"], "negative_caption": "a red mat"}
        (tmp_path / f"{subset}.json").write_text(json.dumps(items))
    return str(tmp_path)


def test_benchmark_scores_are_logged_with_the_evaluation(make_trainer, pairs, sugarcrepe):
    benchmarks = ["shapes:validation", f"sugarcrepe={sugarcrepe}", "retrieval:validation=shapes"]
    trainer = make_trainer(eval_dataset=pairs.select(range(4)), benchmarks=benchmarks, model=model_path("student"))
    metrics = trainer.evaluate()
    clip = CLIPModel.from_pretrained(model_path("student"))
    scorer = ClipScorer(clip, CLIPProcessor.from_pretrained(model_path("student")))
    parts = ("text", "image", "group")
    tags = ("all", "attribute", "attribute_in_relation", "relation")
    keys = {f"shapes:validation/{tag}/{part}" for tag in tags for part in parts}
    keys |= {"sugarcrepe/all/macro_accuracy", "sugarcrepe/all/micro_accuracy"}
    keys |= {f"sugarcrepe/{subset}/accuracy" for subset in SUBSETS}
    keys |= {f"retrieval:validation/{way}/recall@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    assert {name.removeprefix("eval_") for name in metrics if "/" in name} == keys
    items = load_benchmark("shapes:validation").items
    right = [(s[0, 0] > s[0, 1] and s[1, 1] > s[1, 0]) for s in scorer.score(items)]
    assert metrics["eval_shapes:validation/all/image"] == np.mean(right) > 0.1
    items = load_benchmark(benchmarks[1]).items
    right = [s[0, 0] > s[1, 0] for s in scorer.score(items)]
    assert metrics["eval_sugarcrepe/all/micro_accuracy"] == np.mean(right)
    (logged,) = [row for row in trainer.state.log_history if "eval_loss" in row]
    assert {name: logged[f"eval_{name}"] for name in keys} == {name: metrics[f"eval_{name}"] for name in keys}


def test_terms_reach_tensorboard(make_trainer, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(report_to="tensorboard", max_steps=2)
    trainer.train()
    files = [EventAccumulator(str(path)).Reload() for path in (tmp_path / "run").rglob("events.out.tfevents*")]
    (logged,) = [file for file in files if "train/loss" in file.Tags()["scalars"]]
    for name in ("loss", "contrastive", "sds", "latent_rms", "latent_spread"):
        values = [event.value for event in logged.Scalars(f"train/{name}")]
        expected = [row[name] for row in trainer.state.log_history if name in row]
        np.testing.assert_allclose(values, expected, rtol=1e-5)


@pytest.mark.parametrize("trainable", ["layernorm", "lora", "full"])
def test_weights_go_back_to_the_pretrained_ones_as_far_as_asked(make_trainer, tmp_path, clip_folder, trainable):
    options = {"trainable": trainable, "learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole, part = make_trainer("whole", **options), make_trainer("part", wise_ft_alpha=0.25, **options)
    whole.train()
    part.train()
    start, end = load_clip(clip_folder)[0].state_dict(), whole.student.merged_clip().state_dict()
    assert any(not torch.equal(start[name], end[name]) for name in start)
    for name, weight in part.student.merged_clip().state_dict().items():
        torch.testing.assert_close(weight, 0.75 * start[name] + 0.25 * end[name], rtol=1e-4, atol=1e-7)
    resumed = make_trainer("part", wise_ft_alpha=0.25, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-2"))
    assert_same_weights(resumed, part)


@pytest.mark.parametrize(
    "adapter",
    [
        LoraConfig(target_modules=["q_proj"], r=4, use_dora=True),
        LoraConfig(target_modules=["q_proj"], r=4, init_lora_weights="orthogonal"),
        LoHaConfig(target_modules=["q_proj"], r=4),
    ],
    ids=["DoRA", "B not zero", "LoHa"],
)
def test_adapters_whose_weights_cannot_go_back_in_a_line_are_refused(make_trainer, adapter):
    with pytest.raises(ValueError, match=r"matrices B start at zero.* leave --wise_ft_alpha out"):
        make_trainer(wise_ft_alpha=0.5, trainable="lora", peft_config=adapter)


@pytest.mark.parametrize("trainable", ["layernorm", "lora", "full"])
def test_saved_model_is_a_plain_clip_with_the_trained_outputs(make_trainer, tmp_path, trainable):
    trainer = make_trainer(trainable=trainable)
    trainer.train()
    trainer.save_model(str(tmp_path / "export"))
    clip, info = CLIPModel.from_pretrained(tmp_path / "export", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    batch = first_batch(trainer)
    inputs = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    trainer.model.eval()
    with torch.no_grad():
        ours, theirs = trainer.student(**inputs), clip.eval()(**inputs)
    torch.testing.assert_close(theirs.image_embeds, ours.image_embeds, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(theirs.text_embeds, ours.text_embeds, rtol=1e-5, atol=1e-6)
    mapper = LatentMapper.load(tmp_path / "export/latent_mapper.safetensors")
    torch.testing.assert_close(mapper(theirs.image_embeds), ours.latents, rtol=1e-4, atol=1e-5)


# What goes wrong


def test_nan_stops_the_run_with_step_and_term_and_the_last_checkpoint_is_good(make_trainer, tmp_path, monkeypatch):
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    trainer = make_trainer(**options)
    predict = trainer.teacher.predict_noise

    def broken(*args):
        return predict(*args) * (math.nan if trainer.state.global_step == 3 else 1.0)

    monkeypatch.setattr(trainer.teacher, "predict_noise", broken)
    with pytest.raises(FloatingPointError, match=r"the sds term is nan at step 4\b.*--resume_from_checkpoint"):
        trainer.train()
    assert last_checkpoint(tmp_path / "run") == str(tmp_path / "run/checkpoint-2")
    resumed, whole = make_trainer(**options), make_trainer("whole", **options)
    resumed.train(resume_from_checkpoint=True)
    whole.train()
    assert_same_weights(resumed, whole)


def test_exploding_weights_are_never_saved(make_trainer, tmp_path):
    trainer = make_trainer(
        trainable="full", learning_rate=1e38, max_steps=6, save_strategy="steps", save_steps=1, max_grad_norm=0.0
    )
    with pytest.raises(FloatingPointError, match=r"NaN or infinite weights after step|term is (nan|inf) at step"):
        trainer.train()
    for path in (tmp_path / "run").glob(f"checkpoint-*/{RUN_FILE}"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path.parent / "model.safetensors").values())


def test_nan_during_the_warm_up_is_named(make_trainer, monkeypatch):
    trainer = make_trainer(mapper_warmup_steps=3)
    monkeypatch.setattr(trainer.teacher, "predict_noise", lambda noisy, *_: noisy * math.nan)
    with pytest.raises(FloatingPointError, match="warm-up"):
        trainer.train()


def test_dataset_smaller_than_a_batch_raises_with_both_numbers(make_trainer, pairs):
    trainer = make_trainer(data=pairs.select(range(3)))
    with pytest.raises(ValueError, match=r"3 pairs, fewer than one batch of 4 .*--per_device_train_batch_size"):
        trainer.train()
    single = make_trainer(data=pairs.select(range(1)))
    with pytest.raises(ValueError, match=r"at least two pairs.*the dataset has 1"):
        single.train()


def test_batches_of_a_stream_are_full_although_a_pass_ends_within_one(make_trainer, pairs):
    sizes = []
    trainer = make_trainer(data=pairs.select(range(9)).to_iterable_dataset(), max_steps=4)
    forward = trainer.model.forward
    trainer.model.forward = lambda **inputs: sizes.append(len(inputs["input_ids"])) or forward(**inputs)
    trainer.train()
    assert sizes == [4, 4, 4, 4]


@pytest.mark.parametrize("warmup", [0, 2])
def test_stream_without_a_full_batch_raises(make_trainer, pairs, warmup):
    trainer = make_trainer(data=pairs.select(range(3)).to_iterable_dataset(), mapper_warmup_steps=warmup)
    with pytest.raises(ValueError, match=r"no full batch.*--per_device_train_batch_size"):
        trainer.train()


def test_evaluation_set_smaller_than_a_batch_is_measured_whole(make_trainer, pairs):
    trainer = make_trainer(eval_dataset=pairs.select(range(3)))
    assert math.isfinite(trainer.evaluate()["eval_contrastive"])
    with pytest.raises(ValueError, match="at least two pairs"):
        make_trainer(eval_dataset=pairs.select(range(1))).evaluate()


def test_missing_teacher_raises_with_the_options(make_trainer):
    with pytest.raises(ValueError, match=r"no teacher.*--teacher_name_or_path or --lambda_sds 0"):
        make_trainer(teacher=None)


def test_timesteps_outside_the_teacher_s_schedule_raise_with_its_limit(make_trainer, teacher_folder):
    with pytest.raises(ValueError, match=r"timestep_range 900 to 1000 .*999"):
        make_trainer(timestep_range=[900, 1000])
    with pytest.raises(ValueError, match=r"timestep_range 900 to 1000 .*999"):
        make_trainer(teacher=DiffusionTeacher.from_pretrained(teacher_folder), timestep_range=[900, 1000])


def test_latent_size_that_does_not_fit_raises(make_trainer):
    with pytest.raises(ValueError, match="latent_size 3 x 3 does not fit"):
        make_trainer(latent_size=3)


def test_latent_size_reaches_the_mapper(make_trainer):
    trainer = make_trainer(latent_size=2)
    trainer.train()
    assert trainer.student.mapper.latent_shape == (4, 2, 2)


def test_lora_targets_that_match_nothing_raise_with_the_choices(make_trainer):
    with pytest.raises(ValueError, match=r"match no layer.*q_proj.*--lora_target_modules"):
        make_trainer(trainable="lora", lora_target_modules=["query"])


@pytest.fixture
def stopped(make_trainer, tmp_path):
    make_trainer("stopped", save_strategy="steps", save_steps=2).train()
    return str(tmp_path / "stopped/checkpoint-2")


def test_resuming_with_another_base_model_raises_with_both_names(make_trainer, stopped, clip_folder, tmp_path):
    torch.manual_seed(99)
    make_clip().save_pretrained(tmp_path / "other")
    make_processor().save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError) as error:
        make_trainer(model=str(tmp_path / "other"), max_steps=4).train(resume_from_checkpoint=stopped)
    assert clip_folder in str(error.value) and str(tmp_path / "other") in str(error.value)


@pytest.mark.parametrize(
    "option, value", [("lambda_sds", 2.0), ("trainable", "full"), ("seed", 7), ("timestep_range", [0, 10])]
)
def test_resuming_with_other_settings_raises_and_names_them(make_trainer, stopped, option, value):
    with pytest.raises(ValueError, match=f"other settings: --{option} was .* and is now"):
        make_trainer(max_steps=4, **{option: value}).train(resume_from_checkpoint=stopped)


def test_a_checkpoint_from_before_an_option_existed_had_its_default(make_trainer, stopped):
    seal = Path(stopped) / RUN_FILE
    identity = json.loads(seal.read_text())
    del identity["settings"]["lambda_clip"], identity["number"], identity["seal"], identity["files"], identity["data"]
    seal.write_text(json.dumps(identity))
    with pytest.raises(ValueError, match=r"--lambda_clip was 1.0 and is now 0.5"):
        make_trainer(max_steps=4, lambda_clip=0.5).train(resume_from_checkpoint=stopped)
    make_trainer(max_steps=4).train(resume_from_checkpoint=stopped)


def test_resuming_with_another_teacher_raises(make_trainer, stopped, velocity_teacher_folder):
    with pytest.raises(ValueError, match="teacher"):
        make_trainer(teacher=velocity_teacher_folder, max_steps=4).train(resume_from_checkpoint=stopped)


def test_resuming_with_what_is_only_watched_changed_is_allowed(make_trainer, stopped):
    trainer = make_trainer(max_steps=4, health_steps=1, gradient_norm_steps=1, logging_steps=2)
    trainer.train(resume_from_checkpoint=stopped)
    assert trainer.state.global_step == 4


def test_resuming_from_a_folder_that_is_no_whole_checkpoint_raises(make_trainer, stopped):
    (Path(stopped) / RUN_FILE).unlink()
    with pytest.raises(ValueError, match=f"not a whole checkpoint.*{RUN_FILE}"):
        make_trainer(max_steps=4).train(resume_from_checkpoint=stopped)


def test_seal_tells_base_model_teacher_and_settings(stopped, clip_folder, teacher_folder):
    identity = json.loads((Path(stopped) / RUN_FILE).read_text())
    assert (identity["base_model"], identity["teacher"]) == (clip_folder, teacher_folder)
    assert identity["settings"]["lambda_sds"] == 1.0
    assert identity["settings"]["per_device_train_batch_size"] == 4


def test_missing_column_raises_with_those_there_are(make_trainer, pairs):
    with pytest.raises(ValueError, match="'text' not found; the dataset has 'image', 'caption'"):
        make_trainer(caption_column="text")


def test_parameter_counts_are_logged(make_trainer):
    trainer = make_trainer()
    trainer.train()
    (row,) = [row for row in trainer.state.log_history if "parameters/clip_trained" in row]
    clip = list(trainer.student.clip.parameters())
    assert row["parameters/clip_trained"] == sum(weight.numel() for weight in clip if weight.requires_grad)
    assert row["parameters/clip_all"] == sum(weight.numel() for weight in clip)
    assert row["parameters/mapper_trained"] == 12 * 64 + 64


@pytest.mark.parametrize("step", [2, 5])
def test_stream_resumed_after_its_first_pass_ends_bit_identical(make_trainer, several_captions, tmp_path, step):
    options = {"max_steps": 7, "save_strategy": "steps", "save_steps": 1}
    whole = make_trainer("whole", data=several_captions.select(range(10)).to_iterable_dataset(), **options)
    whole.train()
    resumed = make_trainer("resumed", data=several_captions.select(range(10)).to_iterable_dataset(), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"whole/checkpoint-{step}"))
    assert_same_weights(resumed, whole)


def test_resumed_stream_passes_over_what_it_has_seen_without_decoding_it(make_trainer, pairs, tmp_path, monkeypatch):
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 4, "gradient_accumulation_steps": 2}
    whole = make_trainer("whole", data=pairs.to_iterable_dataset(), **options)
    whole.train()
    resumed, count = make_trainer("resumed", data=pairs.to_iterable_dataset(), **options), []
    read = data_module.read_image
    monkeypatch.setattr(data_module, "read_image", lambda cell: count.append(1) or read(cell))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-4"))
    assert_same_weights(resumed, whole)
    assert 16 <= len(count) <= 20  # two steps of two batches of four, and one batch that is read ahead


def test_loader_workers_without_a_shard_are_refused(make_trainer, pairs):
    trainer = make_trainer(data=pairs.to_iterable_dataset(num_shards=2), dataloader_num_workers=3)
    with pytest.raises(ValueError, match=r"num_workers is 3, but the stream has 2 shards .* to at most 2, or spread"):
        trainer.train()


def test_accelerate_is_not_to_deal_out_a_stream(make_trainer, pairs):
    trainer = make_trainer(data=pairs.to_iterable_dataset(), accelerator_config={"dispatch_batches": True})
    with pytest.raises(ValueError, match="accelerator_config cannot have dispatch_batches"):
        trainer.train()


def test_stream_is_shuffled_unless_told_otherwise(make_trainer, pairs):
    def order(**options):
        trainer = make_trainer(data=pairs.to_iterable_dataset(), **options)
        return next(iter(trainer.get_train_dataloader()))["input_ids"].tolist()

    assert order(shuffle_buffer_size=0) != order(shuffle_buffer_size=24)
    assert order(shuffle_buffer_size=24) == order(shuffle_buffer_size=24)


def test_fingerprint_does_not_depend_on_the_number_of_threads():
    model = torch.nn.Linear(3000, 4000)
    threads = torch.get_num_threads()
    seen = set()
    for count in (1, 2):
        torch.set_num_threads(count)
        seen.add(fingerprint(model))
    torch.set_num_threads(threads)
    assert len(seen) == 1
    with torch.no_grad():
        model.weight[0, 0] += 1
    assert fingerprint(model) not in seen
