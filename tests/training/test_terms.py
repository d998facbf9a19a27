"""The cheap forms of L_SDS: on some steps, or for some of the images, with its expectation unchanged."""

import json
import math
from functools import partial

import pytest
import torch
from launching import launch

from sdsclip_hf import SDSCLIPConfig
from sdsclip_hf.teachers.conditions import as_bytes, as_captions, rows_of
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher
from sdsclip_hf.training.terms import DistillationTerm


@pytest.fixture(scope="module")
def teacher(teacher_folder):
    return DiffusionTeacher.from_pretrained(teacher_folder)


@pytest.fixture
def term(teacher, tmp_path):
    return DistillationTerm(teacher, SDSCLIPConfig(output_dir=str(tmp_path), use_cpu=True, seed=3))


@pytest.fixture
def make_trainer(make_trainer, teacher, pairs):
    options = {"learning_rate": 1e-3, "max_steps": 6, "trainable": "full", "eval_dataset": pairs.select(range(8))}
    return partial(make_trainer, teacher=teacher, **options)


@pytest.fixture
def case(teacher, pairs):
    latents = torch.randn(10, 4, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    return latents, as_bytes(pairs["caption"][:10])


@pytest.mark.parametrize("fraction", [0.1, 0.25, 1 / 3, 0.5, 0.77])
def test_each_row_is_chosen_as_often_as_the_fraction_says(term, case, fraction):
    counts = torch.zeros(10)
    for step in range(4000):
        rows = term.chosen_rows(case[0], (step, 0), None, fraction)
        assert len(rows) in (int(10 * fraction), int(10 * fraction) + 1)
        counts[rows] += 1
    torch.testing.assert_close(counts / 4000, torch.full((10,), fraction), atol=0.03, rtol=0)


def test_rows_of_parts_are_those_of_the_whole(term, case):
    """By whatever mini-batches a batch is taken."""
    latents = case[0]
    for step in range(20):
        whole = term.chosen_rows(latents, (step, 0), None, 0.3).tolist()
        parts = [
            (start, term.chosen_rows(latents[start : start + 4], (step, 0), (start, 10), 0.3)) for start in (0, 4, 8)
        ]
        assert [start + row for start, rows in parts for row in rows.tolist()] == whole


@pytest.mark.parametrize("fraction", [0.15, 0.5])
def test_expectation_of_a_fraction_is_the_whole(term, case, teacher, fraction):
    """Each row's own error and gradient, as often as it is chosen and by its weight: the mean over the steps is exact."""
    latents, prompts = case
    for step in range(3):
        timesteps, noise = term.draw(latents, (step, 0))
        errors = teacher.denoising_error(latents, teacher.encode_captions(as_captions(prompts)), timesteps, noise)
        rows = term.chosen_rows(latents, (step, 0), None, fraction)
        found, _ = term(latents, prompts, (step, 0), fraction=fraction)
        expected = errors[rows].sum() / (fraction * 10)
        torch.testing.assert_close(found, expected)
        gradients = [torch.autograd.grad(value, latents)[0] for value in (found, expected)]
        torch.testing.assert_close(*gradients)
        others = torch.ones(10, dtype=torch.bool)
        others[rows] = False
        assert gradients[0][others].eq(0).all() and gradients[0][rows].ne(0).any()


def test_of_some_images_the_other_caption_is_the_one_before_in_the_whole_batch(term, case, teacher):
    latents, prompts = case
    rows = term.chosen_rows(latents, (0, 0), None, 0.5)
    timesteps, noise = (drawn[rows] for drawn in term.draw(latents, (0, 0)))
    captions = as_captions(prompts)
    errors = [
        teacher.denoising_error(
            latents[rows], teacher.encode_captions([captions[row + by] for row in rows]), timesteps, noise
        )
        for by in (0, -1)
    ]
    loss, figures = term(latents, prompts, (0, 0), with_gap=True, fraction=0.5)
    torch.testing.assert_close(loss, errors[0].sum() / 5)
    torch.testing.assert_close(figures["sds_gap"], (errors[1] - errors[0]).mean())
    assert figures["sds_gap"].abs() > 1e-5


def test_an_image_alone_has_no_figures_of_what_tells_it_from_others(term, case):
    latents, prompts = case
    loss, figures = term(latents[:1], rows_of(prompts, slice(0, 1)), (0, 0), with_gap=True)
    assert loss.isfinite() and figures["latent_rms"].isfinite()
    assert figures["sds_gap"].isnan() and figures["latent_spread"].isnan()


def test_no_row_gives_no_error_and_a_gradient_of_nothing(term, case):
    latents, prompts = case
    step = next(step for step in range(99) if not len(term.chosen_rows(latents, (step, 0), None, 0.05)))
    found, figures = term(latents, prompts, (step, 0), with_gap=True, fraction=0.05)
    assert found.item() == 0 and torch.autograd.grad(found, latents)[0].eq(0).all() and figures["sds_gap"].isnan()


def test_denoiser_is_called_for_the_chosen_images_alone(make_trainer, monkeypatch):
    trainer, calls = make_trainer(distill_fraction=0.5, distill_every=3, health_steps=0), []
    predict = trainer.teacher.predict
    monkeypatch.setattr(
        trainer.teacher,
        "predict",
        lambda *given: calls.append((trainer.state.global_step, len(given[0]))) or predict(*given),
    )
    trainer.train()
    assert calls == [(0, 2), (3, 2)]


def test_logged_loss_is_made_of_its_logged_terms_and_counts_the_steps_left_out(make_trainer):
    often, seldom = make_trainer(learning_rate=0.0), make_trainer(distill_every=3, learning_rate=0.0)
    rows = []
    for trainer in (often, seldom):
        trainer.train()
        rows.append([row for row in trainer.state.log_history if "loss" in row])
    for number, (row, other) in enumerate(zip(*rows, strict=True)):
        assert other["sds"] == pytest.approx(0 if number % 3 else 3 * row["sds"], rel=1e-4)
        assert other["loss"] == pytest.approx(other["contrastive"] + other["sds"], abs=2e-3)


def test_evaluation_measures_the_whole_term(make_trainer):
    whole, cheap = make_trainer(), make_trainer(distill_every=4, distill_fraction=0.3)
    cheap.state.global_step = 2
    assert cheap.evaluate()["eval_sds"] == pytest.approx(whole.evaluate()["eval_sds"], rel=1e-6)


def test_weights_without_a_term_in_this_step_have_a_gradient_of_zero(make_trainer):
    """DDP waits for the gradient of every weight that its output depends on."""
    trainer = make_trainer(distill_every=2)
    trainer.state.global_step = 1
    trainer.model.train()
    trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader()))).backward()
    assert all(
        parameter.grad is not None and parameter.grad.eq(0).all() for parameter in trainer.student.mapper.parameters()
    )


