"""What a trainer is made of: models, adapters, teacher and columns, and the errors where they do not fit."""

from dataclasses import replace

import pytest
import torch
from conftest import make_clip, make_processor
from peft import LoHaConfig, LoraConfig, PromptTuningConfig, get_peft_model

from sdsclip_hf import SDSCLIPConfig
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher
from sdsclip_hf.training.parts import load_teacher, place_teacher


def test_peft_configuration_is_taken_whole(make_trainer):
    config = LoraConfig(r=3, target_modules=["fc1"])
    trainer = make_trainer(trainable="lora", peft_config=config)
    trained = {name for name, weight in trainer.student.clip.named_parameters() if weight.requires_grad}
    assert trained and all(".fc1.lora_" in name for name in trained)


def test_a_model_with_adapters_inside_or_of_another_s_configuration_is_refused(make_trainer):
    adapted = make_clip()
    wrapped = get_peft_model(adapted, LoraConfig(target_modules=["fc1"]))
    for model in (adapted, wrapped):
        with pytest.raises(ValueError, match=r"adapters inside.*merge_and_unload"):
            make_trainer(model=model, processing_class=make_processor())
    make_trainer(model=wrapped.merge_and_unload(), processing_class=make_processor())
    clip = make_clip()
    clip.config.model_type = "metaclip_2"
    with pytest.raises(ValueError, match=r"is a CLIPModel, but its configuration is that of a 'metaclip_2'.*AutoModel"):
        make_trainer(model=clip, processing_class=make_processor())


def test_prompt_learning_is_refused_by_name(make_trainer):
    with pytest.raises(ValueError, match=r"cannot carry a PromptTuningConfig.*LoraConfig"):
        make_trainer(
            trainable="lora", peft_config=PromptTuningConfig(num_virtual_tokens=4, task_type="FEATURE_EXTRACTION")
        )


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


def test_missing_teacher_raises_with_the_options(make_trainer):
    with pytest.raises(ValueError, match=r"no teacher.*--teacher_name_or_path or --lambda_sds 0"):
        make_trainer(teacher=None)


def test_timesteps_outside_the_teacher_s_schedule_raise_with_its_limit(make_trainer, teacher_folder):
    with pytest.raises(ValueError, match=r"timestep_range 900 to 1000 .*999"):
        make_trainer(timestep_range=[900, 1000])
    with pytest.raises(ValueError, match=r"timestep_range 900 to 1000 .*999"):
        make_trainer(teacher=DiffusionTeacher.from_pretrained(teacher_folder), timestep_range=[900, 1000])


def test_latent_size_reaches_the_mapper(make_trainer):
    trainer = make_trainer(latent_size=2)
    trainer.train()
    assert trainer.student.mapper.latent_shape == (4, 2, 2)


def test_lora_targets_that_match_nothing_raise_with_the_choices(make_trainer):
    with pytest.raises(ValueError, match=r"match no layer.*q_proj.*--lora_target_modules"):
        make_trainer(trainable="lora", lora_target_modules=["query"])


def test_missing_column_raises_with_those_there_are(make_trainer, pairs):
    with pytest.raises(ValueError, match="'text' not found; the dataset has 'image', 'caption'"):
        make_trainer(caption_column="text")


def test_a_teacher_in_another_dtype_than_the_options_tell_is_refused(teacher_folder, tmp_path):
    teacher = DiffusionTeacher.from_pretrained(teacher_folder, dtype="bfloat16")
    with pytest.raises(ValueError, match="teacher_dtype float32 differs from the given teacher's bfloat16; set"):
        load_teacher(teacher, SDSCLIPConfig(output_dir=str(tmp_path), use_cpu=True, teacher_dtype="float32"))
    assert load_teacher(teacher, SDSCLIPConfig(output_dir=str(tmp_path), teacher_dtype="bfloat16")) is teacher


def test_a_teacher_in_memory_keeps_its_dtype_where_none_is_asked_for(teacher_folder, tmp_path):
    teacher, config = (
        DiffusionTeacher.from_pretrained(teacher_folder, dtype="float16"),
        SDSCLIPConfig(output_dir=str(tmp_path), use_cpu=True),
    )
    assert load_teacher(teacher, config) is teacher and teacher.dtype == torch.float16
    assert config.teacher_dtype == "float16"  # is what is recorded


class Backward(torch.autograd.Function):
    """Passes values on, and gradients times a factor."""

    @staticmethod
    def forward(context, values, factor):
        context.factor = factor
        return values.clone()

    @staticmethod
    def backward(context, gradient):
        return context.factor * gradient, None


@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_a_compiler_that_gets_the_gradient_wrong_is_found_out(teacher_folder, monkeypatch, tmp_path, factor):
    teacher = DiffusionTeacher.from_pretrained(teacher_folder)
    forward = teacher.denoiser.forward

    def compiled(noisy, *rest, **options):
        return forward(Backward.apply(noisy, factor), *rest, **options)

    monkeypatch.setattr(
        teacher.denoiser, "compile", lambda **_: setattr(teacher.denoiser, "_compiled_call_impl", compiled)
    )
    config = SDSCLIPConfig(output_dir=str(tmp_path), use_cpu=True, teacher_compile=True, per_device_train_batch_size=2)
    if factor == 1:
        place_teacher(teacher, config)
    else:
        with pytest.raises(
            ValueError, match=r"another gradient for this denoiser, 1\.0% away .*--sds_gradient stop_grad"
        ):
            place_teacher(teacher, config)
    place_teacher(teacher, replace(config, sds_gradient="stop_gradient"))  # which asks for no gradient
