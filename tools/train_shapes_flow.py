"""Make another teacher and student of the shapes world from nothing: a flow-matching transformer and a SigLIP.

    python tools/train_shapes_flow.py --output_dir outputs/shapes_flow

The teacher has Stable Diffusion 3's layout without T5, and takes the bundled teacher's autoencoder. What is made as
the bundled models are is in train_shapes.py; a killed run goes on where it stopped, as there.
"""

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from train_shapes import (
    Pictures,
    Stage,
    all_orders,
    image_embeds,
    make_tokenizer,
    random_pairs,
    random_pictures,
    report,
    text_config,
    text_embeds,
    train_student,
)
from transformers import (
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
)

from sdsclip_hf.evaluation.scorers import ClipScorer
from sdsclip_hf.losses import sigmoid_loss
from sdsclip_hf.metrics.install import install_quietly
from sdsclip_hf.shapes import model_path
from sdsclip_hf.shapes import scenes as world
from sdsclip_hf.students.loading import load_student

BIAS = -4.3  # -log of the wrong captions that a picture has in a batch of 64, or so, as SigLIP's -10 is of 32 thousand
T5_PLACES = 256  # what StableDiffusion3Pipeline sets aside for T5's words, and fills with zeros where there is no T5


class OneForAll:
    """Joint attention in which the last place of the caption counts as ``T5_PLACES`` equal ones.

    The places of an absent T5 hold the same vector, have no positions, and so stay the same in every layer. One of them
    with log(256) added to its logits is what the pipeline computes with all of them, and much cheaper.
    """

    def __call__(self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, **_) -> tuple:
        pairs = (attn.to_q, attn.add_q_proj), (attn.to_k, attn.add_k_proj), (attn.to_v, attn.add_v_proj)
        query, key, value = (
            torch.cat([of_image(hidden_states), of_caption(encoder_hidden_states)], dim=1)
            .unflatten(-1, (attn.heads, -1))
            .transpose(1, 2)
            for of_image, of_caption in pairs
        )  # (B, heads, places, D)
        counts = torch.ones(key.shape[2])
        counts[-1] = T5_PLACES
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=counts.log()[None])
        image, caption = (
            mixed.transpose(1, 2).flatten(2).split([hidden_states.shape[1], encoder_hidden_states.shape[1]], 1)
        )
        return attn.to_out[0](image), caption if attn.context_pre_only else attn.to_add_out(caption)


def bundled_autoencoder(pictures: Pictures) -> tuple[AutoencoderKL, Tensor]:
    """The bundled teacher's, its latents shifted and scaled to zero mean and unit variance; and those of all pictures.

    Returns:
        The autoencoder, and latents (S, P, C, h, w) of P pictures of S scenes.
    """
    vae = AutoencoderKL.from_pretrained(model_path("teacher"), subfolder="vae").requires_grad_(False)
    with torch.no_grad():
        latents = torch.stack([vae.encode(of_scene.float() / 127.5).latent_dist.mean for of_scene in pictures.pixels])
    shift, scale = round(latents.mean().item(), 5), round(1 / latents.std().item(), 5)
    vae.register_to_config(shift_factor=shift, scaling_factor=scale)
    return vae, (latents - shift) * scale


def new_teacher(vae: AutoencoderKL, tokenizer: CLIPTokenizer, seed: int) -> StableDiffusion3Pipeline:
    """1.3 M weights of denoiser over 2 x 2 latents, freshly initialised, and two small text towers of CLIP's."""
    torch.manual_seed(seed + 5)
    width, heads, text_width = 96, 4, 64
    encoders = [
        CLIPTextModelWithProjection(text_config(tokenizer, tokenizer.model_max_length, text_width)) for _ in range(2)
    ]
    transformer = SD3Transformer2DModel(
        sample_size=world.IMAGE_SIZE // 4,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=width // heads,
        num_attention_heads=heads,
        joint_attention_dim=2 * text_width,
        caption_projection_dim=width,
        pooled_projection_dim=2 * text_width,
        pos_embed_max_size=world.IMAGE_SIZE // 8,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def train_teacher(
    folder: Path, pictures: Pictures, tokenizer: CLIPTokenizer, seed: int, steps: int
) -> tuple[StableDiffusion3Pipeline, float]:
    """The flow's mean squared error, with what lets the bundled teacher learn direction.

    70 % of the noise levels are drawn from sigma >= 0.6, and early captions tell mostly "left of" and "above".
    """
    vae, latents = bundled_autoencoder(pictures)
    pipeline = new_teacher(vae, tokenizer, seed)
    transformer = pipeline.transformer
    model = nn.ModuleList([transformer, pipeline.text_encoder, pipeline.text_encoder_2])

    def loss(step: int, generator: torch.Generator) -> Tensor:
        x, captions = random_pairs(pictures, latents, step / steps, generator)
        count = len(x)
        words, _, sentence, _ = pipeline.encode_prompt(
            captions, None, None, do_classifier_free_guidance=False, max_sequence_length=1
        )
        high = torch.rand(count, generator=generator) < 0.7
        drawn = torch.rand(count, generator=generator)
        sigma = torch.where(high, 0.6 + 0.4 * drawn, drawn)
        noise = torch.randn(x.shape, generator=generator)
        noisy = torch.lerp(x, noise, sigma.view(-1, 1, 1, 1))
        predicted = transformer(noisy, words, sentence, 1000 * sigma).sample
        return F.mse_loss(predicted, noise - x)

    usual = transformer.attn_processors
    transformer.set_attn_processor(OneForAll())
    stage = Stage(
        "flow_teacher", model, loss, steps=steps, learning_rate=1e-3, folder=folder, seed=seed, ema_decay=0.999
    )
    seconds = stage.run()
    transformer.set_attn_processor(usual)
    model.eval()
    return pipeline, seconds


