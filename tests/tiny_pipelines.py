"""A text-to-image pipeline of each family that can be a teacher, tiny and random, saved as the families' own are."""

from collections.abc import Callable
from pathlib import Path

import diffusers as d
import tiny_tokenizers as tokenizers
import torch
import transformers as t
from conftest import make_tokenizer as clip_tokenizer
from torch import nn

FLOW = {"shift": 3.0}
DYNAMIC = {"use_dynamic_shifting": True, "base_image_seq_len": 256}


def fill(*modules: nn.Module) -> None:
    """Give parameters that start at zero or at nothing small values, or whatever they weigh would show nothing."""
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                if parameter.isnan().any() or not parameter.any():
                    parameter.normal_(0, 0.05)


def autoencoder(channels: int = 4, scale: float = 0.2, shift: float | None = None, blocks: int = 4) -> d.AutoencoderKL:
    return d.AutoencoderKL(
        block_out_channels=(8,) * blocks,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        scaling_factor=scale,
        shift_factor=shift,
        use_quant_conv=shift is None,
        use_post_quant_conv=shift is None,
    )


def clip_text(kind: type = t.CLIPTextModel, hidden_act: str = "quick_gelu") -> nn.Module:
    tokenizer = clip_tokenizer(77)
    config = t.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_act=hidden_act,
    )
    return kind(config)


def t5_text(kind: type = t.T5EncoderModel, width: int = 32) -> nn.Module:
    config = t.UMT5Config if kind is t.UMT5EncoderModel else t.T5Config
    return kind(
        config(
            vocab_size=100,
            d_model=width,
            d_kv=8,
            d_ff=37,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    )


def gemma_text() -> t.Gemma2Model:
    config = t.Gemma2Config(
        vocab_size=200,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=1024,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    return t.Gemma2Model(config)


DECODER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "vocab_size": 320,
}
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}
VISION = {"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}


def qwen3_text(layers: int) -> t.Qwen3ForCausalLM:
    return t.Qwen3ForCausalLM(t.Qwen3Config(**DECODER, num_hidden_layers=layers, num_key_value_heads=1))


def unet(**options) -> d.UNet2DConditionModel:
    return d.UNet2DConditionModel(
        **{
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "sample_size": 16,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 32,
            "norm_num_groups": 8,
            "attention_head_dim": (2, 4),
        }
        | options
    )


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def stable_diffusion(prediction_type: str = "epsilon"):
    return d.StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(77),
        unet=unet(),
        scheduler=d.DDIMScheduler(**BETAS, prediction_type=prediction_type, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_2():
    return stable_diffusion("v_prediction")


def stable_diffusion_xl():
    return d.StableDiffusionXLPipeline(
        vae=autoencoder(scale=0.13),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(t.CLIPTextModelWithProjection, "gelu"),
        tokenizer=clip_tokenizer(77),
        tokenizer_2=clip_tokenizer(77),
        unet=unet(
            cross_attention_dim=64,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 2),
            projection_class_embeddings_input_dim=80,
        ),
        scheduler=d.EulerDiscreteScheduler(**BETAS, timestep_spacing="leading"),
        add_watermarker=False,
    )


def pixart(kind: type = d.PixArtSigmaPipeline, size: int = 16, sized: bool = False):
    transformer = d.PixArtTransformer2DModel(
        sample_size=size,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        in_channels=4,
        out_channels=8,
        caption_channels=32,
        cross_attention_dim=24,
        norm_type="ada_norm_single",
        use_additional_conditions=sized,
    )
    scheduler = d.DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear", solver_order=2)
    return kind(
        tokenizer=tokenizers.t5(300), text_encoder=t5_text(), vae=autoencoder(), transformer=transformer,
        scheduler=scheduler,
    )  # fmt: skip


def pixart_alpha():
    return pixart(d.PixArtAlphaPipeline, 128, sized=True)


def stable_diffusion_3(with_t5: bool = True):
    transformer = d.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=72,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=16,
        pos_embed_max_size=24,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    return d.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=d.FlowMatchEulerDiscreteScheduler(**FLOW),
        vae=autoencoder(16, 1.5, 0.06),
        text_encoder=clip_text(t.CLIPTextModelWithProjection),
        tokenizer=clip_tokenizer(77),
        text_encoder_2=clip_text(t.CLIPTextModelWithProjection, "gelu"),
        tokenizer_2=clip_tokenizer(77),
        text_encoder_3=t5_text(width=72) if with_t5 else None,
        tokenizer_3=tokenizers.t5() if with_t5 else None,
    )


def stable_diffusion_3_without_t5():
    return stable_diffusion_3(with_t5=False)


def flux(guidance: bool = True):
    transformer = d.FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 4, 8),
    )
    return d.FluxPipeline(
        transformer=transformer,
        scheduler=d.FlowMatchEulerDiscreteScheduler(**(DYNAMIC if guidance else FLOW)),
        vae=autoencoder(16, 0.36, 0.12),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(77),
        text_encoder_2=t5_text(),
        tokenizer_2=tokenizers.t5(),
    )


def flux_schnell():
    return flux(guidance=False)


