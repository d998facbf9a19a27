"""What is measured with: models with random weights in the standard formats, pictures, and trainers of them."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
)

from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer
from sdsclip_hf.shapes import load_shapes, resolve
from sdsclip_hf.students.sdsclip_model import load_clip
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher
from training_speed.measure import in_fresh_process

SMALL = "a CLIP 384 wide and 6 layers deep"  # of which a batch of 512 fits into 16 GiB


def _tower(width: int, layers: int, heads: int) -> dict:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


@dataclass(frozen=True)
class Size:
    """How large the models and batches are.

    Args:
        students: the image tower, the text tower and the image size of each random CLIP, by name.
        prompts: the teacher's text encoder.
        unet, vae: options of the teacher's other parts.
        latent: height and width of z0 where nothing else is said.
        batch: pairs of a batch with the random teacher.
        latents, batches: those that step time and memory are measured over.
        contrastive: pairs of a mini-batch and of the whole batch of GradCache.
        scored: pictures, and draws of each of their four captions, of the row that scores.
        steps: of a run of the random students without a teacher, and of the bundled ones.
    """

    students: dict[str, tuple[dict, dict, int]]
    prompts: dict
    unet: dict
    vae: dict
    latent: int
    batch: int
    latents: tuple[int, ...]
    batches: tuple[int, ...]
    contrastive: tuple[int, int]
    scored: tuple[int, int]
    steps: tuple[int, int]


SIZES = {
    "real": Size(
        students={
            "ViT-B/32": (_tower(768, 12, 12), _tower(512, 12, 8), 224),
            SMALL: (_tower(384, 6, 6), _tower(384, 6, 6), 224),
        },
        prompts=_tower(768, 12, 12),
        unet={"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},  # 859,520,964 weights
        vae={"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512},
        latent=32,
        batch=2,
        latents=(16, 32, 64),
        batches=(2, 4, 8),
        contrastive=(32, 512),
        scored=(2, 10),
        steps=(4, 60),
    ),
    "tiny": Size(
        students={name: (_tower(32, 2, 2), _tower(32, 2, 2), 64) for name in ("ViT-B/32", SMALL)},
        prompts=_tower(16, 1, 2),
        unet={
            "sample_size": 8,
            "cross_attention_dim": 16,
            "attention_head_dim": 2,
            "block_out_channels": (8, 16),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
            "norm_num_groups": 4,
        },
        vae={"block_out_channels": (8, 8), "norm_num_groups": 4, "sample_size": 16},
        latent=4,
        batch=2,
        latents=(4, 8),
        batches=(2, 4),
        contrastive=(4, 16),
        scored=(2, 2),
        steps=(1, 1),
    ),
}


@dataclass(frozen=True)
class Bench:
    """A folder that receives the random models when they are first asked for, how large they are, and how often to measure.

    Args:
        folder: is there.
        size_name: of SIZES.
        pairs: rounds of each comparison.
    """

    folder: Path
    size_name: str = "real"
    pairs: int = 3

    @property
    def size(self) -> Size:
        """How large the models and batches are."""
        return SIZES[self.size_name]

    def student(self, name: str = "ViT-B/32") -> str:
        """The folder of a CLIP: a random one of ``size.students``, or a bundled one."""
        if name not in self.size.students:
            return resolve(name)
        return self._made(name, _make_student, *self.size.students[name])

    def teacher(self) -> str:
        """The folder of the random teacher, a whole pipeline in Stable Diffusion's layout."""
        return self._made("teacher", _make_teacher, self.size)

    def load_teacher(self, **options) -> DiffusionTeacher:
        """The random teacher, for latents of ``size.latent``."""
        return DiffusionTeacher.from_pretrained(self.teacher(), latent_size=self.size.latent, **options)

    def _made(self, name: str, make: Callable, *arguments) -> str:
        folder = self.folder / name.replace("/", "-")
        if not folder.exists():
            partial = folder.with_name(f"{folder.name}.partial")
            in_fresh_process(make, partial, *arguments)  # which leaves no memory behind
            partial.rename(folder)
        return str(folder)

    def trainer(
        self,
        student: str = "ViT-B/32",
        teacher: DiffusionTeacher | str | None = None,
        steps: int = 1,
        data: datasets.Dataset | None = None,
        **options,
    ) -> SDSCLIPTrainer:
        """A trainer that saves and logs nothing; without a teacher L_SDS is off.

        Args:
            student: see [`student`].
            teacher: a teacher, the folder of one, or ``random``.
            steps: of a run.
            data: what it trains on; default: a picture of each scene of the shapes world, or for the random teacher
                [`photos`].
            options: of SDSCLIPConfig.
        """
        options = {"learning_rate": 1e-6, "health_steps": 0, "lambda_sds": float(teacher is not None)} | options
        if teacher == "random":
            teacher, options = self.teacher(), {"latent_size": self.size.latent} | options
        if data is None:
            folder = getattr(teacher, "name_or_path", teacher)
            is_random = folder is not None and Path(folder).parent == self.folder
            data = photos(16) if is_random else load_shapes("train", per_scene=1)
        config = SDSCLIPConfig(
            output_dir=str(self.folder / "run"),
            use_cpu=True,
            max_steps=steps,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **options,
        )
        clip, processor = load_clip(self.student(student))
        return SDSCLIPTrainer(clip, config, teacher, train_dataset=data, processing_class=processor)


def photos(count: int) -> datasets.Dataset:
    """Pictures as large as COCO's, JPEG files of smooth noise in memory, each with a caption and three others."""
    rng = np.random.default_rng(0)
    captions = [texts[0] for texts in load_shapes("train", per_scene=1)["caption"]]
    rows = []
    for _ in range(count):
        file = io.BytesIO()
        coarse = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        own, *others = rng.choice(captions, 4, replace=False).tolist()
        rows.append({"image": {"bytes": file.getvalue()}, "caption": own, "others": others})
    return datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())


def _tokenizer():
    return CLIPProcessor.from_pretrained(resolve("shapes/student")).tokenizer


def _text(tower: dict, **options) -> dict:
    """Of a text tower for the bundled student's tokenizer, with CLIP's vocabulary and length."""
    tokenizer = _tokenizer()
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return tower | special | options


def _make_student(folder: Path, vision: dict, text: dict, image_size: int) -> None:
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=_text(text), vision_config=vision | {"image_size": image_size, "patch_size": 32}, projection_dim=512
    )
    CLIPModel(config).save_pretrained(folder)
    edges = {"size": {"shortest_edge": image_size}, "crop_size": {"height": image_size, "width": image_size}}
    CLIPProcessor(CLIPImageProcessorPil(**edges), _tokenizer()).save_pretrained(folder)


def _make_teacher(folder: Path, size: Size) -> None:
    torch.manual_seed(0)
    blocks = len(size.vae["block_out_channels"])
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            latent_channels=4,
            **size.vae,
        ),
        text_encoder=CLIPTextModel(CLIPTextConfig(**_text(size.prompts))),
        tokenizer=_tokenizer(),
        unet=UNet2DConditionModel(**size.unet),
        scheduler=PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
