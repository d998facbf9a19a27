"""What a trainer writes: whole checkpoints that a run goes on from to the same end, and a plain CLIP."""

import math

import pytest
import torch
from forking import run_forked
from safetensors.torch import load_file
from trainers import assert_same_weights, changed, first_batch, weights
from transformers import CLIPModel

from sdsclip_hf.common.checkpoints import RUN_FILE, last_checkpoint
from sdsclip_hf.data import captioned_images
from sdsclip_hf.students.latent_mapper import LatentMapper
from sdsclip_hf.students.sdsclip_model import load_clip
from sdsclip_hf.training import sealed_checkpoints
from sdsclip_hf.training.mapper_warmup import MapperWarmup

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
QUICK = ("layernorm, mapper prepared", "lora with dropout", "full, temperature, accumulation")


@pytest.mark.parametrize(
    "options", [pytest.param(RUNS[name], id=name, marks=[] if name in QUICK else pytest.mark.slow) for name in RUNS]
)
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


@pytest.mark.parametrize("step", [2, 5])  # in the first pass and in the second
def test_resumed_stream_ends_bit_identical_to_the_uninterrupted_one(make_trainer, several_captions, tmp_path, step):
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
    read = captioned_images.read_image
    monkeypatch.setattr(captioned_images, "read_image", lambda cell: count.append(1) or read(cell))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-4"))
    assert_same_weights(resumed, whole)
    assert 16 <= len(count) <= 20  # two steps of two batches of four, and one batch that is read ahead


def test_resume_true_takes_the_last_checkpoint_and_does_not_warm_up_again(make_trainer, tmp_path, monkeypatch):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 3, "mapper_warmup_steps": 2}
    whole = make_trainer("run", **options)
    whole.train()
    for path in (tmp_path / "run/checkpoint-4").iterdir():
        path.unlink()
    resumed = make_trainer("run", **options)
    monkeypatch.setattr(MapperWarmup, "run", lambda _: pytest.fail("the mapper was warmed up twice"))
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(resumed, whole)


def test_resume_true_without_a_checkpoint_starts_at_the_beginning(make_trainer):
    fresh, resumed = make_trainer("fresh"), make_trainer("resumed")
    fresh.train()
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(fresh, resumed)


KILLED = """
import os, sys
from datasets import load_from_disk
from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer

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

    place = sealed_checkpoints if moment == "seal" else trainer
    monkeypatch.setattr(place, moment, cut_short(getattr(place, moment)))
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


def test_the_last_checkpoint_is_the_last_written_after_going_on_from_an_earlier_one(make_trainer, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    make_trainer(max_steps=4, **options | {"save_total_limit": None}).train()
    back = make_trainer(max_steps=2, **options)
    back.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-1"))
    assert last_checkpoint(tmp_path / "run") == str(tmp_path / "run/checkpoint-2")
    kept = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert kept == ["checkpoint-2", "checkpoint-4"]  # the two that were written last


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


def test_nan_stops_the_run_with_step_and_term_and_the_last_checkpoint_is_good(make_trainer, tmp_path, monkeypatch):
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    trainer = make_trainer(**options)
    predict = trainer.teacher.predict

    def broken(*args):
        return predict(*args) * (math.nan if trainer.state.global_step == 3 else 1.0)

    monkeypatch.setattr(trainer.teacher, "predict", broken)
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