def new_siglip(tokenizer: CLIPTokenizer, seed: int) -> SiglipModel:
    """A SigLIP of the bundled students' size, freshly initialised, its temperature and bias held while it trains."""
    torch.manual_seed(seed)
    tower = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4}
    specials = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    vision = {"image_size": world.IMAGE_SIZE, "patch_size": 8}
    model = SiglipModel(SiglipConfig(text_config=tower | words | specials, vision_config=tower | vision))
    model.logit_scale.requires_grad_(False).fill_(math.log(20))
    model.logit_bias.requires_grad_(False).fill_(BIAS)
    return model


def train_text_tower(
    folder: Path, tokenizer: CLIPTokenizer, pictures: Pictures, seed: int, steps: int
) -> tuple[SiglipModel, float]:
    """A SigLIP whose text tower embeds captions as the bundled student's does, which knows word order."""
    model = new_siglip(tokenizer, seed + 2)
    model.vision_model.requires_grad_(False)
    captions = [caption for scene in pictures.scenes for caption in scene.captions()]
    targets = ClipScorer(*load_student(model_path("student"))).embed_captions(captions)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(captions), (64,), generator=generator)
        embeds = text_embeds(model, tokenizer, [captions[row] for row in rows])
        return 1 - (embeds * targets[rows]).sum(-1).mean()

    stage = Stage("siglip_text", model, loss, steps=steps, learning_rate=1e-3, folder=folder, seed=seed)
    return model, stage.run()


@torch.no_grad()
def set_temperature(model: SiglipModel, tokenizer: CLIPTokenizer, pictures: Pictures, seed: int, scale: float) -> None:
    """Give the model a factor on cosines, and the bias with which its loss on pairs of the training scenes is least."""
    generator = torch.Generator().manual_seed(seed)
    model.logit_scale.fill_(math.log(scale))
    pixels, scenes, _ = random_pictures(pictures, 256, generator)
    captions = [all_orders(pictures, number, generator)[0] for number in scenes.tolist()]
    images, texts = image_embeds(model, pixels), text_embeds(model, tokenizer, captions)
    biases = torch.arange(-scale, scale, 0.1)
    losses = [sigmoid_loss(images, texts, model.logit_scale.exp(), bias) for bias in biases]
    model.logit_bias.fill_(biases[torch.stack(losses).argmin()])


def make_processor(tokenizer: CLIPTokenizer) -> SiglipProcessor:
    """Pictures of 32 x 32 pixels in [-1, 1]; captions of up to 16 tokens, read without a mask."""
    return SiglipProcessor(
        SiglipImageProcessorPil(size={"height": world.IMAGE_SIZE, "width": world.IMAGE_SIZE}), tokenizer
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/shapes_flow"), help="where everything goes")
    parser.add_argument("--seed", type=int, default=0, help="of all weights, data and noise")
    parser.add_argument("--teacher_steps", type=int, default=2000)
    parser.add_argument("--text_steps", type=int, default=1500, help="of the student's text tower")
    parser.add_argument("--student_steps", type=int, default=500)
    args = parser.parse_args()
    install_quietly()
    folder, seed = args.output_dir, args.seed
    states = folder / "states"
    states.mkdir(parents=True, exist_ok=True)
    seconds = {}
    pictures = Pictures(per_scene=40, seed=seed)
    tokenizer = make_tokenizer(folder / "tokenizer", max_length=16)

    pipeline, seconds["teacher"] = train_teacher(states, pictures, tokenizer, seed, args.teacher_steps)
    pipeline.save_pretrained(folder / "teacher")
    reader, seconds["text tower"] = train_text_tower(states, tokenizer, pictures, seed, args.text_steps)
    student, seconds["student"] = train_student(
        states, reader, tokenizer, pictures, seed, args.student_steps, new_siglip
    )
    set_temperature(student, tokenizer, pictures, seed, scale=100)
    for part in (student, make_processor(tokenizer)):
        part.save_pretrained(folder / "student")
    report(folder, seconds, ["student"], pipeline)


if __name__ == "__main__":
    main()
