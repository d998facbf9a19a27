"""Weights split over processes: what is computed, saved and exported is what whole weights give."""

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DynamoBackend
from conftest import make_clip
from dual_encoders import KINDS, make_dual_encoder
from launching import accelerate_launch, launch
from transformers import AutoModel, CLIPModel

from sdsclip_hf.students.latent_mapper import LatentMapper
from sdsclip_hf.students.sdsclip_model import SDSCLIPModel
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher
from sdsclip_hf.training.sharding import prepare_student, shard_teacher

TEACHER = """
import json, sys
import datasets, torch
from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer
clip, teacher, data, out = sys.argv[1:]
data, found = datasets.load_from_disk(data), {}

def make(**options):
    args = SDSCLIPConfig(out, per_device_train_batch_size=4, max_steps=3, learning_rate=1e-2, save_strategy="no",
        disable_tqdm=True, health_steps=2, gradient_accumulation_steps=2, **options)
    return SDSCLIPTrainer(clip, args, teacher, train_dataset=data)

for gradient in ("full", "stop_gradient"):
    of_whole = None
    for split in (False, True):
        trainer = make(shard_teacher=split, sds_gradient=gradient)
        trainer.model.train()
        rows = [trainer.train_dataset[row] for row in range(4)]
        trainer.compute_loss(trainer.model, trainer.data_collator(rows)).backward()
        loss = trainer.take_notes("train")["sds"]
        gradients = torch.cat([p.grad.flatten() for p in trainer.student.parameters() if p.grad is not None])
        weights = [getattr(p, "_local_tensor", p) for p in trainer.teacher.denoiser.parameters()]
        held = sum(weight.untyped_storage().nbytes() for weight in weights)
        trainer.model.zero_grad()
        trainer.train()
        trained = torch.cat([p.detach().flatten() for p in trainer.student.parameters() if p.requires_grad])
        result = loss, gradients, trained, held, trainer.teacher_fingerprint
        of_whole = of_whole or result
    found[gradient] = {
        "loss": abs(result[0] - of_whole[0]) / of_whole[0],
        "gradients": float((result[1] - of_whole[1]).norm() / of_whole[1].norm()),
        "trained": float((result[2] - of_whole[2]).norm() / of_whole[2].norm()),
        "held": result[3] / of_whole[3],
        "same teacher": result[4] == of_whole[4],
        "moved": float(gradients.norm()),
    }
print(json.dumps(found))
"""


def test_a_split_teacher_gives_the_loss_and_gradient_of_a_whole_one(tmp_path, clip_folder, teacher_folder, pairs):
    pairs.save_to_disk(tmp_path / "data")
    printed = launch(TEACHER, clip_folder, teacher_folder, tmp_path / "data", tmp_path / "run")
    for text in printed:
        for found in json.loads(text.splitlines()[-1]).values():
            assert found["loss"] < 1e-5 and found["gradients"] < 1e-5 and found["trained"] < 1e-5
            assert found["held"] < 0.6
            assert found["same teacher"] and found["moved"] > 0


def test_a_teacher_is_split_over_several_processes_alone(teacher_folder):
    with pytest.raises(ValueError, match=r"there is one; launch more, or leave --shard_teacher out"):
        shard_teacher(DiffusionTeacher.from_pretrained(teacher_folder), torch.device("cpu"), 1)


def prepare(trainer: SimpleNamespace) -> None:
    prepare_student(trainer.student, trainer.accelerator, trainer.args)


def trainer_under(plugin: dict, precision: str = "no", trains: bool = False, **args) -> SimpleNamespace:
    """As much of a trainer as [`prepare_student`] looks at."""
    given = {"dynamo": {"backend": DynamoBackend.NO}} | plugin
    plugins = {f"{name}_plugin": SimpleNamespace(**settings) for name, settings in given.items()}
    given = {"gradient_norm_steps": 0, "contrastive_batch_size": None, "wise_ft_alpha": 1.0, "device": "cpu"}
    given |= {"torch_compile": False} | args
    return SimpleNamespace(
        accelerator=SimpleNamespace(state=SimpleNamespace(**plugins), mixed_precision=precision),
        args=SimpleNamespace(**given),
        student=SDSCLIPModel(make_clip(), train_logit_scale=trains),
    )


