# /// script
# requires-python = ">=3.10"
# dependencies = ["sdsclip_hf"]  # or from git: ["sdsclip_hf @ git+https://github.com/OWNER/sdsclip_hf"]
# ///
"""Make the embedded models of the shapes world from nothing: tokenizer, autoencoder, teacher and two students.

    python tools/train_shapes.py --output_dir outputs/shapes_world

Every step draws its data and noise from a generator seeded by (seed, stage, step), so a killed run that is started
again goes on where it stopped, to the same weights. About 45 minutes on two CPU cores.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedModel,
)

from sdsclip_hf.common.checkpoints import write_json
from sdsclip_hf.evaluation.results import evaluate_benchmarks
from sdsclip_hf.evaluation.scorers import ClipScorer, DiffusionScorer
from sdsclip_hf.evaluation.tables import table
from sdsclip_hf.losses import contrastive_loss, sigmoid_loss
from sdsclip_hf.metrics.install import install_quietly
from sdsclip_hf.shapes import resolve
from sdsclip_hf.shapes import scenes as world
from sdsclip_hf.students.kinds import caption_reader, image_features, logit_bias, logit_scale, text_features
from sdsclip_hf.students.loading import load_student
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher

SAVE_EVERY = 500


class Stage:
    """One training run: AdamW with a cosine schedule, a state file for resuming, each step seeded on its own.

    Args:
        name: names the state file, and seeds the draws together with ``seed``.
        model: what trains (parameters that do not require grad are left alone).
        loss: ``(step, generator) -> scalar``; it must draw from ``generator`` alone.
        ema_decay: when positive, the averaged weights are what the stage leaves in ``model``.
        snapshots: step -> what is called before that step, with the averaged weights in ``model`` where there are any.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        loss: Callable[[int, torch.Generator], Tensor],
        *,
        steps: int,
        learning_rate: float,
        folder: Path,
        seed: int,
        ema_decay: float = 0.0,
        weight_decay: float = 0.01,
        snapshots: dict[int, Callable[[], None]] | None = None,
    ):
        self.name, self.model, self.loss, self.steps, self.seed = name, model, loss, steps, seed
        self.snapshots = snapshots or {}
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.parameters = parameters
        self.optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
        warmup = min(100, steps // 10)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: min((step + 1) / (warmup + 1), 0.5 * (1 + math.cos(math.pi * step / steps)) + 1e-3),
        )
        self.ema = EMAModel(parameters, decay=ema_decay, use_ema_warmup=True, inv_gamma=10) if ema_decay else None
        self.state_file = folder / f"{name}.state.pt"

    def run(self) -> float:
        """Train to the end and return the seconds it took, over all sittings."""
        step, spent = self._restore()
        started = time.perf_counter()
        average = None
        while step < self.steps:
            if step in self.snapshots:
                self._take_snapshot(step)
            generator = torch.Generator().manual_seed(hash_seed(self.seed, self.name, step))
            loss = self.loss(step, generator)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.scheduler.step()
            if self.ema:
                self.ema.step(self.parameters)
            step += 1
            average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
            if step % SAVE_EVERY == 0 or step == self.steps:
                elapsed = spent + time.perf_counter() - started
                self._save(step, elapsed)
                print(f"{self.name}: step {step}/{self.steps}, loss {average:.4f}, {elapsed:.0f} s", flush=True)
        if self.ema:
            self.ema.copy_to(self.parameters)
        return spent + time.perf_counter() - started

    def _take_snapshot(self, step: int) -> None:
        averaged = self.ema is not None and step > 0
        if averaged:
            self.ema.store(self.parameters)
            self.ema.copy_to(self.parameters)
        self.snapshots[step]()
        if averaged:
            self.ema.restore(self.parameters)

    def _save(self, step: int, seconds: float) -> None:
        state = {
            "step": step,
            "seconds": seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
        }
        unfinished = self.state_file.with_suffix(".partial")
        torch.save(state, unfinished)
        unfinished.replace(self.state_file)

    def _restore(self) -> tuple[int, float]:
        if not self.state_file.exists():
            return 0, 0.0
        state = torch.load(self.state_file, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        return state["step"], state["seconds"]


def hash_seed(seed: int, name: str, step: int) -> int:
    """A 63-bit seed of its own for each (seed, stage, step)."""
    words = np.random.SeedSequence([seed, *name.encode(), step]).generate_state(2)
    return int(words[0]) << 31 ^ int(words[1])


def image_tensor(images: list) -> Tensor:
    """PIL pictures to floats in [-1, 1], (N, 3, 32, 32)."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float() / 127.5 - 1


class Pictures:
    """Rendered pictures of every training scene: ``pixels[s, p]`` is picture p of scene s."""

    def __init__(self, per_scene: int, seed: int):
        rng = np.random.default_rng([seed, 7])
        self.scenes = world.scenes("train")
        self.index = {scene: number for number, scene in enumerate(self.scenes)}
        placements = [world.Placement.draw(rng) for _ in range(per_scene)]
        self.pixels = torch.stack(
            [
                image_tensor([world.render(scene, placement) for placement in placements]).mul(127.5).char()
                for scene in self.scenes
            ]
        )

    def take(self, scene_numbers: Tensor, picture_numbers: Tensor) -> Tensor:
        """Pictures as floats in [-1, 1], (N, 3, 32, 32)."""
        return self.pixels[scene_numbers, picture_numbers].float() / 127.5

    def swaps(self, number: int) -> tuple[int, int, int]:
        """The numbers of the scenes with colours exchanged, things exchanged, and both."""
        scene = self.scenes[number]
        others = (scene.swap_attributes(), scene.swap_arguments(), scene.swap_attributes().swap_arguments())
        return tuple(self.index[other] for other in others)


def make_tokenizer(folder: Path, max_length: int, vocab_size: int = 1024) -> CLIPTokenizer:
    """Train a byte-level BPE on the captions and a list of English words; any string can be encoded with it."""
    corpus = [caption for split in world.SPLITS for scene in world.scenes(split) for caption in scene.captions()]
    corpus += [ENGLISH] * 40
    blank = CLIPTokenizer()
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = blank.backend_tokenizer.normalizer
    tokenizer.pre_tokenizer = blank.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 258,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [tuple(merge) for merge in learned["merges"]]
    tokens = alphabet + [letter + "</w>" for letter in alphabet] + ["".join(merge) for merge in merges]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    made = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)
    made.save_pretrained(folder)
    return made


def text_config(tokenizer: CLIPTokenizer, max_length: int, width: int = 128) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=max_length,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def train_vae(folder: Path, pictures: Pictures, seed: int, steps: int) -> tuple[AutoencoderKL, float]:
    """AutoencoderKL, 3 x 32 x 32 to 4 x 8 x 8; ``scaling_factor`` is set to give latents unit variance."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=world.IMAGE_SIZE,
    )

    def loss(step: int, generator: torch.Generator) -> Tensor:
        images = random_pictures(pictures, 32, generator)[0]
        posterior = vae.encode(images).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        decoded = vae.decode(latents).sample
        return F.l1_loss(decoded, images) + F.mse_loss(decoded, images) + 1e-5 * posterior.kl().mean()

    seconds = Stage("vae", vae, loss, steps=steps, learning_rate=2e-3, folder=folder, seed=seed, ema_decay=0.995).run()
    vae.eval().requires_grad_(False)
    with torch.no_grad():
        sample = random_pictures(pictures, 512, torch.Generator().manual_seed(seed))[0]
        vae.register_to_config(scaling_factor=round(1 / vae.encode(sample).latent_dist.mean.std().item(), 5))
    return vae, seconds