@pytest.mark.parametrize(
    ("option", "value"), [("distill_every", 0), ("distill_fraction", 0.0), ("distill_fraction", 1.5)]
)
def test_values_out_of_range_are_refused(tmp_path, option, value):
    with pytest.raises(ValueError, match=f"{option}.*{value}"):
        SDSCLIPConfig(output_dir=str(tmp_path), **{option: value})


LOGS = """
import json, sys
from datasets import load_from_disk
from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer
clip, teacher, data, out, batch = sys.argv[1:]
args = SDSCLIPConfig(out, per_device_train_batch_size=int(batch), distill_fraction=0.25, health_steps=1, logging_steps=1,
    max_steps=3, learning_rate=1e-3, save_strategy="no", disable_tqdm=True, report_to="none", seed=1)
trainer = SDSCLIPTrainer(clip, args, teacher, train_dataset=load_from_disk(data))
trainer.train()
print(json.dumps(trainer.state.log_history))
"""


@pytest.mark.slow
def test_a_process_without_a_chosen_image_logs_what_the_others_do(tmp_path, clip_folder, teacher_folder, pairs):
    pairs.select(range(4)).save_to_disk(tmp_path / "data")  # one batch, whose rows are dealt out differently
    logs = []
    for processes in (1, 2):
        words = clip_folder, teacher_folder, tmp_path / "data", tmp_path / "run", 4 // processes
        printed = launch(LOGS, *words, processes=processes)
        histories = [json.loads(text.splitlines()[-1]) for text in printed]
        of_rank = [[{k: row[k] for k in ("sds", "contrastive")} for row in h if "loss" in row] for h in histories]
        assert all(each == of_rank[0] for each in of_rank)
        logs.append([row for row in histories[0] if "loss" in row])
    for one, two in zip(*logs, strict=True):
        assert one.keys() == two.keys() and "sds_gap" in one
        assert two["contrastive"] == pytest.approx(one["contrastive"], rel=1e-4)
        assert math.isfinite(two["sds_gap"])
