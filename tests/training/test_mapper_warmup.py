"""The latent mapper before and while CLIP trains: warm-up, whitening, and a learning rate of its own."""

import math

import pytest
import torch
from trainers import At, changed, weights
from transformers import TrainerCallback

from sdsclip_hf.students.latent_mapper import LatentMapper


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


def test_nan_during_the_warm_up_is_named(make_trainer, monkeypatch):
    trainer = make_trainer(mapper_warmup_steps=3)
    monkeypatch.setattr(trainer.teacher, "predict", lambda noisy, *_: noisy * math.nan)
    with pytest.raises(FloatingPointError, match="warm-up"):
        trainer.train()
