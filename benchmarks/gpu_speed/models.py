"""Models of real sizes made of their configurations, with random weights, on the device itself; and batches for them."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from diffusers import DDPMScheduler
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPProcessor
from transformers.utils import is_torchvision_available

from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer
from sdsclip_hf.data.collator import PROMPTS
from sdsclip_hf.shapes import load_shapes, resolve
from sdsclip_hf.teachers.conditions import CAPTIONS, Conditions, as_bytes
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher
from sdsclip_hf.teachers.families.catalogue import FAMILIES
from sdsclip_hf.teachers.float16_gradients import Float16Gradients
from sdsclip_hf.teachers.schedule import discrete_schedule, flow_schedule

sys.path.append(str(Path(__file__).parents[2] / "tools"))
from teacher_costs import DENOISERS  # the configurations of checkpoints' denoisers

from gpu_speed.timing import seconds

LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
WIDE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY_UNET = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 2}
TINY_UNET |= {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "cross_attention_dim": 16}
TINY_UNET |= {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
TINY_SANA = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "caption_channels": 16}
TINY_SANA |= {"num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16}
TINY_SD3 = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "caption_projection_dim": 16}
TINY_SD3 |= {"joint_attention_dim": 16, "pooled_projection_dim": 8, "sample_size": 8, "pos_embed_max_size": 96}
SD_15 = "SD 1.5"
# By what they are called: the checkpoint, and what of its denoiser's configuration and prompts is smaller in a rehearsal.
TEACHERS = {
    SD_15: ("stable-diffusion-v1-5/stable-diffusion-v1-5", TINY_UNET, {"encoder_hidden_states": (7, 16)}),
    "SDXL": (
        "stabilityai/stable-diffusion-xl-base-1.0",
        TINY_UNET | {"transformer_layers_per_block": 1, "projection_class_embeddings_input_dim": 6 * 256 + 8},
        {"encoder_hidden_states": (7, 16), "text_embeds": (8,)},
    ),
    "SD 3.5 medium": (
        "stabilityai/stable-diffusion-3.5-medium",
        TINY_SD3 | {"dual_attention_layers": ()},
        {"encoder_hidden_states": (7, 16), "pooled_projections": (8,)},
    ),
    "SANA": (
        "Efficient-Large-Model/Sana_600M_512px_diffusers",
        TINY_SANA,
        {"encoder_hidden_states": (7, 16), "encoder_attention_mask": (7,)},
    ),
}


@dataclass(frozen=True)
class Size:
    """How large the models are, and what is measured with them.

    Args:
        students: the configurations of CLIPs, by their names.
        is_tiny: whether teachers are as small as in a rehearsal.
        latents: height and width of z0, the first of them in training.
        batches: pairs of a batch that are tried, up to the first that does not fit.
        contrastive: pairs of a mini-batch, and of the whole batch of GradCache.
        scored: pairs of a picture and a caption in one draw, and the most of them at once.
        pictures: of an evaluation.
        tokens: of a caption.
        matrix: rows of the matrices by whose product the device's rate is measured.
        pairs: of the batch on which the options are compared.
    """

    students: dict[str, dict]
    is_tiny: bool
    latents: tuple[int, ...]
    batches: tuple[int, ...]
    contrastive: tuple[int, int]
    scored: tuple[int, int]
    pictures: int
    tokens: int
    matrix: int
    pairs: int


SIZES = {
    "real": Size(
        students={
            "ViT-B/32": {"projection_dim": 512},
            "ViT-B/16": {"projection_dim": 512, "vision_config": {"patch_size": 16}},
            "ViT-L/14": {"projection_dim": 768, "text_config": WIDE, "vision_config": LARGE | {"patch_size": 14}},
        },
        is_tiny=False,
        latents=(64, 32),
        batches=(16, 32, 128, 512, 2048),
        contrastive=(512, 4096),
        scored=(128, 64),
        pictures=2048,
        tokens=77,
        matrix=8192,
        pairs=32,
    ),
    "tiny": Size(
        students={"tiny": {"projection_dim": 16, "text_config": TINY, "vision_config": TINY | {"image_size": 32}}},
        is_tiny=True,
        latents=(8,),
        batches=(2, 4),
        contrastive=(2, 4),
        scored=(4, 2),
        pictures=4,
        tokens=7,
        matrix=64,
        pairs=2,
    ),
}


class BareTeacher(DiffusionTeacher):
    """A denoiser of a checkpoint's size with random weights, and prompts of noise in place of its text encoders'.

    Args:
        name: of TEACHERS.
        latent_size: height and width of z0.
        dtype, device: of the weights.
        is_tiny: whether it is one for a rehearsal.
    """

    def __init__(self, name: str, latent_size: int, dtype: torch.dtype, device: torch.device, is_tiny: bool = False):
        nn.Module.__init__(self)
        checkpoint, smaller, told = TEACHERS[name]
        kind, options, shapes = DENOISERS[checkpoint]
        self.told = told if is_tiny else shapes
        family = next(one for one in FAMILIES if checkpoint in [known.name for known in one.known])
        with torch.device(device):
            denoiser = kind(**(options | smaller if is_tiny else options))
        self.denoiser = denoiser if dtype == torch.float32 else denoiser.to(dtype)
        parts = {family.denoiser_part: self.denoiser, "vae": None, "components": {}}
        self.family = family(SimpleNamespace(**parts, vae_scale_factor=32 if name == "SANA" else 8))
        betas = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        self.schedule = flow_schedule(lambda sigmas: sigmas) if family.is_flow else discrete_schedule(betas)
        self.schedule.to(device)
        self.vae = self.quantization = self._turns = None
        self._float16_gradients = Float16Gradients()
        self.prediction_type, self.name_or_path = self.schedule.prediction_type, name
        self.latent_shape, self._is_channels_last = (self.family.latent_channels, latent_size, latent_size), False
        self.requires_grad_(False)
        self.eval()

    def encode_captions(self, captions: Sequence[str], batch_size: int | None = None) -> Conditions:
        """Noise of the shapes that the family's text encoders give."""
        return {
            name: torch.ones(len(captions), *shape, device=self.device, dtype=torch.bool)
            if "mask" in name
            else torch.randn(len(captions), *shape, device=self.device, dtype=self.dtype)
            for name, shape in self.told.items()
        }


