"""The options of a scoring of candidate captions."""

import re
from dataclasses import dataclass

from sdsclip_hf.benchmarks import BENCHMARKS
from sdsclip_hf.common.precision import DTYPES, Dtype, settled_dtype
from sdsclip_hf.config import TEACHER_OFFLOADS, TEACHER_QUANTIZATIONS, knob
from sdsclip_hf.losses import WEIGHTINGS, Weighting
from sdsclip_hf.scoring.candidates import parse_sources
from sdsclip_hf.scoring.caption_errors import SETTLED, Settled
from sdsclip_hf.scoring.timestep_weights import FEWEST_LABELLED

DEFAULT_LABELLED = 200


# Options of the main job under which a configuration has what a scoring needs, too.
SHARED = {"train_split_name": "split", "max_train_samples": "max_samples", "ranking_scores": "output_dir"}
SHARED |= {name: name for name in ("dataset_name", "dataset_config_name", "dataset_revision", "max_bad_images")}
SHARED |= {name: name for name in ("image_column", "caption_column", "latent_size", "seed")}
SHARED |= {f"teacher_{name}": f"teacher_{name}" for name in ("name_or_path", "dtype", "revision", "variant")}
SHARED |= {f"teacher_{name}": f"teacher_{name}" for name in ("quantization", "offload")}


