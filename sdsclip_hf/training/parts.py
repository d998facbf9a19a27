"""What a trainer is put together from, as its arguments tell: student, teacher, scores and datasets."""

import logging
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend, TorchDynamoPlugin
from peft import PeftConfig
from transformers import BaseImageProcessor, PreTrainedModel, Trainer, get_scheduler

from sdsclip_hf import shapes
from sdsclip_hf.common.checkpoints import fingerprint
from sdsclip_hf.config import SDSCLIPConfig
from sdsclip_hf.data.captioned_images import CaptionedImages, ImageCaptionDataset
from sdsclip_hf.data.decoded import check_preparing
from sdsclip_hf.data.images import BAD_IMAGES_FILE, BadImages
from sdsclip_hf.data.scores import CandidateScores
from sdsclip_hf.data.streams import EndlessStream, StreamingImageCaptionDataset, as_training_data
from sdsclip_hf.students.latent_mapper import LatentMapper
from sdsclip_hf.students.loading import embed_dim
from sdsclip_hf.students.sdsclip_model import SDSCLIPModel
from sdsclip_hf.teachers.conditions import Conditions, rows_of
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher
from sdsclip_hf.teachers.prompt_cache import PromptCache
from sdsclip_hf.training.contrastive import contrastive_form
from sdsclip_hf.training.sharding import shard_teacher

logger = logging.getLogger(__name__)

# What PEFT notes of the model and of itself.
FILLED_IN_BY_PEFT = {
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "auto_mapping",
    "inference_mode",
    "task_type",
}
SAME_GRADIENT, SAME_GRADIENT_ROUGHLY = 1e-3, 0.1  # in float32 and in less


class DatasetMaker:
    """Wraps ``datasets`` datasets by the columns that the arguments name; leaves what is wrapped already.

    Raises:
        ValueError: pictures are to be prepared on a device on which the image processor cannot; or, of a call, those of a
            stream to be kept in memory.
    """

    def __init__(
        self,
        args: SDSCLIPConfig,
        image_processor: BaseImageProcessor,
        scores: CandidateScores | None,
        with_candidates: bool,
    ):
        self.args, self.image_processor = args, image_processor
        self.scores, self.with_candidates = scores, with_candidates
        if args.preprocess_on_device:
            check_preparing(image_processor, args.device)

    def __call__(self, dataset, training: bool = False):
        if dataset is None or isinstance(dataset, CaptionedImages):
            return dataset
        if isinstance(dataset, dict):
            return {name: self(part, training) for name, part in dataset.items()}
        if isinstance(dataset, datasets.IterableDataset) and training and self.args.shuffle_buffer_size:
            dataset = dataset.shuffle(seed=self.args.seed, buffer_size=self.args.shuffle_buffer_size)
        if training and self.args.lambda_images and self.args.negative_image_column is None:
            raise ValueError(
                "lambda_images is above 0, but there are no wrong pictures; give --negative_image_column the column of them."
            )
        kept = {}
        if self.args.keep_images_in_memory:
            if isinstance(dataset, datasets.IterableDataset):
                raise ValueError(
                    "keep_images_in_memory keeps the pictures of a dataset by their rows, which a stream has not; leave "
                    "it out, or leave out --streaming."
                )
            kept = {"image_processor": self.image_processor}
        return as_training_data(
            dataset,
            image_column=self.args.image_column,
            caption_column=self.args.caption_column,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            # Training is not to be lost by what only evaluation reads.
            bad_images=BadImages(
                self.args.max_bad_images if training else None, Path(self.args.output_dir) / BAD_IMAGES_FILE
            ),
            for_evaluation=not training,
            scores=self.scores if training else None,
            with_candidates=self.with_candidates,
            num_candidates=self.args.ranking_candidates,
            negative_column=self.args.negative_image_column if training and self.args.lambda_images else None,
            **kept,
        )


def lengths(train_dataset, eval_dataset) -> dict[str, int | None]:
    """The rows of each dataset, None of a stream."""
    sets = {"train_dataset": train_dataset}
    sets |= eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}
    return {name: len(part) if hasattr(part, "__len__") else None for name, part in sets.items()}


