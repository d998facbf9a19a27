"""The floating-point operations of a trainer's steps, counted by torch."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from sdsclip_hf import SDSCLIPTrainer


def attention(query, key, value, *args, **kwargs) -> int:
    batch, heads, queries, width = query
    return 4 * batch * heads * queries * key[2] * width


def attention_backward(gradient, *shapes, **kwargs) -> int:
    return 5 * attention(*shapes[:3]) // 2  # one product of its own for each of the two, and the first once more


OF_CPUS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
}


def operations(trainer: SDSCLIPTrainer) -> float:
    """Of a step."""
    with FlopCounterMode(display=False, custom_mapping=OF_CPUS) as counter:
        trainer.train()
    return counter.get_total_flops() / trainer.state.global_step
