"""Folders of the configurations of the pairs in recipes/configs, and no weights: teachers and students of full size."""

import importlib.util
import json
from pathlib import Path

import tiny_pipelines
from model_configs import CLIPS
from transformers import CLIPConfig, MetaClip2Config, SiglipConfig

from sdsclip_hf.common.writing import write_json

TEXT_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
TEXT_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
T5_XXL = {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "d_kv": 64, "vocab_size": 32128}
QWEN_3_4B = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32}
QWEN_3_4B |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "layer_types": None}
GEMMA_2_2B = {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8}
GEMMA_2_2B |= {"num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000, "layer_types": None}
AUTOENCODER = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32}
AUTOENCODER |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
SIGLIP_B = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
OF_WORDS = {"vocab_size": 256000, "max_position_embeddings": 64}
# Configuration of recipes/configs: the tiny pipeline in whose layout its teacher is, that teacher's name in
# tools/teacher_costs.py, what its other parts have, and the student's configuration.
PAIRS = {
    "vit_l14_coco_sdxl": (
        "stable_diffusion_xl",
        "stabilityai/stable-diffusion-xl-base-1.0",
        {
            "text_encoder": TEXT_L,
            "text_encoder_2": TEXT_G | {"projection_dim": 1280},
            "vae": AUTOENCODER,
        },
        CLIPConfig(**CLIPS["ViT-L/14"]),
    ),
    "siglip2_b16_coco_sd35_medium": (
        "stable_diffusion_3",
        "stabilityai/stable-diffusion-3.5-medium",
        {
            "text_encoder": TEXT_L | {"projection_dim": 768},
            "text_encoder_2": TEXT_G | {"projection_dim": 1280},
            "text_encoder_3": T5_XXL,
            "vae": AUTOENCODER | {"latent_channels": 16},
        },
        SiglipConfig(
            text_config=SIGLIP_B | OF_WORDS | {"projection_size": 768},
            vision_config=SIGLIP_B | {"image_size": 256, "patch_size": 16},
        ),
    ),
    "siglip2_so400m_coco_flux2_klein": (
        "flux_2",
        "black-forest-labs/FLUX.2-klein-base-4B",
        {"text_encoder": QWEN_3_4B, "vae": AUTOENCODER | {"latent_channels": 32}},
        SiglipConfig(
            text_config=SO400M | OF_WORDS | {"projection_size": 1152},
            vision_config=SO400M | {"image_size": 384, "patch_size": 14},
        ),
    ),
    "metaclip2_b32_coco_sana": (
        "sana",
        "Efficient-Large-Model/Sana_600M_512px_diffusers",
        {
            "text_encoder": GEMMA_2_2B,
            "vae": {
                "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
                "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
                "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
                "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
                "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
                "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
                "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
                "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
                "latent_channels": 32,
            },
        },
        MetaClip2Config(projection_dim=512, text_config={"vocab_size": 901629}),
    ),
}


def _denoisers() -> dict:
    spec = importlib.util.spec_from_file_location("teacher_costs", Path(__file__).parents[1] / "tools/teacher_costs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DENOISERS


def pair_folders(folder: Path, name: str) -> tuple[str, str]:
    """The configurations of the student and of the teacher of a configuration in recipes/configs."""
    tiny, denoiser, parts, student = PAIRS[name]
    teacher = tiny_pipelines.save(tiny, folder)
    _, of_denoiser, _ = _denoisers()[denoiser]
    parts = parts | {"unet" if (teacher / "unet").is_dir() else "transformer": of_denoiser}
    for part, options in parts.items():
        path = teacher / part / "config.json"
        whole = json.loads(path.read_text())
        if part in ("unet", "transformer"):
            whole = {key: value for key, value in whole.items() if key.startswith("_")}
        write_json(path, whole | options)
    student.save_pretrained(folder / "student")
    return str(folder / "student"), str(teacher)