def endless_share(
    stream: StreamingImageCaptionDataset, args: SDSCLIPConfig, batch_size: int, passed_over: int = 0
) -> EndlessStream:
    """What this process reads of a stream, without end.

    Args:
        stream: the whole stream, shuffled alike on all processes.
        args: how many processes and loader workers there are.
        batch_size, passed_over: see [`EndlessStream`].

    Raises:
        ValueError: accelerate is told to deal out the data itself, or loader workers would have nothing to read.
    """
    if args.accelerator_config.dispatch_batches or args.accelerator_config.split_batches:
        raise ValueError(
            "each process reads its own share of a stream, so that accelerator_config cannot have dispatch_batches or "
            "split_batches; leave them out."
        )
    share = stream.share(args.process_index, args.world_size)
    if args.dataloader_num_workers > share.num_shards:
        raise ValueError(
            f"dataloader_num_workers is {args.dataloader_num_workers}, but the stream has {share.num_shards} shards (files) "
            f"for each of {args.world_size} processes, and a worker reads whole ones; set --dataloader_num_workers to at "
            f"most {share.num_shards}, or spread the data over more files."
        )
    return EndlessStream(share, batch_size, passed_over)


def load_teacher(teacher: DiffusionTeacher | str | None, args: SDSCLIPConfig) -> DiffusionTeacher | None:
    """The teacher, where ``args`` have a term that needs it.

    Raises:
        OSError: it cannot be loaded.
        ValueError: there is none, or it does not fit ``args``.
    """
    if args.lambda_sds == 0:
        args.sds_weighting = args.sds_weighting or "constant"
        return None
    if teacher is None:
        raise ValueError(
            "lambda_sds is above 0, but there is no teacher; give --teacher_name_or_path or --lambda_sds 0."
        )
    _check_form(args)
    if isinstance(teacher, (str, Path)):
        teacher = DiffusionTeacher.from_pretrained(
            shapes.resolve(teacher),
            dtype=args.teacher_dtype,
            latent_size=args.latent_size,
            revision=args.teacher_revision,
            variant=args.teacher_variant,
            quantization=args.teacher_quantization,
        )
    if args.latent_size not in (None, teacher.latent_shape[1]):
        raise ValueError(
            f"latent_size {args.latent_size} differs from the given teacher's {teacher.latent_shape[1]}; pass it to "
            "DiffusionTeacher.from_pretrained instead."
        )
    dtype = str(teacher.dtype).removeprefix("torch.")
    if args.takes_given_dtype:
        args.teacher_dtype = dtype
    if args.teacher_dtype != dtype:
        raise ValueError(
            f"teacher_dtype {args.teacher_dtype} differs from the given teacher's {dtype}; set --teacher_dtype to what the "
            "teacher was loaded in."
        )
    if args.timestep_range is not None:
        teacher.check_timestep_range(args.timestep_range)
    args.sds_weighting = args.sds_weighting or teacher.schedule.default_weighting
    return teacher


def _check_form(args: SDSCLIPConfig) -> None:
    """Raise ValueError where the teacher is to be kept in a form that does not serve what is asked of it."""
    bits, offload, full = args.teacher_quantization, args.teacher_offload, args.sds_gradient == "full"
    if args.shard_teacher and (bits or offload):
        raise ValueError(
            "shard_teacher deals out weights row by row; leave --teacher_quantization and --teacher_offload out beside it."
        )
    if bits and full:
        raise ValueError(
            f"teacher_quantization {bits} rounds the weights that the full gradient goes through; give --sds_gradient "
            "stop_gradient, or leave it out."
        )
    if offload == "group" and full:
        raise ValueError(
            "teacher_offload group takes a block away before the full gradient comes back to it; give --sds_gradient "
            "stop_gradient, or --teacher_offload model."
        )
    if offload and args.prompt_cache_dir is None:
        raise ValueError(
            "teacher_offload would bring the text encoders back at each step; give --prompt_cache_dir, so that all captions "
            "are encoded before the first."
        )
    if offload == "group" and args.teacher_compile:
        raise ValueError(
            "teacher_compile wants the whole denoiser in place; leave --teacher_offload group out beside it."
        )