@dataclass
class ScoringArguments:
    """The options of ``sdsclip score-captions``.

    Raises:
        ValueError: a value outside its range, or options that do not fit each other.
    """

    teacher_name_or_path: str | None = knob(
        None,
        "The diffusion model that scores: the Hub id or folder of a pipeline (see sdsclip teachers), or shapes/teacher. "
        "Without one, and without a ranker, the candidates are written unscored, for hard negatives.",
    )
    teacher_dtype: Dtype = knob(
        "auto",
        "Number format of the teacher's weights; auto: bfloat16 on a GPU that has it, float16 on another, float32 on CPUs. "
        "Errors are float32 whatever it is.",
    )
    teacher_quantization: str | None = knob(
        None,
        "Keep the denoiser's weights in fewer bits, by the library in the name: bitsandbytes-4bit, bitsandbytes-8bit, "
        "torchao-int8 or quanto-int8.",
    )
    teacher_offload: str | None = knob(
        None,
        "Parts of the teacher are on the GPU only while they work: model (text encoders and denoiser by turns, chunk by "
        "chunk) or group (of the denoiser one block at a time, too).",
    )
    teacher_compile: bool = knob(
        False,
        "Pass the denoiser through torch.compile, and fill its batches up to batch_size: the first call then takes minutes. "
        "It changes the errors by rounding alone.",
    )
    teacher_revision: str | None = knob(None, "Branch, tag or commit of the teacher on the Hub.")
    teacher_variant: str | None = knob(None, "Variant of the teacher's weight files, e.g. fp16.")
    latent_size: int | None = knob(None, "Height and width of a picture in latent pixels; default: the teacher's own.")

    ranker: str | None = knob(
        None,
        "In the teacher's place a model that ranks captions by one score each, MODEL or KIND=MODEL: dual_encoder (CLIP, "
        "SigLIP and the like, open_clip's form too), itm (BLIP's image-text matching head), vlm (a generative model's log "
        "P(Yes) of a question), vlm_caption (its log-likelihood of the caption). Default: the kind that the model's "
        "config.json tells, of a generative model vlm.",
    )
    ranker_revision: str | None = knob(None, "Branch, tag or commit of the ranker on the Hub.")
    ranker_dtype: Dtype = knob("auto", "Number format of the ranker's weights; auto: as for the teacher.")
    ranker_question: str | None = knob(
        None,
        "What a generative ranker is asked, of vlm with {} where the caption goes; default: VQAScore's question, or for a "
        "description.",
    )
    architecture: str | None = knob(
        None, "Of a ranker that is a file of weights in open_clip's form: its architecture, e.g. ViT-B-32-quickgelu."
    )
    processor: str | None = knob(
        None,
        "Hub id or folder of the tokenizer of a ranker in open_clip's form; default: the one beside it, or OpenAI's.",
    )
    checkpoint_key: str | None = knob(
        None, "Under which a file of weights holds the ranker, e.g. ema; default: looked for."
    )

    dataset_name: str = knob(
        "shapes",
        "Images and captions: a Hub id, a folder (imagefolder with metadata, parquet, webdataset, save_to_disk), a "
        "parquet file, or shapes, which comes with the package.",
    )
    dataset_config_name: str | None = knob(None, "Configuration of the dataset.")
    dataset_revision: str | None = knob(None, "Branch, tag or commit of the dataset on the Hub.")
    split: str = knob("train", "Split to score, e.g. train or train[:5000].")
    max_samples: int | None = knob(None, "Rows to score at most; default: all.")
    image_column: str = knob("image", "Column of the dataset that holds the images.")
    caption_column: str = knob("caption", "Column that holds a caption, or a list of them.")
    max_bad_images: int = knob(
        0,
        "Rows that may be left out because their image cannot be read or a caption is missing; bad_images.txt in the output "
        "folder names them.",
    )

    candidates: list[str] = knob(
        ["swap:3"],
        "Where candidates come from, SOURCE or SOURCE:COUNT each, COUNT being the most of that source (3): column (the "
        "dataset gives them), swap (words exchanged by rule, English), nearest (other captions, by a CLIP's text "
        "embeddings), batch (other captions at random).",
    )
    candidates_column: str | None = knob(None, "Column that holds candidates, a list of captions, of source column.")
    model_name_or_path: str | None = knob(None, "The CLIP of source nearest: a Hub id, a folder, or shapes/student.")
    captions_per_image: int = knob(1, "Captions of a row that are scored among candidates; where it has more, drawn.")
    wrong_images: bool = knob(
        False, "Control experiment: score another row's picture in place of each. Nothing should be learnt from it."
    )

    num_draws: int = knob(10, "Draws of (timestep, noise) that an item gets at most.")
    timestep_range: list[int] | None = knob(
        None,
        "First and last timestep of the draws, both inclusive; default: the teacher's whole schedule, of a flow model 20 to "
        "980.",
    )
    weighting: Weighting | None = knob(
        None,
        "Weight w(t) on the squared noise error: 1, sigma_t^2, min(SNR, 5)/SNR, or 1/alpha_t^2; default: velocity for flow "
        "models, constant for others.",
    )
    seed: int = knob(0, "Of the noise and of all that is drawn.")
    stop_confidence: float = knob(
        0.99,
        "Draw no more for an item once the order of its candidates is, with this probability, that of all draws; 0: "
        "never stop early.",
    )
    settled: Settled = knob(
        "order", "What stop_confidence is about: the whole order of the candidates, or the first choice alone."
    )
    fit_weights: str | None = knob(
        None,
        "Weigh each timestep's error by what it tells of the right caption: own:COUNT learns it from the own captions of "
        "the first COUNT items (own: 200), pairs=SOURCE or choices=SOURCE (see sdsclip evaluate) from labelled pairs that "
        "are scored with the same draws, scores=FOLDER from the own captions of other scores of the teacher. Scores already "
        "made are weighed anew without a call of the denoiser. Needs stop_confidence 0.",
    )
    reweight: str | None = knob(
        None, "A finished folder of scores whose weights are fitted anew, by fit_weights; nothing is scored or loaded."
    )
    combine: list[str] | None = knob(
        None,
        "Two or more finished folders of scores of the same candidates, which become one: by weights that are fitted as "
        "fit_weights own:COUNT says, or given. Nothing is scored or loaded.",
    )
    combine_weights: list[float] | None = knob(
        None, "How much each folder of combine counts; their scores are brought to one spread first."
    )
    batch_size: int = knob(
        64,
        "Denoiser inputs at once, halved where a GPU has no room for them, or a ranker's pictures with a caption; it "
        "changes the errors by rounding alone.",
    )
    chunk_size: int = knob(64, "Items scored and saved together: what a killed run loses at most, on each process.")

    output_dir: str = knob("outputs/scores", "Receives the scores.")
    push_to_hub: bool = knob(False, "Put the finished folder on the Hub; a finished run can be given again with it.")
    hub_dataset_id: str | None = knob(None, "Name of the dataset on the Hub, NAMESPACE/NAME, for push_to_hub.")
    private: bool = knob(False, "Make the dataset on the Hub private where it is new.")

    def __post_init__(self):
        at_least = {"num_draws": 2, "captions_per_image": 1, "batch_size": 1, "chunk_size": 1}
        for name, lowest in {**at_least, "max_bad_images": 0, "seed": 0}.items():
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {lowest}. Set --{name}.")
        if not 0 <= self.stop_confidence < 1:
            raise ValueError(
                f"stop_confidence is {self.stop_confidence}; it must be in [0, 1), 0 for never. Set --stop_confidence."
            )
        for name, choices in {
            "teacher_quantization": (*TEACHER_QUANTIZATIONS, None),
            "teacher_offload": (*TEACHER_OFFLOADS, None),
            "weighting": (*WEIGHTINGS, None),
            "settled": SETTLED,
            "teacher_dtype": DTYPES,
            "ranker_dtype": DTYPES,
        }.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"unknown {name} {getattr(self, name)!r}; choose from {', '.join(filter(None, choices))}."
                )
        self.teacher_dtype, self.ranker_dtype = settled_dtype(self.teacher_dtype), settled_dtype(self.ranker_dtype)
        if self.timestep_range is not None and len(self.timestep_range) != 2:
            raise ValueError(f"timestep_range is {self.timestep_range}; give the first and the last timestep.")
        for source, needs in (("column", "candidates_column"), ("nearest", "model_name_or_path")):
            if source in self.sources and getattr(self, needs) is None:
                raise ValueError(f"the source of candidates {source!r} needs --{needs}.")
        if self.candidates_column is not None and "column" not in self.sources:
            raise ValueError("--candidates_column is given, but not the source; add column to --candidates.")
        if self.teacher_compile and self.teacher_offload == "group":
            raise ValueError(
                "teacher_compile wants the whole denoiser in place; leave --teacher_offload group out beside it."
            )
        self._check_ranker()
        self._check_finished()
        if self.fit_weights is not None:
            self._check_fit()
        if self.push_to_hub and not self.hub_dataset_id:
            raise ValueError("--push_to_hub needs --hub_dataset_id, NAMESPACE/NAME.")

    def _check_ranker(self):
        if self.ranker is not None and self.teacher_name_or_path is not None:
            raise ValueError(
                f"both --ranker {self.ranker} and --teacher_name_or_path {self.teacher_name_or_path} are given, and one of "
                "them ranks; leave the other out. --combine takes the finished scores of both."
            )
        needs = ("ranker_revision", "ranker_question", "architecture", "processor", "checkpoint_key")
        told = next((name for name in needs if getattr(self, name) is not None), None)
        if self.ranker is None and told is not None:
            raise ValueError(f"--{told} is given, but no ranker; add --ranker, or leave it out.")

    def _check_fit(self):
        kind = re.split("[:=]", self.fit_weights or "", maxsplit=1)[0]
        own = (
            kind == "own"
            and re.fullmatch(r"own(:[0-9]+)?", self.fit_weights)
            and self.labelled_items >= FEWEST_LABELLED
        )
        if not (own or kind in BENCHMARKS or re.match("scores=.", self.fit_weights)):
            raise ValueError(
                f"fit_weights is {self.fit_weights!r}; it must be own:COUNT with a COUNT of at least {FEWEST_LABELLED}, "
                "own, pairs=SOURCE, choices=SOURCE or another benchmark, or scores=FOLDER. Set --fit_weights."
            )
        if self.reweight is not None and kind in BENCHMARKS:
            raise ValueError(
                f"--reweight scores nothing, but --fit_weights {self.fit_weights} has to be scored; give the command of the "
                "scores again with it, or own:COUNT or scores=FOLDER."
            )
        if self.combine is not None and kind != "own":
            raise ValueError(
                f"--combine fits weights on the own captions of the scores, not on {self.fit_weights}; set --fit_weights "
                "own:COUNT."
            )
        if self.stop_confidence and self.reweight is None and self.combine is None:
            raise ValueError(
                f"--fit_weights needs all draws of each item, but stop_confidence is {self.stop_confidence}. Give "
                "--stop_confidence 0, and another --output_dir where scores were stopped early."
            )

    def _check_finished(self):
        """What --reweight and --combine need and exclude."""
        if self.reweight is not None and (self.fit_weights is None or self.combine is not None):
            raise ValueError(
                f"--reweight {self.reweight} needs --fit_weights, and goes without --combine; give one or the other."
            )
        if self.combine_weights is not None and (self.combine is None or self.fit_weights is not None):
            raise ValueError(
                "--combine_weights are the weights of --combine in place of fitted ones; give them with --combine, and "
                "without --fit_weights."
            )
        if self.combine is not None or self.reweight is not None:
            named = next((name for name in ("teacher_name_or_path", "ranker") if getattr(self, name) is not None), None)
            if named:
                raise ValueError(f"--{named} is given, but finished scores need no model; leave it out.")

    @property
    def labelled_items(self) -> int:
        """Of how many items at most ``own:COUNT`` uses the own captions."""
        spec = self.fit_weights or "own"
        return int(spec.partition(":")[2] or DEFAULT_LABELLED) if spec.startswith("own") else DEFAULT_LABELLED

    @property
    def sources(self) -> dict[str, int]:
        """How many candidates at most of which source."""
        return parse_sources(self.candidates)


def scoring_settings(settings: dict) -> dict:
    """The options of a scoring in a configuration of the main job: its ``scoring``, over what both have.

    With a ranker there the teacher is that of the training alone.
    """
    own = settings.get("scoring") or {}
    shared = {SHARED[name]: value for name, value in settings.items() if name in SHARED and value is not None}
    if own.get("ranker"):
        shared = {name: value for name, value in shared.items() if not name.startswith("teacher_")}
    return shared | own