@dataclass
class Bench:
    """What the rows share.

    Args:
        device: that is measured.
        size: of the models.
        folder: for what trainers want to write.
        dtype: of the student's passes and the teacher's weights.
        rate: operations a second that the device reaches on matrices of that type.
        repeats, warm_up: of what is timed.
    """

    device: torch.device
    size: Size
    folder: Path
    dtype: torch.dtype
    rate: float
    repeats: int = 5
    warm_up: int = 2

    def timed(self, run: Callable[[], object]) -> dict:
        """The median of a run's seconds, and their spread."""
        return seconds(run, self.device, self.repeats, self.warm_up)

    def student(self, name: str) -> CLIPModel:
        with torch.device(self.device):
            return CLIPModel(self.student_config(name))

    def student_config(self, name: str) -> CLIPConfig:
        options, processor = self.size.students[name], self.processor(224)
        special = {
            f"{kind}_token_id": getattr(processor.tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")
        }
        return CLIPConfig(**options | {"text_config": special | options.get("text_config", {})})

    def processor(self, edge: int) -> CLIPProcessor:
        sizes = {"size": {"shortest_edge": edge}, "crop_size": {"height": edge, "width": edge}}
        tokenizer = CLIPProcessor.from_pretrained(resolve("shapes/student")).tokenizer
        pil = "" if is_torchvision_available() else "Pil"  # as AutoProcessor chooses
        return CLIPProcessor(getattr(transformers, f"CLIPImageProcessor{pil}")(**sizes), tokenizer)

    def teacher(
        self, name: str = SD_15, latent_size: int | None = None, dtype: torch.dtype | None = None
    ) -> BareTeacher:
        latent_size = latent_size or self.size.latents[0]
        return BareTeacher(name, latent_size, dtype or self.dtype, self.device, self.size.is_tiny)

    def config(self, **options) -> SDSCLIPConfig:
        """Of a run that writes nothing, in bf16 where the device is a GPU that has it."""
        off = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "health_steps": 0, "max_steps": 10}
        return SDSCLIPConfig(output_dir=str(self.folder), **off | {"learning_rate": 1e-6} | options)

    def trainer(self, student: CLIPModel, teacher: BareTeacher | None = None, **options) -> SDSCLIPTrainer:
        """A trainer that is ready for steps of [`training_step`]."""
        if teacher is not None:
            options["teacher_dtype"] = str(teacher.dtype).removeprefix("torch.")
        config = self.config(**{"lambda_sds": float(teacher is not None)} | options)
        processor = self.processor(student.config.vision_config.image_size)
        few = {} if config.ranking_scores else {"per_scene": 1}  # the bundled scores tell of all
        data = load_shapes("train", **few)
        trainer = SDSCLIPTrainer(student, config, teacher, data, processing_class=processor)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        trainer.model = trainer.accelerator.prepare(trainer.model)  # in the precision of the run
        trainer.create_optimizer_and_scheduler(10)
        trainer.optimizer = trainer.accelerator.prepare(trainer.optimizer)
        return trainer

    def batch(self, trainer: SDSCLIPTrainer, rows: int, candidates: int = 0) -> dict[str, Tensor]:
        """Noise for pictures, and captions of random words, in the collator's form: on the CPU, pinned for a GPU."""
        config, tokens = trainer.student.config, self.size.tokens
        edge, end = config.vision_config.image_size, config.text_config.eos_token_id
        pixels = torch.randn(min(rows, 64), 3, edge, edge)[torch.arange(rows) % 64]  # much noise takes long to draw
        batch: dict[str, Any] = {"pixel_values": pixels, **_texts((rows,), tokens, end)}
        batch |= {"picture_keys": torch.arange(1, rows + 1), "caption_keys": torch.arange(1, rows + 1)[:, None]}
        if trainer.teacher is not None:
            batch |= {f"{PROMPTS}{CAPTIONS}": as_bytes([f"caption {row}" for row in range(rows)])[CAPTIONS]}
        if candidates:
            batch |= {f"candidate_{name}": part for name, part in _texts((rows, candidates), tokens, end).items()}
            own = torch.arange(candidates).expand(rows, candidates) == 0
            batch["candidate_input_ids"][own] = batch["input_ids"]
            batch |= {"candidate_errors": torch.rand(rows, candidates), "candidate_is_own": own}
            batch |= {"candidate_confidence": torch.ones(rows)}
            batch["candidate_keys"] = torch.arange(1, rows * candidates + 1).view(rows, candidates)
        return {name: part.pin_memory() if self.device.type == "cuda" else part for name, part in batch.items()}


def _texts(shape: tuple[int, ...], tokens: int, end: int) -> dict[str, Tensor]:
    ids = torch.randint(3, min(end, 1000), (*shape, tokens))
    ids[..., -1] = end
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def training_step(trainer: SDSCLIPTrainer, batch: dict[str, Tensor]) -> None:
    """What Trainer's loop does in a step, from a batch in the loader's hands to new weights."""
    trainer.training_step(trainer.model, batch)
    trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
    trainer.optimizer.step()
    trainer.model.zero_grad()