def place_teacher(teacher: DiffusionTeacher, args: SDSCLIPConfig, told: Conditions | None = None) -> None:
    """Bring the teacher to this process's device, in the form in which ``args`` ask it to compute.

    Args:
        teacher: perhaps without its text encoders.
        args: of the run.
        told: what its denoiser is told of one caption; needed where the encoders are gone.

    Raises:
        ValueError: it is to be split over one process, or ``torch.compile`` gets its gradient wrong.
    """
    if args.shard_teacher:
        shard_teacher(teacher, args.device, args.world_size)
    packs = args.teacher_pack_weights and args.sds_gradient == "stop_gradient"
    teacher.place(args.device, args.teacher_offload).speed_up(
        gradient_checkpointing=args.teacher_gradient_checkpointing,
        channels_last=args.teacher_channels_last,
        compiled=args.teacher_compile,
        packed=packs and not args.shard_teacher,  # of which no process has all
    )
    if args.teacher_compile and args.sds_gradient == "full" and not args.shard_teacher:
        told = told or teacher.encode_captions(["a photo"])
        _check_compiled(teacher, rows_of(told, torch.zeros(args.per_device_train_batch_size, dtype=torch.long)))


def _check_compiled(teacher: DiffusionTeacher, prompts: Conditions) -> None:
    """Raise ValueError where the compiled denoiser has another gradient than the plain one, on a batch of noise.

    PyTorch 2.13 does so on CPUs, for denoisers of Stable Diffusion 1.5's size and smaller; nothing else shows it.
    """
    draw, pairs = torch.Generator().manual_seed(0), len(next(iter(prompts.values())))
    like = {"device": teacher.device, "dtype": teacher.dtype}
    latents, direction = (torch.randn(pairs, *teacher.latent_shape, generator=draw).to(**like) for _ in range(2))
    timesteps = torch.linspace(*teacher.schedule.default_range, pairs).long().to(teacher.device)
    gradients, compiled = [], teacher.denoiser._compiled_call_impl
    for call in (None, compiled):
        teacher.denoiser._compiled_call_impl = call
        noisy = latents.clone().requires_grad_()
        predicted = teacher.predict(noisy, timesteps, prompts)
        gradients.append(torch.autograd.grad((predicted * direction).float().sum(), noisy)[0].float())
    plain, compiled = gradients
    difference = ((compiled - plain).norm() / plain.norm()).item()
    if not difference < (SAME_GRADIENT if teacher.dtype == torch.float32 else SAME_GRADIENT_ROUGHLY):
        raise ValueError(
            f"torch.compile of PyTorch {torch.__version__} computes another gradient for this denoiser, {difference:.1%} "
            "away from the right one; leave --teacher_compile out, or take --sds_gradient stop_gradient, which needs none."
        )


def cache_prompts(teacher: DiffusionTeacher, train_dataset, eval_dataset, args: SDSCLIPConfig) -> PromptCache:
    """The teacher's prompts of all captions of the datasets, on disk.

    Raises:
        ValueError: one of them is a stream.
    """
    evaluation = eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]
    captions: list[str] = []
    for part in (train_dataset, *evaluation):
        if part is not None and not isinstance(part, ImageCaptionDataset):
            raise ValueError(
                "prompt_cache_dir needs all captions before the run, which a stream does not tell; leave it out, or "
                "leave out --streaming."
            )
        captions += part.captions() if part is not None else []
    return PromptCache.build(args.prompt_cache_dir, teacher, captions)