def random_pictures(pictures: Pictures, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    scenes = torch.randint(len(pictures.scenes), (count,), generator=generator)
    numbers = torch.randint(pictures.pixels.shape[1], (count,), generator=generator)
    return pictures.take(scenes, numbers), scenes, numbers


def train_teacher(
    folder: Path,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    pictures: Pictures,
    seed: int,
    steps: int,
    stages: dict[int, Path],
) -> tuple[StableDiffusionPipeline, float]:
    """A text-to-image latent diffusion model in Stable Diffusion's layout, predicting velocity.

    ``stages`` names folders for what it is before the steps in question: a teacher of little training, or of none.

    Two things let it learn direction: most timesteps are drawn from t >= 600, where the layout is decided, and the
    captions tell their scene mostly as "left of" / "above" at first (85 %, falling to 50 % by half-time).
    """
    torch.manual_seed(seed + 1)
    max_length = tokenizer.model_max_length
    text_encoder = CLIPTextModel(text_config(tokenizer, max_length))
    unet = UNet2DConditionModel(
        sample_size=world.IMAGE_SIZE // 4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )
    model = nn.ModuleDict({"text_encoder": text_encoder, "unet": unet})
    with torch.no_grad():
        scale = vae.config.scaling_factor
        latents = torch.stack(
            [vae.encode(of_scene.float() / 127.5).latent_dist.mean * scale for of_scene in pictures.pixels]
        )
    alphas = scheduler.alphas_cumprod.sqrt()
    sigmas = (1 - scheduler.alphas_cumprod).sqrt()

    def loss(step: int, generator: torch.Generator) -> Tensor:
        x, captions = random_pairs(pictures, latents, step / steps, generator)
        count = len(x)
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        high = torch.rand(count, generator=generator) < 0.7
        t = torch.where(
            high,
            torch.randint(600, 1000, (count,), generator=generator),
            torch.randint(0, 1000, (count,), generator=generator),
        )
        noise = torch.randn(x.shape, generator=generator)
        alpha, sigma = alphas[t].view(-1, 1, 1, 1), sigmas[t].view(-1, 1, 1, 1)
        prompt = text_encoder(ids).last_hidden_state
        predicted = unet(alpha * x + sigma * noise, t, prompt).sample
        return F.mse_loss(predicted, alpha * noise - sigma * x)

    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    snapshots = {step: partial(pipeline.save_pretrained, path) for step, path in stages.items()}
    seconds = Stage(
        "teacher",
        model,
        loss,
        steps=steps,
        learning_rate=1e-3,
        folder=folder,
        seed=seed,
        ema_decay=0.999,
        snapshots=snapshots,
    ).run()
    model.eval()
    return pipeline, seconds


def random_pairs(
    pictures: Pictures, latents: Tensor, progress: float, generator: torch.Generator, count: int = 64
) -> tuple[Tensor, list[str]]:
    """Latents and their captions, which early in training tell mostly "left of" and "above"."""
    scenes = torch.randint(len(pictures.scenes), (count,), generator=generator)
    numbers = torch.randint(latents.shape[1], (count,), generator=generator)
    forward_share = 0.85 - 0.35 * min(1.0, 2 * progress)
    captions = [random_caption(pictures.scenes[number], forward_share, generator) for number in scenes]
    return latents[scenes, numbers], captions


def random_caption(scene: world.Scene, forward_share: float, generator: torch.Generator) -> str:
    """A true caption of ``scene``: none at all in 5 of 100 (for guidance), without the relation in a quarter."""
    kind, told, template = torch.rand(3, generator=generator).tolist()
    if kind < 0.05:
        return ""
    plain = kind < 0.30
    templates = world.PLAIN_TEMPLATES if plain else world.RELATION_TEMPLATES
    forward = told < (0.5 if plain else forward_share)
    return (scene if forward else scene.mirrored()).caption(templates[int(template * len(templates))])


def new_clip(tokenizer: CLIPTokenizer, seed: int) -> CLIPModel:
    """A CLIP of 1.4 M weights for 32 x 32 pictures, freshly initialised, its temperature held while it trains."""
    torch.manual_seed(seed)
    text = text_config(tokenizer, max_length=77)
    vision = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": world.IMAGE_SIZE,
        "patch_size": 8,
        "projection_dim": 128,
    }
    clip = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision, projection_dim=128))
    clip.logit_scale.data.fill_(math.log(20))
    clip.logit_scale.requires_grad_(False)
    return clip


