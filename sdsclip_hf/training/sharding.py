"""Weights split over the processes (FSDP2): the teacher's by option, the student's where accelerate is told to."""

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers.utils.versions import require_version

from sdsclip_hf.config import SDSCLIPConfig
from sdsclip_hf.students.kinds import temperatures
from sdsclip_hf.students.layers import layer_classes
from sdsclip_hf.students.sdsclip_model import SDSCLIPModel
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher
from sdsclip_hf.teachers.families.family import blocks_of


def shard_teacher(teacher: DiffusionTeacher, device: torch.device, world_size: int) -> None:
    """Leave each process its part of the denoiser's weights; a block is whole only while it computes.

    The text encoder, which is small beside it, stays whole. All processes must call the denoiser equally often.

    Args:
        teacher: whole, perhaps still on the CPU.
        device: of this process.
        world_size: how many processes there are.

    Raises:
        ValueError: there is but one process.
    """
    if world_size == 1:
        raise ValueError(
            "shard_teacher splits the teacher's weights over the processes, but there is one; launch more, or leave "
            "--shard_teacher out."
        )
    mesh = init_device_mesh(device.type, (world_size,))
    denoiser = teacher.denoiser
    for block in blocks_of(denoiser):
        fully_shard(block, mesh=mesh)
    fully_shard(denoiser, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 has split a model's weights over the processes."""
    return isinstance(model, FSDPModule)


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """The whole weights of a split model, on each process. To be called on all of them."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))


def prepare_student(student: SDSCLIPModel, accelerator: Accelerator, args: SDSCLIPConfig) -> None:
    """Make a student that FSDP2 or DeepSpeed is about to take over fit for it.

    Neither can split a scalar parameter, so that the temperature becomes a buffer, and a bias beside it. FSDP is told the
    student's layers where it was told another model's, as recipes/accelerate tells it CLIP's.

    Args:
        student: not yet wrapped.
        accelerator: with the plugin of the one or the other.
        args: of the run.

    Raises:
        ValueError: what the run asks for is not possible then.
    """
    fsdp, deepspeed = (getattr(accelerator.state, f"{name}_plugin", None) for name in ("fsdp", "deepspeed"))
    if fsdp:
        require_version("transformers>=5.23", "FSDP needs it, since older ones ask one process alone for the weights.")
    if fsdp and (fsdp.fsdp_version != 2 or "FULL_STATE_DICT" not in str(fsdp.state_dict_type)):
        raise ValueError(
            f"FSDP is configured with version {fsdp.fsdp_version} and {fsdp.state_dict_type}; the export needs whole "
            "weights: set fsdp_version: 2 and fsdp_state_dict_type: FULL_STATE_DICT, as recipes/accelerate/fsdp2.yaml does."
        )
    named = getattr(fsdp, "transformer_cls_names_to_wrap", None)
    if named and not set(named) & {type(part).__name__ for part in student.modules()}:
        fsdp.transformer_cls_names_to_wrap = layer_classes(student.base_clip)
    precision = accelerator.mixed_precision
    if deepspeed and (deepspeed.zero_stage == 3 or precision != "no"):
        raise ValueError(
            f"DeepSpeed is configured with ZeRO-{deepspeed.zero_stage} and mixed_precision {precision}; the export needs "
            "whole weights in float32: set zero_stage: 2 and mixed_precision: no, or take FSDP2, which splits weights and "
            "keeps them in float32 beside bf16. recipes/accelerate/ has both."
        )
    clip = student.base_clip
    impossible = {
        "train_logit_scale": student.trains_logit_scale,
        "gradient_norm_steps": args.gradient_norm_steps,
        "wise_ft_alpha": args.wise_ft_alpha < 1,
        "torch_compile": args.torch_compile or accelerator.state.dynamo_plugin.backend != DynamoBackend.NO,
        "contrastive_batch_size": deepspeed and args.contrastive_batch_size,  # it steps after each backward pass
    }
    for option, given in impossible.items():
        if given:
            raise ValueError(f"{option} is not possible under {'FSDP' if fsdp else 'DeepSpeed'}; leave --{option} out.")
    student.to(args.device)  # Trainer would leave it on the CPU until it splits it
    for name, value in temperatures(clip).items():
        delattr(clip, name)
        clip.register_buffer(name, value.detach())