def load_scores(teacher: DiffusionTeacher | None, given, args: SDSCLIPConfig) -> CandidateScores | None:
    """The scores that ``args`` name, checked for what is to be done with them.

    Args:
        teacher: the one in memory, if any.
        given: the one that the caller gave, perhaps by its name alone.
        args: where the scores stand, and the terms' weights.

    Raises:
        OSError: the scores cannot be loaded.
        ValueError: they order nothing, or another teacher made them.
    """
    if args.ranking_scores is None:
        return None
    scores = CandidateScores.load(args.ranking_scores, args.ranking_scores_revision)
    if not (args.lambda_rank or args.hard_negatives):
        logger.warning(
            "--ranking_scores is given, but --lambda_rank is 0 and --hard_negatives off: the scores choose captions alone."
        )
    if args.lambda_rank and args.ranking_targets == "teacher":
        scores.check_ranked()
        if teacher is not None:
            scores.check_teacher(teacher.name_or_path, fingerprint(teacher.denoiser), str(teacher.dtype))
        elif isinstance(given, (str, Path)):
            scores.check_teacher(str(given))  # it is not loaded, so that its name must do
    return scores


def make_student(
    clip: PreTrainedModel, teacher: DiffusionTeacher | None, args: SDSCLIPConfig, peft_config
) -> SDSCLIPModel:
    """CLIP with what of it trains, and with a latent mapper where there is a teacher."""
    mapper = None
    if teacher is not None:
        mapper = LatentMapper(
            embed_dim(clip.config), teacher.latent_shape, unit_rms=args.mapper_unit_rms, scale=args.mapper_scale
        )
    return SDSCLIPModel(
        clip,
        mapper,
        trainable=args.trainable,
        train_vision=args.train_vision,
        train_text=args.train_text,
        train_projections=args.train_projections,
        train_logit_scale=args.train_logit_scale,
        train_logit_bias=args.train_logit_scale and contrastive_form(clip, args) == "sigmoid",
        peft_config=peft_config,
        lora_r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        lora_target_modules=None if args.lora_target_modules is None else tuple(args.lora_target_modules),
    )


def compile_student(student: SDSCLIPModel, accelerator: Accelerator, args: SDSCLIPConfig) -> None:
    """Have the student compiled where ``torch_compile`` asks for it, tower by tower in place of accelerate's whole.

    Args:
        student: of the run.
        accelerator: of the run, which then compiles nothing.
        args: ``torch_compile_backend`` and ``torch_compile_mode``; where they say nothing, accelerate's launcher may.
    """
    asked = TorchDynamoPlugin(backend=args.torch_compile_backend, mode=args.torch_compile_mode)
    accelerator.state.dynamo_plugin.backend = DynamoBackend.NO
    if args.tf32 is False:
        torch.backends.cuda.matmul.allow_tf32 = False  # which accelerate switches on for whatever is compiled
    if asked.backend != DynamoBackend.NO:
        student.compile_towers(backend=asked.backend.value.lower(), mode=asked.mode)


def check_optimizer(args: SDSCLIPConfig) -> None:
    """Make the optimiser and the schedule of a single weight, so that what cannot be made is told before a run begins.

    Raises:
        ValueError: the options do not fit the optimiser or the schedule; it names them.
    """
    weight = torch.nn.Parameter(torch.zeros(1, 1))
    optim, schedule = (getattr(name, "value", name) for name in (args.optim, args.lr_scheduler_type))
    try:
        make, options = Trainer.get_optimizer_cls_and_kwargs(args)
        optimizer = make([weight], **options)
    except ImportError:
        raise
    except Exception as error:  # each optimiser has its own words for what it cannot be
        raise ValueError(f"--optim {optim} cannot be made of --optim_args {args.optim_args}: {error}") from error
    try:
        get_scheduler(args.lr_scheduler_type, optimizer, 1, 10, args.lr_scheduler_kwargs)
    except Exception as error:
        raise ValueError(
            f"--lr_scheduler_type {schedule} cannot be made of --lr_scheduler_kwargs "
            f"{args.lr_scheduler_kwargs}: {error}"
        ) from error


def peft_settings(peft_config: PeftConfig | None) -> dict | None:
    """What of a PEFT configuration decides the result, alike in every process, and before and after PEFT has used it."""
    if peft_config is None:
        return None
    kept = {name: value for name, value in peft_config.to_dict().items() if name not in FILLED_IN_BY_PEFT}
    return {
        name: sorted(value) if isinstance(value, (set, frozenset)) else getattr(value, "value", value)
        for name, value in sorted(kept.items())
    }
