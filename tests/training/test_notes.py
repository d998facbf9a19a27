"""What is logged: each term for itself, the health of the latents, gradients of the terms, and counts."""

import numpy as np
import pytest
import torch
from trainers import first_batch


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


def test_parameter_counts_are_logged(make_trainer):
    trainer = make_trainer()
    trainer.train()
    (row,) = [row for row in trainer.state.log_history if "parameters/clip_trained" in row]
    clip = list(trainer.student.clip.parameters())
    assert row["parameters/clip_trained"] == sum(weight.numel() for weight in clip if weight.requires_grad)
    assert row["parameters/clip_all"] == sum(weight.numel() for weight in clip)
    assert row["parameters/mapper_trained"] == 12 * 64 + 64
