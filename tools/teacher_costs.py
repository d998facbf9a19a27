# /// script
# requires-python = ">=3.10"
# dependencies = ["sdsclip_hf"]  # or from git: ["sdsclip_hf @ git+https://github.com/OWNER/sdsclip_hf"]
# ///
"""Count what `sdsclip teachers` tells: a denoiser's weights, and the operations of one call at 512 x 512 pixels.

Denoisers are made of their configurations, without weights. Captions have 32 words where a denoiser sees no padding.
"""

from types import SimpleNamespace

import diffusers as d
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sdsclip_hf.planning.ledger import Ledger
from sdsclip_hf.planning.rehearsal import CAPTION_WORDS, empty
from sdsclip_hf.teachers.families.catalogue import FAMILIES
from sdsclip_hf.teachers.schedule import Level

UNET = {"attention_head_dim": 8, "cross_attention_dim": 768}
XL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD_35 = {"pos_embed_max_size": 384, "pooled_projection_dim": 2048, "joint_attention_dim": 4096, "qk_norm": "rms_norm"}
MEDIUM = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "sample_size": 128}
LARGE = {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "sample_size": 128}
PIXART = {"sample_size": 128, "caption_channels": 4096, "in_channels": 4, "out_channels": 8, "num_layers": 28}
SANA = {"num_attention_heads": 36, "num_cross_attention_heads": 16, "cross_attention_head_dim": 72, "num_layers": 28}
KLEIN = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680}
# Checkpoint: class of its denoiser, what differs from that class's own configuration, and shapes of what it is told.
DENOISERS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": (d.UNet2DConditionModel, UNET, {"encoder_hidden_states": (77, 768)}),
    "stabilityai/stable-diffusion-xl-base-1.0": (
        d.UNet2DConditionModel, XL, {"encoder_hidden_states": (77, 2048), "text_embeds": (1280,)},
    ),
    "stabilityai/stable-diffusion-3.5-medium": (
        d.SD3Transformer2DModel, SD_35 | MEDIUM | {"dual_attention_layers": tuple(range(13))},
        {"encoder_hidden_states": (333, 4096), "pooled_projections": (2048,)},
    ),
    "stabilityai/stable-diffusion-3.5-large": (
        d.SD3Transformer2DModel, SD_35 | LARGE, {"encoder_hidden_states": (333, 4096), "pooled_projections": (2048,)},
    ),
    "black-forest-labs/FLUX.1-dev": (
        d.FluxTransformer2DModel, {"guidance_embeds": True},
        {"encoder_hidden_states": (512, 4096), "pooled_projections": (768,)},
    ),
    "black-forest-labs/FLUX.1-schnell": (
        d.FluxTransformer2DModel, {}, {"encoder_hidden_states": (512, 4096), "pooled_projections": (768,)},
    ),
    "black-forest-labs/FLUX.2-klein-base-4B": (
        d.Flux2Transformer2DModel, KLEIN | {"guidance_embeds": False}, {"encoder_hidden_states": (512, 7680)},
    ),
    "black-forest-labs/FLUX.2-dev": (d.Flux2Transformer2DModel, {}, {"encoder_hidden_states": (512, 15360)}),
    "Efficient-Large-Model/Sana_600M_512px_diffusers": (
        d.SanaTransformer2DModel, SANA | {"cross_attention_dim": 1152},
        {"encoder_hidden_states": (CAPTION_WORDS, 2304), "encoder_attention_mask": (CAPTION_WORDS,)},
    ),
    "Efficient-Large-Model/Sana_1600M_1024px_diffusers": (
        d.SanaTransformer2DModel, {},
        {"encoder_hidden_states": (CAPTION_WORDS, 2304), "encoder_attention_mask": (CAPTION_WORDS,)},
    ),
    "Tongyi-MAI/Z-Image": (d.ZImageTransformer2DModel, {}, {"words": (CAPTION_WORDS, 2560)}),
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": (
        d.PixArtTransformer2DModel, PIXART,
        {"encoder_hidden_states": (CAPTION_WORDS, 4096), "encoder_attention_mask": (CAPTION_WORDS,)},
    ),
    "Qwen/Qwen-Image": (d.QwenImageTransformer2DModel, {}, {"encoder_hidden_states": (CAPTION_WORDS, 3584)}),
    "fal/AuraFlow-v0.3": (
        d.AuraFlowTransformer2DModel, {"pos_embed_max_size": 9216}, {"encoder_hidden_states": (256, 2048)},
    ),
    "krea/Krea-2-Raw": (
        d.Krea2Transformer2DModel, {},
        {"encoder_hidden_states": (CAPTION_WORDS, 12, 2560), "encoder_attention_mask": (CAPTION_WORDS,)},
    ),
}  # fmt: skip
PIXELS = 512


def cost(family: type, denoiser: nn.Module, factor: int, told: dict[str, tuple[int, ...]]) -> tuple[int, int]:
    """Weights, and operations of one call."""
    places = d.Krea2Pipeline.prepare_position_ids
    parts = {family.denoiser_part: denoiser, "vae_scale_factor": factor, "prepare_position_ids": places}
    bound = family(SimpleNamespace(**parts))
    with FakeTensorMode():
        empty(denoiser)
        edge = PIXELS // bound.factor
        latents, t = torch.empty(1, bound.latent_channels, edge, edge), torch.zeros(1)
        conditions = {
            name: torch.ones(1, *shape, dtype=torch.bool) if "mask" in name else torch.empty(1, *shape)
            for name, shape in told.items()
        }
        with Ledger() as ledger, torch.no_grad():
            bound.predict(latents, Level(t, t, t), conditions)
    return sum(weight.numel() for weight in denoiser.parameters()), ledger.flops.total()


def counted(family: type, name: str) -> tuple[int, int]:
    """Weights, and operations of one call, of the denoiser of a checkpoint."""
    kind, options, told = DENOISERS[name]
    with torch.device("meta"):
        denoiser = kind(**options)
    return cost(family, denoiser, 32 if family.__name__ == "Sana" else 8, told)


def main() -> None:
    for family in FAMILIES:
        for known in family.known:
            weights, flops = counted(family, known.name)
            found, listed = (
                f"{weights / 1e9:.2f} B, {flops / 1e12:.2f} TFLOP",
                f"{known.weights:g} B, {known.cost:g} TFLOP",
            )
            print(f"{known.name}: {found} (listed: {listed})", flush=True)


if __name__ == "__main__":
    main()
