"""What a denoiser's weights take on each device, in the form in which they are kept there."""

from torch import nn

from sdsclip_hf.teachers.families.family import blocks_of

# Bits of a linear layer's weight; four are kept in groups of 64 with a factor in float32 beside each.
BITS = {"bitsandbytes-4bit": 4.5, "bitsandbytes-8bit": 8, "torchao-int8": 8, "quanto-int8": 8}


def kept_bytes(module: nn.Module, quantization: str | None = None) -> float:
    """The bytes of a module's weights and buffers, of which a quantisation rounds those of linear layers.

    Args:
        module: of which shapes and dtypes are known.
        quantization: one of [`config.TEACHER_QUANTIZATIONS`]; default: none.
    """
    total = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    if quantization is None:
        return total
    rounded = [part.weight for part in module.modules() if isinstance(part, nn.Linear)]
    return total - sum(weight.nbytes - weight.numel() * BITS[quantization] / 8 for weight in rounded)


def denoiser_bytes(
    denoiser: nn.Module,
    quantization: str | None = None,
    offload: str | None = None,
    sharded_over: int = 1,
) -> float:
    """The bytes of a denoiser's weights on one device while it works.

    Args:
        denoiser: of which shapes and dtypes are known.
        quantization: one of [`config.TEACHER_QUANTIZATIONS`]; default: none.
        offload: one of [`config.TEACHER_OFFLOADS`]; in groups the next block comes while one computes.
        sharded_over: so many processes, of which each has its part, and of the block that computes all.
    """
    whole, blocks = kept_bytes(denoiser, quantization), [kept_bytes(one, quantization) for one in blocks_of(denoiser)]
    if offload == "group":
        return whole - sum(blocks) + sum(sorted(blocks)[-2:])
    return whole / sharded_over + (max(blocks) if sharded_over > 1 else 0)