FULL = {"fsdp": {"fsdp_version": 2, "state_dict_type": "FULL_STATE_DICT"}}
ZERO_2 = {"deepspeed": {"zero_stage": 2}}


@pytest.mark.parametrize(
    ("plugin", "options", "told"),
    [
        ({"fsdp": {"fsdp_version": 1, "state_dict_type": "FULL_STATE_DICT"}}, {}, "version 1 .*set fsdp_version: 2"),
        ({"fsdp": {"fsdp_version": 2, "state_dict_type": "SHARDED_STATE_DICT"}}, {}, "fsdp_state_dict_type: FULL_ST"),
        ({"deepspeed": {"zero_stage": 3}}, {}, "ZeRO-3 .*zero_stage: 2 .*or take FSDP2"),
        (ZERO_2, {"precision": "bf16"}, "mixed_precision bf16; the export needs whole weights in float32"),
        (FULL, {"trains": True}, "train_logit_scale is not possible under FSDP; leave --train_logit_scale out"),
        (ZERO_2, {"trains": True}, "train_logit_scale is not possible under DeepSpeed"),
        (FULL, {"gradient_norm_steps": 5}, "gradient_norm_steps is not possible under FSDP"),
        (FULL, {"torch_compile": True}, "torch_compile is not possible under FSDP"),
        (FULL | {"dynamo": {"backend": DynamoBackend.EAGER}}, {}, "torch_compile is not possible under FSDP"),
        (FULL, {"wise_ft_alpha": 0.5}, "wise_ft_alpha is not possible under FSDP"),
        (ZERO_2, {"contrastive_batch_size": 64}, "contrastive_batch_size is not possible under DeepSpeed"),
    ],
)
def test_what_is_not_possible_with_a_split_student_is_refused_with_the_remedy(plugin, options, told):
    with pytest.raises(ValueError, match=told):
        prepare(trainer_under(plugin, **options))


def test_a_prepared_student_has_no_scalar_parameter_and_the_same_weights():
    trainer = trainer_under(FULL, precision="bf16", contrastive_batch_size=64)
    before = {name: tensor.clone() for name, tensor in trainer.student.state_dict().items()}
    prepare(trainer)
    assert all(parameter.ndim for parameter in trainer.student.parameters())
    random = torch.get_rng_state()
    after = trainer.student.rebuilt(trainer.student.state_dict())
    assert torch.equal(torch.get_rng_state(), random)
    assert "clip.logit_scale" in dict(after.named_parameters())
    trained = [{name for name, p in s.named_parameters() if p.requires_grad} for s in (trainer.student, after)]
    assert trained[0] == trained[1] and trained[0]
    assert before.keys() == after.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.state_dict().items())


STUDENT = """
import os, sys
import datasets, torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer
from sdsclip_hf.training.sharding import is_sharded
clip, teacher, data, out, kind, options = sys.argv[1:]
data, barrier = datasets.load_from_disk(data), torch.distributed.barrier
torch.distributed.barrier = lambda *args, device_ids=None, **options: barrier(*args, **options)  # gloo knows no devices

def make(folder, **more):
    args = SDSCLIPConfig(f"{out}/{folder}", per_device_train_batch_size=4, max_steps=6, learning_rate=1e-2, logging_steps=1,
        save_strategy="steps", save_steps=3, disable_tqdm=True, ddp_backend="gloo", **eval(options), **more)
    if kind == "fsdp2":  # accelerate splits over accelerators alone: here it is made to believe that CPUs are such
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return SDSCLIPTrainer(clip, args, teacher, train_dataset=data, eval_dataset=data.select(range(8)))

trainer = make("whole", eval_strategy="steps", eval_steps=2, benchmarks=["shapes:validation"])
trainer.train()
assert is_sharded(trainer.model) == (kind == "fsdp2") and trainer.is_deepspeed_enabled == (kind == "deepspeed_zero2")
trainer.save_model(f"{out}/whole/export")
resumed = make("again")
resumed.train(resume_from_checkpoint=f"{out}/whole/checkpoint-3")
resumed.save_model(f"{out}/again/export")
"""