def image_embeds(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    return F.normalize(image_features(model, {"pixel_values": pixels}), dim=-1)


def text_embeds(model: PreTrainedModel, tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    return F.normalize(text_features(model, **caption_reader(model, tokenizer)(captions)), dim=-1)


def contrast(model: PreTrainedModel, images: Tensor, texts: Tensor) -> Tensor:
    """The model's own contrastive loss."""
    scale, bias = logit_scale(model), logit_bias(model)
    return contrastive_loss(images, texts, scale) if bias is None else sigmoid_loss(images, texts, scale, bias)


def train_composer(
    folder: Path, tokenizer: CLIPTokenizer, pictures: Pictures, seed: int, steps: int
) -> tuple[CLIPModel, float]:
    """A CLIP that composes: every batch holds each scene together with its swaps, so that order must be read."""
    clip = new_clip(tokenizer, seed + 2)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        numbers, captions = [], []
        bases = torch.randint(len(pictures.scenes), (20,), generator=generator).tolist()
        for place, base in enumerate(bases):
            recolored, exchanged, both = pictures.swaps(base)
            plain = place >= 12
            members = (base, recolored) if plain else (base, recolored, exchanged, both)
            templates = world.PLAIN_TEMPLATES if plain else world.RELATION_TEMPLATES
            template, told = torch.rand(2, generator=generator).tolist()
            for member in members:
                scene = pictures.scenes[member]
                scene = scene if told < 0.5 else scene.mirrored()
                captions.append(scene.caption(templates[int(template * len(templates))]))
                numbers.append(member)
        placements = torch.randint(pictures.pixels.shape[1], (len(numbers),), generator=generator)
        images = image_embeds(clip, pictures.take(torch.tensor(numbers), placements))
        return contrast(clip, images, text_embeds(clip, tokenizer, captions))

    stage = Stage("composer", clip, loss, steps=steps, learning_rate=1e-3, folder=folder, seed=seed)
    seconds = stage.run()
    whiten_text_projection(clip, tokenizer, pictures)
    return clip, seconds


@torch.no_grad()
def whiten_text_projection(clip: CLIPModel, tokenizer: CLIPTokenizer, pictures: Pictures, floor: float = 1e-4) -> None:
    """Spread the text embeddings evenly over the joint space, by a linear map folded into ``text_projection``.

    So small a world leaves them in a dozen directions, binding and layout in those of least variance. The embeddings of
    a CLIP trained on the web fill their space; afterwards these do too, and a caption and its swap stand apart.
    """
    captions = [caption for scene in pictures.scenes for caption in scene.captions()]
    batches = [captions[start : start + 256] for start in range(0, len(captions), 256)]
    embeds = torch.cat([text_embeds(clip, tokenizer, batch) for batch in batches]).double()
    moments, directions = torch.linalg.eigh(embeds.T @ embeds / len(embeds))
    scale = moments.clamp(min=floor * moments[-2]).rsqrt()  # the largest belongs to the mean
    whitening = (directions * scale) @ directions.T
    clip.text_projection.weight.copy_((whitening @ clip.text_projection.weight.double()).float())


def all_orders(pictures: Pictures, number: int, generator: torch.Generator) -> list[str]:
    """One true caption of a scene and the captions that the same words give in another order; the true one first."""
    kind, told, template = torch.rand(3, generator=generator).tolist()
    plain = kind < 0.4
    templates = world.PLAIN_TEMPLATES if plain else world.RELATION_TEMPLATES
    recolored, exchanged, both = pictures.swaps(number)
    orders = (number, recolored) if plain else (number, recolored, exchanged, both)
    scenes = [pictures.scenes[order] for order in orders]
    scenes = scenes if told < 0.5 else [scene.mirrored() for scene in scenes]
    return [scene.caption(templates[int(template * len(templates))]) for scene in scenes]


def train_student(
    folder: Path,
    composer: PreTrainedModel,
    tokenizer: CLIPTokenizer,
    pictures: Pictures,
    seed: int,
    steps: int,
    new: Callable[[CLIPTokenizer, int], PreTrainedModel] = new_clip,
) -> tuple[PreTrainedModel, float]:
    """A dual encoder whose text tower knows word order and whose image tower does not.

    The text tower is the composer's, frozen. The image tower starts anew and learns the mean of the text embeddings
    over the word orders of a scene's caption, so that a scene and its swaps look alike to it.
    """
    model = new(tokenizer, seed + 3)
    learned = composer.state_dict()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("text_"):
                parameter.copy_(learned[name]).requires_grad_(False)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        pixels, scenes, _ = random_pictures(pictures, 64, generator)
        orders = [all_orders(pictures, number, generator) for number in scenes.tolist()]
        with torch.no_grad():
            embeds = text_embeds(model, tokenizer, [caption for row in orders for caption in row])
        means = [part.mean(0) for part in embeds.split([len(row) for row in orders])]
        targets = F.normalize(torch.stack(means), dim=-1)
        images = image_embeds(model, pixels)
        apart = 1 - (images * targets).sum(-1).mean()
        return contrast(model, images, targets) + apart

    stage = Stage("student", model, loss, steps=steps, learning_rate=1e-3, folder=folder, seed=seed)
    seconds = stage.run()
    return model, seconds


def train_bag_of_words(
    folder: Path, tokenizer: CLIPTokenizer, pictures: Pictures, seed: int, steps: int
) -> tuple[CLIPModel, float]:
    """A CLIP that ignores order in both towers: each picture is paired with any order of its caption's words."""
    clip = new_clip(tokenizer, seed + 4)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        pixels, scenes, _ = random_pictures(pictures, 64, generator)
        captions = []
        for number in scenes.tolist():
            orders = all_orders(pictures, number, generator)
            captions.append(orders[int(torch.randint(len(orders), (), generator=generator))])
        images = image_embeds(clip, pixels)
        return contrast(clip, images, text_embeds(clip, tokenizer, captions))

    stage = Stage("student_bag_of_words", clip, loss, steps=steps, learning_rate=1e-3, folder=folder, seed=seed)
    return clip, stage.run()


def make_processor(tokenizer: CLIPTokenizer) -> CLIPProcessor:
    """The student's processor: 32 x 32 pixels scaled to [-1, 1], captions of up to 77 tokens."""
    size = {"height": world.IMAGE_SIZE, "width": world.IMAGE_SIZE}
    images = CLIPImageProcessorPil(
        size={"shortest_edge": world.IMAGE_SIZE}, crop_size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return CLIPProcessor(images, tokenizer)


ENGLISH = (
    "the of and to in is with on for from by at face hand person man woman people boy girl child baby animal dog cat "
    "bird fish horse house building tree flower plant food fruit car bus train plane boat road street water sky sun "
    "moon star rain snow cloud mountain beach field grass table chair bed door window room kitchen book clock phone "
    "computer ball game sport eye eyes mouth nose ear hair head heart smiling laughing crying open closed big small "
    "large little long short old young new black white orange brown pink grey dark light medium skin tone sign symbol "
    "button flag arrow mark letter number one two three four up down left right front back sitting standing walking "
    "running holding wearing looking playing eating riding next under over behind between near"
)


def report(folder: Path, seconds: dict[str, float], students: Sequence[str], pipeline: DiffusionPipeline) -> None:
    """Score what was made on the swapped pairs of unseen combinations, and draw samples of the teacher."""
    figures = {"seconds": {stage: round(value) for stage, value in seconds.items()}}
    teacher = DiffusionTeacher.from_pretrained(folder / "teacher", load_vae=True)
    scorers = {"teacher": DiffusionScorer(teacher, num_draws=11, timestep_range=(100, 990), weighting="velocity")}
    for name in students:
        scorers[name] = ClipScorer(*load_student(folder / name))
    runs = {name: evaluate_benchmarks(scorer, ["shapes:test"]) for name, scorer in scorers.items()}
    print(table(runs), flush=True)
    write_json(folder / "figures.json", figures | {"scores": runs})
    plot_samples(pipeline, folder / "samples.png")


def plot_samples(pipeline: DiffusionPipeline, path: Path) -> None:
    """Pictures that the teacher makes of captions of unseen combinations."""
    pipeline.set_progress_bar_config(disable=True)
    chosen = world.scenes("test")[::35][:6]
    captions = [
        (scene if number % 2 else scene.mirrored()).caption(world.RELATION_TEMPLATES[0])
        for number, scene in enumerate(chosen)
    ]
    figure, axes = plt.subplots(len(captions), 6, figsize=(10, 1.25 * len(captions)))
    for row, caption in zip(axes, captions, strict=True):
        images = pipeline(
            [caption] * len(row),
            num_inference_steps=30,
            guidance_scale=2.0,
            generator=torch.Generator().manual_seed(0),
        ).images
        for axis, image in zip(row, images, strict=True):
            axis.imshow(image)
            axis.axis("off")
        row[0].set_title(caption, loc="left", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/shapes_world"), help="where everything goes")
    parser.add_argument("--seed", type=int, default=0, help="of all weights, data and noise")
    parser.add_argument("--vae_steps", type=int, default=2500)
    parser.add_argument("--vae", help="pipeline whose autoencoder is taken, in place of one that is trained here")
    parser.add_argument("--teacher_steps", type=int, default=5000)
    parser.add_argument(
        "--teacher_stages",
        type=int,
        nargs="*",
        default=[],
        help="steps before which the teacher is saved as it then is",
    )
    parser.add_argument("--composer_steps", type=int, default=1500, help="of the CLIP whose text tower the student has")
    parser.add_argument("--student_steps", type=int, default=500)
    parser.add_argument("--bag_of_words_steps", type=int, default=1500)
    parser.add_argument(
        "--only_students", action="store_true", help="leave out what needs a teacher, which a second process may make"
    )
    args = parser.parse_args()
    install_quietly()
    folder, seed = args.output_dir, args.seed
    states = folder / "states"
    states.mkdir(parents=True, exist_ok=True)
    seconds = {}
    pictures = Pictures(per_scene=40, seed=seed)

    if not args.only_students:
        prompt_tokenizer = make_tokenizer(folder / "tokenizer", max_length=24)
        if args.vae is None:
            vae, seconds["vae"] = train_vae(states, pictures, seed, args.vae_steps)
        else:
            vae, seconds["vae"] = AutoencoderKL.from_pretrained(resolve(args.vae), subfolder="vae"), 0.0
            vae.eval().requires_grad_(False)
        stages = {step: folder / f"teacher-{step}" for step in args.teacher_stages}
        pipeline, seconds["teacher"] = train_teacher(
            states, vae, prompt_tokenizer, pictures, seed, args.teacher_steps, stages
        )
        pipeline.save_pretrained(folder / "teacher")
    tokenizer = make_tokenizer(folder / "tokenizer", max_length=77)
    processor = make_processor(tokenizer)
    composer, seconds["composer"] = train_composer(states, tokenizer, pictures, seed, args.composer_steps)
    student, seconds["student"] = train_student(states, composer, tokenizer, pictures, seed, args.student_steps)
    bag, seconds["bag"] = train_bag_of_words(states, tokenizer, pictures, seed, args.bag_of_words_steps)
    for name, clip in (("student", student), ("student_bag_of_words", bag)):
        clip.logit_scale.data.fill_(math.log(100))  # where OpenAI's CLIPs stand
        clip = clip.half() if clip is bag else clip  # half the size, to be part of the package
        clip.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    if not args.only_students:
        report(folder, seconds, ("student", "student_bag_of_words"), pipeline)


if __name__ == "__main__":
    main()
