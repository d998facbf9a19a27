"""SDSCLIPTrainer: its loss, and what it trains."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_clip, make_processor
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from trainers import At, changed, draw, first_batch, weights
from transformers import CLIPModel

from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer
from sdsclip_hf.teachers.conditions import as_captions
from sdsclip_hf.training.terms import prompts_of

LN_100 = math.log(100)
# renamed in transformers 5.23; Python 3.10 gets an older one
RECOMPUTE = {
    "activation_checkpointing" if hasattr(SDSCLIPConfig, "activation_checkpointing") else "gradient_checkpointing": True
}


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
        prompts, _ = pipeline.encode_prompt(as_captions(prompts_of(batch)), "cpu", 1, do_classifier_free_guidance=False)
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


def test_evaluation_equals_the_terms_computed_by_hand(make_trainer, pairs, clip_folder, teacher_folder):
    trainer = make_trainer(eval_dataset=pairs.select(range(4)))
    batch = next(iter(trainer.get_eval_dataloader()))
    trainer.model.eval()
    contrastive, sds = independent_terms(trainer, batch, clip_folder, teacher_folder)
    metrics = trainer.evaluate()
    assert metrics["eval_contrastive"] == pytest.approx(contrastive, rel=1e-5)
    assert metrics["eval_sds"] == pytest.approx(sds, rel=1e-5)


def test_without_the_term_no_teacher_is_loaded_and_no_mapper_made(make_trainer):
    trainer = make_trainer(lambda_sds=0.0, teacher="/nowhere/at/all")
    assert trainer.teacher is None
    assert trainer.student.mapper is None
    assert not prompts_of(first_batch(trainer))
    trainer.train()
    assert not any("sds" in row for row in trainer.state.log_history)


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


@pytest.mark.parametrize(
    "name", ["compute_metrics", "compute_loss_func", "preprocess_logits_for_metrics", "model_init"]
)
def test_arguments_of_trainer_that_would_be_ignored_are_refused(clip_folder, tmp_path, pairs, name):
    args = SDSCLIPConfig(output_dir=str(tmp_path), lambda_sds=0.0)
    with pytest.raises(ValueError, match=f"{name} would have no effect"):
        SDSCLIPTrainer(clip_folder, args, train_dataset=pairs, **{name: lambda *_: None})