STUDENTS = {
    "layernorm": {"trainable": "layernorm"},
    "lora": {"trainable": "lora", "lora_r": 2},
    "full, cached, split teacher": {
        "trainable": "full",
        "contrastive_batch_size": 16,
        "shard_teacher": True,
        "adam_epsilon": 1e-3,  # else it makes steps of rounding errors where a gradient is zero: keys' biases
    },
    "siglip": {"trainable": "full", "adam_epsilon": 1e-3},
    "siglip2": {"trainable": "layernorm"},
}
CASES = [("fsdp2", name) for name in STUDENTS] + [("deepspeed_zero2", name) for name in ("layernorm", "lora")]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_split_student_ends_resumes_and_is_exported_like_a_whole_one(
    tmp_path, clip_folder, teacher_folder, pairs, kind, name
):
    if kind == "deepspeed_zero2":
        pytest.importorskip("deepspeed")
    pairs.save_to_disk(tmp_path / "data")
    if name in KINDS:
        clip_folder = tmp_path / "base"
        for part in make_dual_encoder(name):
            part.save_pretrained(clip_folder)
    words, options = (clip_folder, teacher_folder, tmp_path / "data"), repr(STUDENTS[name])
    launch(STUDENT, *words, tmp_path / "ddp", "ddp", options)
    (tmp_path / "script.py").write_text(STUDENT)
    words, in_float32 = (*words, tmp_path / kind, kind, options), ("--mixed_precision", "no")
    on_cpu = (
        {} if kind == "fsdp2" else {"ACCELERATE_USE_CPU": "false"}
    )  # accelerate takes DeepSpeed on none that is told
    accelerate_launch(kind, tmp_path / "script.py", *words, options=in_float32, **on_cpu)
    start = AutoModel.from_pretrained(clip_folder).state_dict()
    expected = AutoModel.from_pretrained(tmp_path / "ddp/whole/export").state_dict()
    assert any((expected[name] - start[name]).abs().max() > 1e-4 for name in start)
    for folder in ("ddp/again", f"{kind}/whole", f"{kind}/again"):
        clip, info = AutoModel.from_pretrained(tmp_path / folder / "export", output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), folder
        for name, tensor in clip.state_dict().items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5, msg=f"{folder} {name}")
        mapper, other = (
            LatentMapper.load(tmp_path / place / "export/latent_mapper.safetensors") for place in (folder, "ddp/whole")
        )
        torch.testing.assert_close(mapper.linear.weight, other.linear.weight, rtol=1e-4, atol=1e-5)
    logs = [json.loads((tmp_path / of / "whole/checkpoint-6/trainer_state.json").read_text()) for of in ("ddp", kind)]
    logs = [[row for row in log["log_history"] if "eval_contrastive" in row] for log in logs]
    assert len(logs[0]) == 3
    for one, other in zip(*logs, strict=True):
        assert one["eval_contrastive"] == pytest.approx(other["eval_contrastive"], rel=1e-4)
        assert one["eval_shapes:validation/all/text"] == other["eval_shapes:validation/all/text"]


@pytest.mark.slow
def test_the_recipe_s_bf16_leaves_the_weights_in_float32(tmp_path, clip_folder, teacher_folder, pairs):
    pairs.save_to_disk(tmp_path / "data")
    (tmp_path / "script.py").write_text(STUDENT)
    accelerate_launch(
        "fsdp2", tmp_path / "script.py", clip_folder, teacher_folder, tmp_path / "data", tmp_path, "fsdp2", "{}"
    )
    whole, again = (CLIPModel.from_pretrained(tmp_path / folder / "export") for folder in ("whole", "again"))
    assert whole.dtype == torch.float32
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in whole.state_dict().items())
    moved = whole.visual_projection.weight, whole.vision_model.post_layernorm.weight
    assert not any(torch.equal(weight, weight.bfloat16().float()) for weight in moved)
