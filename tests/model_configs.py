"""Folders that hold the configurations of models in the usual layouts, and no weights."""

from pathlib import Path

from conftest import make_tokenizer
from diffusers import DDPMScheduler
from transformers import CLIPConfig, CLIPTextConfig

from sdsclip_hf.common.checkpoints import write_json

LARGE_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
LARGE_VISION = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
CLIPS = {
    "ViT-B/32": {"projection_dim": 512},  # the rest is what CLIPConfig has by default
    "ViT-L/14": {
        "projection_dim": 768,
        "text_config": LARGE_TEXT,
        "vision_config": LARGE_VISION | {"patch_size": 14},
    },
    "four layers": {
        "projection_dim": 512,
        "text_config": {"num_hidden_layers": 4},
        "vision_config": {"num_hidden_layers": 4},
    },
}
SD_15 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
HALF_AS_WIDE = SD_15 | {"sample_size": 32, "block_out_channels": (160, 320, 640, 640)}


def clip_config_folder(folder: Path, name: str) -> str:
    """Of openai/clip-vit-base-patch32 ("ViT-B/32"), openai/clip-vit-large-patch14 ("ViT-L/14"), or a small one."""
    CLIPConfig(**CLIPS[name]).save_pretrained(folder)
    return str(folder)


def teacher_config_folder(folder: Path, unet: dict | None = None) -> str:
    """Of Stable Diffusion 1.5, or one with another denoiser, with a tokenizer of another vocabulary."""
    parts = {
        "unet": ("diffusers", "UNet2DConditionModel"),
        "text_encoder": ("transformers", "CLIPTextModel"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        "scheduler": ("diffusers", "DDPMScheduler"),
    }
    (folder / "unet").mkdir(parents=True)
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline", **parts})
    write_json(folder / "unet" / "config.json", {"_class_name": "UNet2DConditionModel", **(unet or SD_15)})
    CLIPTextConfig(**LARGE_TEXT).save_pretrained(folder / "text_encoder")
    make_tokenizer(77).save_pretrained(folder / "tokenizer")
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.save_pretrained(folder / "scheduler")
    return str(folder)
