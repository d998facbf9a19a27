"""Every knob of a run: [`transformers.TrainingArguments`] and what the method adds to it."""

from dataclasses import dataclass, fields
from typing import Literal, cast

from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from sdsclip_hf.common.devices import OneGpu, launch_on_cpus
from sdsclip_hf.common.precision import Dtype, settle_precision
from sdsclip_hf.config.checks import check
from sdsclip_hf.config.knobs import Trainable, knob
from sdsclip_hf.contrastive_losses import ContrastiveForm
from sdsclip_hf.losses import Gradient, RankingForm, RankingTargets, Reading, Weighting


@dataclass
class SDSCLIPConfig(OneGpu, TrainingArguments):
    """The arguments of [`SDSCLIPTrainer`]. See ``metadata["help"]`` of each field, or ``recipes/finetune.py --help``.

    Raises:
        ValueError: a value outside its range.

    Example:

    ```python
    from sdsclip_hf import SDSCLIPConfig

    args = SDSCLIPConfig(output_dir="outputs/mine", trainable="lora", lambda_sds=0.5, max_steps=100)
    print(args.lambda_clip, args.lambda_sds, args.lambda_rank)  # 1.0 0.5 0.0
    ```
    """

    # Values that differ from TrainingArguments' own.
    per_device_train_batch_size: int = knob(
        32, "Pairs in a batch on each device; each caption's negatives are the others."
    )
    per_device_eval_batch_size: int = knob(32, "Pairs in an evaluation batch on each device; the loss depends on it.")
    logging_steps: float = knob(10, "Log every so many optimiser steps (below 1: as a share of all steps).")
    logging_nan_inf_filter: bool = knob(False, "Hide NaN and infinite losses from the logs; here they stop the run.")
    dataloader_drop_last: bool = knob(
        True, "Drop the last incomplete batch, whose contrastive loss has fewer negatives."
    )
    remove_unused_columns: bool = knob(False, "Must stay off: the collator makes the model's inputs from raw columns.")

    precision: Literal["auto", "as_given"] = knob(
        "auto", "Without bf16 or fp16: auto takes on a GPU bf16, or fp16 where it has no other; as_given is float32."
    )

    # The contrastive loss.
    lambda_clip: float = knob(
        1.0,
        "Weight of the contrastive term L_CLIP, without unit. 0 trains by the other terms alone; it is computed and logged "
        "all the same.",
    )
    contrastive_form: ContrastiveForm = knob(
        "auto",
        "Form of L_CLIP: the softmax over all captions and images (CLIP), or the sigmoid of each pair with the model's bias "
        "(SigLIP); auto: the one that the model was trained by.",
    )
    contrastive_batch_size: int | None = knob(
        None,
        "Pairs of which each is a negative of the others, over all processes, encoded by mini-batches of "
        "per_device_train_batch_size (GradCache): a multiple of that times the processes. Default: no more than those.",
    )
    contrastive_chunk_size: int | None = knob(
        None, "Rows of the similarities that the contrastive loss holds in memory at once; default: all."
    )
    local_negatives: bool = knob(
        False, "Take negatives from the own process alone; default: from all processes, which is one large batch."
    )
    mask_duplicates: bool = knob(
        True,
        "Leave out of the contrastive loss what is no negative: rows of a batch that share a picture or a caption, and hard "
        "negatives that are a caption of the image. Off, as in CLIP, every other row is a negative.",
    )

    # The other terms.
    lambda_sds: float = knob(
        1.0,
        "Weight of the distillation term L_SDS (mean squared error over the elements of a latent), without unit. "
        "0 switches the term off, and no teacher is loaded.",
    )
    sds_reading: Reading = knob(
        "noised", "Whether the denoiser sees z_t = alpha_t z0 + sigma_t eps (noised) or z0 itself (as_printed)."
    )
    sds_gradient: Gradient = knob(
        "full",
        "Gradient of L_SDS: through the denoiser (full), or leaving its Jacobian out (stop_gradient).",
    )
    sds_weighting: Weighting | None = knob(
        None,
        "Weight w(t) on the squared noise error: 1, sigma_t^2, min(SNR, gamma)/SNR, or 1/alpha_t^2; default: velocity for "
        "flow models, constant for others.",
    )
    snr_gamma: float = knob(5.0, "Gamma of sds_weighting=min_snr, a ratio without unit.")
    timestep_range: list[int] | None = knob(
        None,
        "First and last timestep that L_SDS draws, both inclusive; default: the teacher's whole schedule, of a flow "
        "model 20 to 980.",
    )
    distill_every: int = knob(
        1,
        "Optimiser steps from one with L_SDS to the next; it counts that many times there, so that its expectation stays. "
        "Saves its cost in the steps between.",
    )
    distill_fraction: float = knob(
        1.0,
        "Share of a batch's images that L_SDS is computed on, spread evenly and drawn anew in each step; its expectation "
        "stays.",
    )
    shuffle_captions: bool = knob(
        False, "Control experiment: give the denoiser the caption of another image of the batch. It should not help."
    )

    # Ranking distillation, and the baselines that it is compared with.
    lambda_rank: float = knob(
        0.0,
        "Weight of the ranking term L_rank (in nats), without unit: the student learns to order candidate "
        "captions of an image as the teacher's stored scores do. 0 switches it off.",
    )
    ranking_scores: str | None = knob(
        None,
        "The scored candidates: a folder that `sdsclip score-captions` wrote, or its Hub id. Each image is then "
        "captioned with those of its captions that were scored, whatever the weights of the terms.",
    )
    ranking_scores_revision: str | None = knob(None, "Branch, tag or commit of the scores on the Hub.")
    ranking_candidates: int | None = knob(
        None,
        "Candidates drawn anew each time beside an image's own caption (K); default: all that were scored. The temperature "
        "and the confidence are those of all.",
    )
    ranking_targets: RankingTargets = knob(
        "teacher", "Whether the student learns the teacher's order, or (baseline) that the own caption comes first."
    )
    ranking_form: RankingForm = knob(
        "likelihood",
        "What the teacher's word is: evidence that may be wrong (likelihood), or a belief to learn (divergence).",
    )
    ranking_temperature: float | None = knob(
        None,
        "tau, in units of d; default: of a likelihood fitted to own captions, of a divergence ranking_temperature_share of "
        "the median gap.",
    )
    ranking_temperature_share: float = knob(
        0.1, "tau as a share of the median gap between the teacher's scores of an image's two best candidates."
    )
    ranking_logit_scale: float | None = knob(
        None, "Factor on the student's cosines in L_rank; default: the student's own logit scale."
    )
    ranking_confidence: bool = knob(
        False, "Weigh each image by how sure the teacher is of its first choice: 0 at chance, 1 when certain."
    )
    ranking_symmetric: bool = knob(
        False,
        "Also rank images for a caption, where images of a process's batch share scored candidates; each image's own level "
        "of d is taken off first. L_rank is then the mean of both. Not beside contrastive_batch_size.",
    )
    lambda_images: float = knob(0.0, "Weight of L_rank over pictures: a caption's own above its negative_image_column.")
    hard_negatives: bool = knob(
        False, "Baseline: the candidates are further negatives of the contrastive loss, by their labels (NegCLIP)."
    )
    lambda_cosine: float = knob(
        0.0, "Baseline: weight of 1 - cosine of each image and its caption, a term without any teacher."
    )

    # The teacher.
    teacher_dtype: Dtype = knob(
        "auto",
        "Number format of the teacher's weights; auto: bfloat16 on a GPU that has it, float16 on another, float32 on CPUs.",
    )
    latent_size: int | None = knob(
        None, "Height and width of z0 in latent pixels; default: the teacher's own. Half costs a quarter."
    )
    teacher_quantization: str | None = knob(
        None,
        "Keep the denoiser's weights in fewer bits, by the library in the name: bitsandbytes-4bit, bitsandbytes-8bit, "
        "torchao-int8 or quanto-int8. Only with sds_gradient=stop_gradient.",
    )
    teacher_offload: str | None = knob(
        None,
        "Parts of the teacher are on the GPU only while they work: model (text encoders and denoiser by turns) or group (of "
        "the denoiser one block at a time; only with sds_gradient=stop_gradient). Needs prompt_cache_dir.",
    )
    teacher_revision: str | None = knob(None, "Branch, tag or commit of the teacher on the Hub.")
    teacher_variant: str | None = knob(None, "Variant of the teacher's weight files, e.g. fp16.")
    teacher_gradient_checkpointing: bool = knob(
        False,
        "Compute the denoiser's activations again in its backward pass instead of keeping them: less memory, a forward "
        "pass more. Without effect with sds_gradient=stop_gradient, which has no such pass.",
    )
    teacher_compile: bool = knob(
        False,
        "Pass the denoiser through torch.compile; the first steps are then slow. Refused with sds_gradient=full where the "
        "compiled gradient is wrong.",
    )
    teacher_channels_last: bool = knob(False, "Keep the denoiser's weights and latents in channels-last order.")
    teacher_pack_weights: bool = knob(
        True,
        "On x86 CPUs, keep a second copy of the teacher's float32 weights in the order in which oneDNN works: faster passes "
        "without gradient, so only with sds_gradient=stop_gradient, and not beside teacher_compile or shard_teacher.",
    )
    shard_teacher: bool = knob(
        False, "Split the weights of the teacher's denoiser over the processes (FSDP2) instead of a copy on each."
    )
    prompt_cache_dir: str | None = knob(
        None,
        "Encode all captions with the teacher's text encoder before the run, keep the prompts in this folder and free the "
        "encoder: L x D numbers a caption (Stable Diffusion 1.x: 118 kB in float16). Not for streams.",
    )

    # What is exported of CLIP.
    wise_ft_alpha: float = knob(
        1.0,
        "Where the weights stand when training has ended, from the pretrained ones (0) to the trained ones (1): below 1 "
        "they keep more of what CLIP knew, and gain less (WiSE-FT, arXiv 2109.01903). Checkpoints hold the trained ones.",
    )

    # The latent mapper h_w.
    mapper_unit_rms: bool = knob(True, "Scale every z0 to RMS mapper_scale, so that the mapper cannot collapse.")
    mapper_scale: float = knob(1.0, "RMS of z0 in units of the teacher's latents, at the start or (unit RMS) always.")
    mapper_learning_rate: float | None = knob(
        None,
        "Learning rate of the mapper; default: learning_rate. It follows the same schedule; with 0 the mapper "
        "stays as it is (its gradient still counts in max_grad_norm).",
    )
    mapper_whitening: bool = knob(
        False,
        "Give the mapper whitened embeddings, by the mean and covariance of 2,048 embeddings of the kind that "
        "mapper_warmup_inputs names, measured once before the run.",
    )
    mapper_warmup_steps: int = knob(0, "Steps that the mapper trains alone, before the run, on L_SDS.")
    mapper_warmup_inputs: Literal["image", "text"] = knob(
        "image", "Embeddings that the mapper is warmed up on: of the images, or of their captions."
    )
    mapper_warmup_learning_rate: float = knob(1e-3, "Learning rate of the warm-up, falling to 0 along a cosine.")

    # The student.
    trainable: Trainable = knob(
        "layernorm", "What of CLIP trains: its LayerNorms or RMSNorms (the paper), LoRA adapters, or every weight."
    )
    train_vision: bool = knob(True, "Whether the image tower trains.")
    train_text: bool = knob(True, "Whether the text tower trains.")
    train_projections: bool | None = knob(
        None, "Whether the projections to the joint space train; default: with trainable=full alone."
    )
    train_logit_scale: bool = knob(
        False, "Whether the temperature trains, and SigLIP's bias; one that begins at or below ln 100 is kept there."
    )
    lora_r: int = knob(16, "Rank of the LoRA adapters.")
    lora_alpha: int = knob(32, "Scaling of the LoRA adapters: they are multiplied by lora_alpha / lora_r.")
    lora_dropout: float = knob(0.0, "Dropout probability in front of the LoRA adapters.")
    lora_target_modules: list[str] | None = knob(
        None, "Linear layers that LoRA adapts, by the end of their names; default: all in the towers' layers."
    )

    # The data.
    image_column: str = knob("image", "Column of the dataset that holds the images.")
    negative_image_column: str | None = knob(None, "Column of a wrong picture beside the right one, for lambda_images.")
    caption_column: str = knob("caption", "Column that holds a caption, or a list of them of which one is drawn.")
    shuffle_buffer_size: int = knob(
        1000, "Rows of the buffer from which a stream is shuffled; 0 keeps the order of the files."
    )
    keep_images_in_memory: bool = knob(
        False,
        "Preprocess each picture once and keep it, 12 bytes a pixel of the model's input, for datasets of which that many "
        "passes are made; each loader worker keeps its own.",
    )
    preprocess_on_device: bool = knob(
        False,
        "Loader workers only decode pictures, and the image processor prepares them on the GPU, which needs torchvision.",
    )
    max_bad_images: int = knob(
        0,
        "Rows that may be skipped because their image cannot be read or a caption is missing; bad_images.txt in the output "
        "folder names them.",
    )

    # The Hub, beside TrainingArguments' own push_to_hub, hub_model_id, hub_strategy, hub_private_repo, hub_revision, ...
    hub_license: str | None = knob(
        None, "Licence that the model card names; default: that of the base model's card, or unknown."
    )
    hub_force: bool = knob(
        False, "Push even into a repository that holds something other than a CLIP; its files are then mixed."
    )

    # What is measured.
    benchmarks: list[str] | None = knob(
        None, "Benchmarks that evaluate() scores beside the loss, e.g. shapes:validation."
    )
    log_failures: int = knob(
        0,
        "Items of each benchmark that are most wrong, logged as a table at every evaluation to trackio or wandb; 0: none.",
    )
    health_steps: int = knob(
        50, "Steps between measurements of the gap of L_SDS between true and shuffled captions; 0: never."
    )
    gradient_norm_steps: int = knob(
        0, "Steps between measurements of each term's gradient norm and of their cosine; 0: never."
    )

    def __post_init__(self):
        launch_on_cpus()
        self.takes_given_dtype = self.teacher_dtype == "auto"  # that of a teacher which is in memory
        settle_precision(self)
        try:
            super().__post_init__()
        except OSError as error:  # of an option that names a file: accelerator_config, fsdp_config, deepspeed
            name = next((entry.name for entry in fields(self) if getattr(self, entry.name) == error.filename), None)
            if error.filename is None or name is None:
                raise
            raise ValueError(
                f"{name} is {error.filename!r}: {error.strerror}. Set --{name} to a file that exists."
            ) from error
        loading = cast(AcceleratorConfig, self.accelerator_config)
        if loading.dispatch_batches is None:  # accelerate would read a stream on one process for all
            loading.dispatch_batches = False
        check(self)
