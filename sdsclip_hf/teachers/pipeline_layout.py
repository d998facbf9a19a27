"""Which diffusers pipelines can be teachers: those in Stable Diffusion's layout, whose parts fit one another."""

import json
from pathlib import Path
from typing import cast

from diffusers import DDPMScheduler
from huggingface_hub import hf_hub_download

PREDICTION_TYPES = ("epsilon", "v_prediction")
PARTS = ("unet", "text_encoder", "tokenizer", "scheduler")


def model_index(name: str, revision: str | None) -> dict:
    """What ``model_index.json`` of a folder or Hub id holds.

    Raises:
        OSError: it has none, or parts that it names are not there.
    """
    folder = Path(name)
    if folder.is_dir():
        path = folder / "model_index.json"
        if not path.is_file():
            raise OSError("it has no model_index.json, so it is not a folder that diffusers wrote")
    else:
        path = Path(hf_hub_download(name, "model_index.json", revision=revision))
    index = json.loads(path.read_text())
    if folder.is_dir():
        absent = [part for part in PARTS if part in index and not (folder / part).is_dir()]
        if absent:
            raise OSError(f"it has no folder {', '.join(absent)}")
    return index


def check_layout(name: str, index: dict) -> None:
    """Raise ValueError unless a pipeline has the parts of Stable Diffusion 1.x and 2.x, and no second text encoder."""
    missing = [part for part in PARTS if not (index.get(part) or [None])[0]]
    if missing or "text_encoder_2" in index:
        why = f"it has no {', '.join(missing)}" if missing else "it has a second text encoder"
        raise ValueError(
            f"the teacher {name!r} is a {index.get('_class_name', 'pipeline')} and not in Stable Diffusion's layout: "
            f"{why}. Give a text-to-image checkpoint with unet, text_encoder, tokenizer and scheduler."
        )


def load_schedule(name: str, revision: str | None) -> DDPMScheduler:
    """The noise schedule of a pipeline, whatever sampler it names.

    Raises:
        OSError: it cannot be loaded.
        ValueError: it tells no betas, for which DDPMScheduler would take some of its own.
    """
    config = cast(dict, DDPMScheduler.load_config(name, subfolder="scheduler", revision=revision))
    sampler = config.get("_class_name", "scheduler")
    if "Flow" in sampler or config.get("use_flow_sigmas") or not {"beta_schedule", "trained_betas"} & config.keys():
        raise ValueError(
            f"the teacher's {sampler} has no schedule of betas (a flow or EDM model?); give a Stable Diffusion 1.x or 2.x "
            "checkpoint."
        )
    return cast(DDPMScheduler, DDPMScheduler.from_config(config))


def check_parts_fit(denoiser, text_encoder, scheduler, vae) -> None:
    """Raise ValueError unless a pipeline's parts can be used together as a teacher."""
    config = denoiser.config
    if config.in_channels != config.out_channels:
        raise ValueError(
            f"the teacher's denoiser takes {config.in_channels} channels and gives {config.out_channels}: it needs more "
            "than a latent and a caption (an inpainting or editing model?). Give a text-to-image checkpoint."
        )
    if vae is not None and vae.config.latent_channels != config.in_channels:
        raise ValueError(
            f"the teacher's autoencoder makes latents of {vae.config.latent_channels} channels, but its denoiser takes "
            f"{config.in_channels}; give parts of one checkpoint."
        )
    for condition in ("addition_embed_type", "class_embed_type"):
        if getattr(config, condition, None):
            raise ValueError(
                f"the teacher's denoiser wants a condition beside the caption ({condition}={config[condition]!r}); "
                "give a Stable Diffusion 1.x or 2.x checkpoint."
            )
    width = config.encoder_hid_dim or config.cross_attention_dim
    hidden = text_encoder.config.hidden_size
    if hidden != width:
        raise ValueError(
            f"the teacher's caption encoder is {hidden} wide, but its denoiser expects prompts {width} wide; "
            "give the text encoder of the same checkpoint."
        )
    if scheduler.config.prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"the teacher's prediction_type {scheduler.config.prediction_type!r} is not supported; "
            f"choose a checkpoint that predicts {' or '.join(PREDICTION_TYPES)}."
        )