def flux_2(kind: type = d.Flux2KleinPipeline):
    transformer = d.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=32,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = d.AutoencoderKLFlux2(
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=8,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    vae.bn.running_mean.normal_(0, 0.3)
    vae.bn.running_var.uniform_(0.5, 2)
    return kind(
        scheduler=d.FlowMatchEulerDiscreteScheduler(**DYNAMIC), vae=vae, text_encoder=qwen3_text(28),
        tokenizer=tokenizers.qwen(), transformer=transformer,
    )  # fmt: skip


def sana():
    transformer = d.SanaTransformer2DModel(
        patch_size=1,
        in_channels=8,
        out_channels=8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=12,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=16,
        sample_size=16,
    )
    vae = d.AutoencoderDC(
        in_channels=3,
        latent_channels=8,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41,
    )
    scheduler = d.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return d.SanaPipeline(
        tokenizer=tokenizers.gemma(), text_encoder=gemma_text(), vae=vae, transformer=transformer, scheduler=scheduler
    )


def z_image():
    transformer = d.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 64, 64],
    )
    return d.ZImagePipeline(
        scheduler=d.FlowMatchEulerDiscreteScheduler(**FLOW), vae=autoencoder(16, 0.36, 0.12),
        text_encoder=qwen3_text(3).model, tokenizer=tokenizers.qwen(), transformer=transformer,
    )  # fmt: skip


def qwen_autoencoder(channels: int = 16) -> d.AutoencoderKLQwenImage:
    return d.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=channels,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1 * number for number in range(channels)],
        latents_std=[1 + 0.1 * number for number in range(channels)],
    )


def qwen_image():
    transformer = d.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=64,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        guidance_embeds=False,
        axes_dims_rope=(8, 4, 4),
    )
    text = DECODER | {"num_hidden_layers": 2, "num_key_value_heads": 2, "rope_parameters": ROPE}
    text.pop("head_dim")
    config = t.Qwen2_5_VLConfig(text_config=text, vision_config=VISION, hidden_size=16, vocab_size=320)
    return d.QwenImagePipeline(
        scheduler=d.FlowMatchEulerDiscreteScheduler(**DYNAMIC, shift_terminal=0.02),
        vae=qwen_autoencoder(),
        text_encoder=t.Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=tokenizers.qwen(),
        transformer=transformer,
    )


def krea_2():
    transformer = d.Krea2Transformer2DModel(
        in_channels=64,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    text = DECODER | {"num_hidden_layers": 6, "num_key_value_heads": 2, "rope_parameters": ROPE}
    config = t.Qwen3VLConfig(text_config=text, vision_config=VISION | {"deepstack_visual_indexes": [0]})
    return d.Krea2Pipeline(
        scheduler=d.FlowMatchEulerDiscreteScheduler(**DYNAMIC),
        vae=qwen_autoencoder(),
        text_encoder=t.Qwen3VLModel(config),
        tokenizer=tokenizers.qwen(),
        transformer=transformer,
        text_encoder_select_layers=(1, 3, 5),
    )


def lumina_2():
    transformer = d.Lumina2Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=2,
        cap_feat_dim=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(300, 64, 64),
    )
    return d.Lumina2Pipeline(
        transformer=transformer, scheduler=d.FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=autoencoder(16, 0.36, 0.12), text_encoder=gemma_text(), tokenizer=tokenizers.gemma(),
    )  # fmt: skip


def aura_flow():
    transformer = d.AuraFlowTransformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=256,
    )
    return d.AuraFlowPipeline(
        tokenizer=tokenizers.t5(), text_encoder=t5_text(t.UMT5EncoderModel), vae=autoencoder(scale=0.13),
        transformer=transformer, scheduler=d.FlowMatchEulerDiscreteScheduler(shift=1.73),
    )  # fmt: skip


def cogview_4():
    transformer = d.CogView4Transformer2DModel(
        patch_size=2,
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        out_channels=16,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
        sample_size=16,
    )
    config = t.GlmConfig(**DECODER, num_hidden_layers=2, num_key_value_heads=1, pad_token_id=0)
    scheduler = d.FlowMatchEulerDiscreteScheduler(**DYNAMIC, base_shift=0.25, max_shift=0.75, time_shift_type="linear")
    return d.CogView4Pipeline(
        tokenizer=tokenizers.qwen(side="left"), text_encoder=t.GlmModel(config), vae=autoencoder(16, 1.0, 0.0),
        transformer=transformer, scheduler=scheduler,
    )  # fmt: skip


MAKERS: dict[str, Callable] = {
    maker.__name__: maker
    for maker in (
        *(stable_diffusion, stable_diffusion_2, stable_diffusion_xl, pixart, pixart_alpha, stable_diffusion_3),
        *(stable_diffusion_3_without_t5, flux, flux_schnell, flux_2, sana, z_image, qwen_image, krea_2, lumina_2),
        *(aura_flow, cogview_4),
    )
}


def save(name: str, folder: Path) -> Path:
    """Make a pipeline and write it where it is not yet."""
    if not (folder / name).is_dir():
        torch.manual_seed(0)
        pipeline = MAKERS[name]()
        denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
        fill(denoiser)
        if name == "aura_flow":  # or captions hardly matter
            for module in denoiser.modules():
                if isinstance(module, nn.Linear):
                    module.weight.data *= 4
        pipeline.save_pretrained(folder / name)
    return folder / name
