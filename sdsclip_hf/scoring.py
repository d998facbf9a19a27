"""A scoring of candidate captions: its options, and what each process does of it."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from PIL import Image
from tqdm.auto import tqdm

from sdsclip_hf.candidates import parse_sources
from sdsclip_hf.caption_errors import SETTLED, Candidates, CaptionErrors
from sdsclip_hf.caption_items import CaptionedRows, CaptionItem, caption_items, given_candidates
from sdsclip_hf.checkpoints import fingerprint
from sdsclip_hf.config import knob
from sdsclip_hf.images import BAD_IMAGES_FILE, BadImages
from sdsclip_hf.losses import WEIGHTINGS
from sdsclip_hf.ranking import portable_name
from sdsclip_hf.score_files import ScoreFolder
from sdsclip_hf.scorers import ClipScorer
from sdsclip_hf.teacher import DiffusionTeacher

FORMAT_VERSION = 1
DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class ScoringArguments:
    """The options of ``sdsclip score-captions``.

    Raises:
        ValueError: a value outside its range, or options that do not fit each other.
    """

    teacher_name_or_path: str | None = knob(
        None,
        "The diffusion model that scores: a Hub id or folder in Stable Diffusion's layout, or shapes/teacher. Without one "
        "the candidates are written unscored, for hard negatives.",
    )
    teacher_dtype: Literal[DTYPES] = knob(
        "float32", "Number format of the teacher's weights; errors are float32 whatever it is."
    )
    teacher_revision: str | None = knob(None, "Branch, tag or commit of the teacher on the Hub.")
    teacher_variant: str | None = knob(None, "Variant of the teacher's weight files, e.g. fp16.")
    latent_size: int | None = knob(None, "Height and width of a picture in latent pixels; default: the teacher's own.")

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
        0, "Unreadable images that may be left out; bad_images.txt in the output folder names them."
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
        None, "First and last timestep of the draws, both inclusive; default: the teacher's whole schedule."
    )
    weighting: Literal[WEIGHTINGS] = knob(
        "constant", "Weight w(t) on the squared noise error: 1, sigma_t^2, min(SNR, 5)/SNR, or 1/alpha_t^2."
    )
    seed: int = knob(0, "Of the noise and of all that is drawn.")
    stop_confidence: float = knob(
        0.99,
        "Draw no more for an item once the order of its candidates is, with this probability, that of all draws; 0: "
        "never stop early.",
    )
    settled: Literal[SETTLED] = knob(
        "order", "What stop_confidence is about: the whole order of the candidates, or the first choice alone."
    )
    batch_size: int = knob(64, "Denoiser inputs at once; it changes the errors by rounding alone.")
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
        for name, choices in {"weighting": WEIGHTINGS, "settled": SETTLED, "teacher_dtype": DTYPES}.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; choose from {', '.join(choices)}.")
        if self.timestep_range is not None and len(self.timestep_range) != 2:
            raise ValueError(f"timestep_range is {self.timestep_range}; give the first and the last timestep.")
        for source, needs in (("column", "candidates_column"), ("nearest", "model_name_or_path")):
            if source in self.sources and getattr(self, needs) is None:
                raise ValueError(f"the source of candidates {source!r} needs --{needs}.")
        if self.candidates_column is not None and "column" not in self.sources:
            raise ValueError("--candidates_column is given, but not the source; add column to --candidates.")
        if self.push_to_hub and not self.hub_dataset_id:
            raise ValueError("--push_to_hub needs --hub_dataset_id, NAMESPACE/NAME.")

    @property
    def sources(self) -> dict[str, int]:
        """How many candidates at most of which source."""
        return parse_sources(self.candidates)


def score_captions(
    teacher: DiffusionTeacher | None,
    dataset: datasets.Dataset,
    embedder: ClipScorer | None = None,
    **options,
) -> dict:
    """Score a dataset and write a folder that [`~ranking.CandidateScores`] reads; go on with it where a run was killed.

    >>> teacher = DiffusionTeacher.from_pretrained(name, load_vae=True)
    >>> score_captions(teacher, dataset, candidates=["swap:3"], output_dir="scores")

    Args:
        teacher: loaded with its autoencoder; None: write the candidates unscored.
        dataset: rows of a picture and its captions.
        embedder: of source ``nearest``.
        options: of [`ScoringArguments`]. What names a teacher, dataset or model there is for the record alone.

    Returns:
        What ``scores.json`` holds.

    Raises:
        ValueError: options or data that do not fit, or the folder holds other scores.
        OSError: a picture cannot be read.
    """
    told = {"dataset_name": dataset.info.dataset_name or "unnamed", "split": str(dataset.split or "train")}
    arguments = ScoringArguments(**{**told, **options})
    if "nearest" in arguments.sources and embedder is None:
        raise ValueError("the source of candidates 'nearest' needs an embedder; give a ClipScorer.")
    return Scoring(arguments, teacher, dataset, embedder).run()


def processes() -> PartialState:
    """The processes of this run. They talk by gloo where there is no accelerator, and wait for one another however long."""
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=30))


class Scoring:
    """One scoring, on one process of maybe several; see [`score_captions`]."""

    def __init__(
        self,
        arguments: ScoringArguments,
        teacher: DiffusionTeacher | None,
        dataset: datasets.Dataset,
        embedder: ClipScorer | None,
    ):
        if arguments.wrong_images and teacher is None:
            raise ValueError("--wrong_images scores, and so needs a teacher; give --teacher_name_or_path.")
        self.arguments, self.teacher, self.dataset, self.embedder = arguments, teacher, dataset, embedder
        self.state = processes()
        self.files = ScoreFolder(arguments.output_dir)
        bad_images = BadImages(arguments.max_bad_images, self.files.folder / BAD_IMAGES_FILE)
        columns = arguments.image_column, arguments.caption_column
        self.rows = CaptionedRows(dataset, *columns, seed=arguments.seed, bad_images=bad_images)
        self.captions = self.rows.captions
        self.scorer = self._make_scorer() if teacher else None

    def _make_scorer(self) -> CaptionErrors:
        self.teacher.to(self.state.device).speed_up(packed=True)
        names = ("num_draws", "timestep_range", "weighting", "seed", "stop_confidence", "settled", "batch_size")
        return CaptionErrors(self.teacher, **{name: getattr(self.arguments, name) for name in names})

    def run(self) -> dict:
        """Score what is missing and return what ``scores.json`` holds."""
        settings = self.settings()
        if self.state.is_main_process:
            self.files.claim(settings)
        self.state.wait_for_everyone()
        return self.files.finished() or self._score_missing(settings)

    def _score_missing(self, settings: dict) -> dict:
        if self.state.is_main_process and not self.files.has_items():
            self.files.write_items(self._make_items())
        self.state.wait_for_everyone()
        items, size = self.files.read_items(), self.arguments.chunk_size
        chunks = range(0, len(items), size)
        missing = broadcast_object_list([self.files.missing(len(chunks))])[0]
        mine = missing[self.state.process_index :: self.state.num_processes]
        parts = [items[chunks[chunk] : chunks[chunk] + size] for chunk in mine]
        read = run_ahead(self._read, parts)
        for chunk, part in zip(tqdm(mine, "chunks", disable=not self.state.is_main_process), parts, strict=True):
            self.files.write_chunk(chunk, *self._score(part, next(read)))
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            self.files.finish(settings, len(chunks))
        self.state.wait_for_everyone()
        return self.files.finished()

    def _make_items(self) -> list[CaptionItem]:
        arguments, given = self.arguments, None
        if "column" in arguments.sources:
            given = given_candidates(self.dataset, arguments.candidates_column, self.captions)
        return caption_items(
            self.rows,
            arguments.sources,
            given=given,
            embedder=self.embedder,
            captions_per_image=arguments.captions_per_image,
            wrong_images=arguments.wrong_images,
            seed=arguments.seed,
        )

    def _read(self, items: Sequence[CaptionItem]) -> dict[int, Image.Image]:
        """The pictures of a chunk that can be read, at the teacher's size, by their rows."""
        if self.scorer is None:
            return {}
        pictures = {row: self.rows.picture(row) for row in dict.fromkeys(item.row for item in items)}
        return {row: self.teacher.crop(picture) for row, picture in pictures.items() if picture is not None}

    def _score(
        self, items: Sequence[CaptionItem], pictures: dict[int, Image.Image]
    ) -> tuple[Sequence[CaptionItem], list[np.ndarray]]:
        """The items of a chunk whose pictures were read, and their errors (K, r).

        A chunk keeps nothing for the next: what else is scored, and where, would then show in the last digits.
        """
        if self.scorer is None:
            return items, [np.empty((len(item.candidates), 0)) for item in items]
        kept = [item for item in items if item.row in pictures]
        if not kept:
            return [], []
        place = {row: number for number, row in enumerate(pictures)}
        images, size = list(pictures.values()), self.arguments.batch_size
        batches = [images[start : start + size] for start in range(0, len(images), size)]
        latents = torch.cat([self.teacher.encode_images(batch) for batch in batches])
        return kept, self.scorer.score(latents, [Candidates(place[item.row], item.candidates) for item in kept])

    def settings(self) -> dict:
        """What decides the scores; the last part of a path stands for it."""
        arguments, teacher, clip = self.arguments, None, None
        if self.teacher is not None:
            teacher = {
                "name": portable_name(arguments.teacher_name_or_path or self.teacher.name_or_path),
                "revision": arguments.teacher_revision,
                "fingerprint": fingerprint(self.teacher.denoiser),
                "dtype": str(self.teacher.dtype).removeprefix("torch."),
                "latent_shape": list(self.teacher.latent_shape),
            }
        if self.embedder is not None:
            clip = {
                "name": portable_name(arguments.model_name_or_path),
                "fingerprint": self.embedder.encoder.fingerprint(),
            }
        data = {
            "name": portable_name(arguments.dataset_name),
            "config": arguments.dataset_config_name,
            "split": arguments.split,
            "revision": arguments.dataset_revision,
            "rows": len(self.rows),
            "captions": hashlib.sha256(repr(self.captions).encode()).hexdigest()[:16],
        }
        scored = teacher is not None
        first_last = arguments.timestep_range or (0, self.teacher.num_timesteps - 1) if scored else None
        return {
            "sdsclip_hf_format": FORMAT_VERSION,
            "teacher": teacher,
            "num_draws": arguments.num_draws if scored else None,
            "timestep_range": list(first_last) if scored else None,
            "weighting": arguments.weighting if scored else None,
            "stop_confidence": arguments.stop_confidence if scored else None,
            "settled": arguments.settled if scored else None,
            "seed": arguments.seed,
            "dataset": data,
            "candidates": [f"{source}:{count}" for source, count in arguments.sources.items()],
            "candidates_column": arguments.candidates_column,
            "nearest_by": clip,
            "captions_per_image": arguments.captions_per_image,
            "control": "wrong_images" if arguments.wrong_images else None,
            "chunk_size": arguments.chunk_size,
        }


def run_ahead(function: Callable, arguments: Iterable) -> Iterator:
    """``function`` of each argument in turn; while a result is used, the next one is made in another thread."""
    with ThreadPoolExecutor(1) as thread:
        coming = None
        for argument in arguments:
            ready, coming = coming, thread.submit(function, argument)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()
