"""On which options a resumed run must agree with its checkpoint."""

from dataclasses import fields

from transformers import TrainingArguments

from sdsclip_hf import SDSCLIPConfig
from sdsclip_hf.config import LORA_LAYERS
from sdsclip_hf.training.resumed_options import KEPT, earlier_defaults, kept_options


def test_options_of_a_run_leave_out_what_is_only_watched_and_hold_what_defines_it(tmp_path):
    options = {"seed": 3, "per_device_train_batch_size": 6, "lambda_sds": 0.5}
    kept = kept_options(SDSCLIPConfig(output_dir=str(tmp_path), use_cpu=True, **options))
    watched = {"hub_license", "hub_force", "benchmarks", "health_steps", "gradient_norm_steps", "max_bad_images"}
    watched |= {"teacher_gradient_checkpointing", "teacher_compile", "teacher_channels_last", "prompt_cache_dir"}
    watched |= {"shard_teacher", "wise_ft_alpha", "log_failures", "teacher_pack_weights", "keep_images_in_memory"}
    watched |= {"preprocess_on_device"}
    watched |= {"teacher_offload", "precision"}
    watched |= {"ranking_scores", "ranking_scores_revision"}  # by their fingerprint
    own = {entry.name for entry in fields(SDSCLIPConfig)} - {entry.name for entry in fields(TrainingArguments)}
    assert watched <= own
    assert set(kept) == own - watched | set(KEPT)
    assert {name: kept[name] for name in options} == options


def test_layers_that_lora_finds_are_not_taken_for_those_that_are_named(tmp_path):
    found, named = (
        SDSCLIPConfig(output_dir=str(tmp_path), use_cpu=True, lora_target_modules=names)
        for names in (None, list(LORA_LAYERS))
    )
    assert kept_options(found) == kept_options(named)  # in a CLIP they are the same
    of_others = [kept_options(one, "altclip")["lora_target_modules"] for one in (found, named)]
    assert of_others == [None, list(LORA_LAYERS)]


def test_checkpoints_that_know_no_masks_had_none():
    assert earlier_defaults()["mask_duplicates"] is False and SDSCLIPConfig.mask_duplicates is True
    assert earlier_defaults()["teacher_dtype"] == "float32"
