"""A step looks at no number of the device's: a GPU would have to be waited for, and its queue would run empty."""

import pytest
import torch
from dual_encoders import STUDENTS, make_dual_encoder
from pretend_gpu import META, Waits
from trainers import first_batch

from sdsclip_hf.common.devices import Arriving
from sdsclip_hf.students.kinds import caption_reader, needs_mask, text_features
from sdsclip_hf.students.sdsclip_model import load_clip

RANKED = {"lambda_sds": 0.0, "lambda_rank": 1.0}
FORMS = {
    "contrastive": {"lambda_sds": 0.0, "contrastive_chunk_size": 2},
    "GradCache": RANKED | {"per_device_train_batch_size": 2, "contrastive_batch_size": 4, "ranking_confidence": True},
    "L_SDS": {"distill_fraction": 0.5, "lambda_cosine": 0.1, "prompt_cache_dir": "prompts", "teacher_dtype": "float16"},
    "L_rank, symmetric": RANKED | {"ranking_symmetric": True},
    "by labels": RANKED | {"ranking_targets": "labels", "hard_negatives": True},
}


@pytest.fixture
def waits_of(make_trainer, on_pretend_gpu, scores_folder, tmp_path):
    """What a GPU would be waited for in two steps of a trainer."""

    def find(**options) -> list[str]:
        if "prompt_cache_dir" in options:
            options["prompt_cache_dir"] = str(tmp_path / "prompts")
        if options.get("lambda_rank"):
            options["ranking_scores"] = str(scores_folder)
        trainer = make_trainer(optim="sgd", logging_steps=100, **options)
        trainer.create_optimizer_and_scheduler(10)
        trainer.current_gradient_accumulation_steps = 1
        if trainer.args.contrastive_batch_size:
            trainer._grad_cache._replay_is_checked = True  # once a run
        batch = first_batch(on_pretend_gpu(trainer))
        with Waits() as waits:
            for _ in range(2):
                trainer.training_step(trainer.model, batch)
                torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
                trainer.optimizer.step()
                trainer.model.zero_grad()
                trainer._arriving.clear()  # the numbers that the next step looks at, which are then there
        assert all(weight.device == META for weight in trainer.student.parameters())
        return waits.found

    return find


@pytest.mark.parametrize("form", FORMS)
def test_a_step_waits_for_nothing(waits_of, form):
    assert not waits_of(**FORMS[form])


def test_without_stored_prompts_a_step_waits_once_for_the_captions(waits_of):
    assert waits_of(sds_gradient="stop_gradient", health_steps=0) == 2 * ["a copy to the device that blocks: (4, 16)"]


@pytest.mark.parametrize("kind", [kind for kind in STUDENTS if kind != "clip"])
def test_nor_does_a_student_of_another_kind(waits_of, tmp_path, kind):
    for part in make_dual_encoder(kind):
        part.save_pretrained(tmp_path / "model")
    assert not waits_of(model=str(tmp_path / "model"), lambda_sds=0.0, teacher=None)


@pytest.mark.parametrize("kind", [kind for kind in STUDENTS if kind not in ("clip", "metaclip2")])
def test_a_mask_that_hides_nothing_is_left_out(kind):
    model, processor = make_dual_encoder(kind)
    tokens = caption_reader(model.eval(), processor.tokenizer)(["a cat", "a red dog"])
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    assert needs_mask(model, mask, META) == (not kind.startswith("siglip"))
    assert not needs_mask(model, torch.ones_like(mask), META)
    with torch.no_grad():
        torch.testing.assert_close(text_features(model, ids), text_features(model, ids, torch.ones_like(mask)))


def test_a_causal_tower_embeds_captions_alike_without_their_mask(clip_folder):
    clip, processor = load_clip(clip_folder)
    tokens = processor.tokenizer(["a cat", "a red dog on a blue mat"], padding=True, return_tensors="pt")
    ids, mask = tokens.input_ids, tokens.attention_mask
    assert not mask.all() and not needs_mask(clip, mask, META)
    assert needs_mask(clip, mask, torch.device("cpu")) and needs_mask(clip, mask.flip(1), META)
    with torch.no_grad():
        torch.testing.assert_close(text_features(clip, ids), text_features(clip, ids, mask))


def test_numbers_that_arrive_late_stop_a_run_before_it_saves(make_trainer, on_pretend_gpu, monkeypatch):
    trainer = make_trainer(teacher=None, lambda_sds=0.0)
    read = iter([[1.0], [float("nan")]])
    monkeypatch.setattr(Arriving, "read", lambda _: next(read))
    terms = {"contrastive": torch.zeros((), device=META)}
    for trainer.state.global_step in (5, 6):
        trainer.check_finite(terms)
    told = r"the contrastive term is nan at step 7\. Start anew"
    with pytest.raises(FloatingPointError, match=told):
        trainer._save_checkpoint(trainer.model, None)
    assert not trainer._arriving


def test_a_term_that_is_nan_in_an_evaluation_is_told_at_its_end(make_trainer, pairs, monkeypatch):
    trainer = make_trainer(teacher=None, lambda_sds=0.0, eval_dataset=pairs.select(range(8)))
    late = lambda terms: trainer._arriving.append((1, tuple(terms), Arriving(torch.tensor([float("nan")]))))  # noqa: E731
    monkeypatch.setattr(trainer, "check_finite", late)  # as on a GPU, where nothing is looked at before the next step
    with pytest.raises(FloatingPointError, match="the contrastive term is nan"):
        trainer.evaluate()
