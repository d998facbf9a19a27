"""A scoring of candidate captions: its options, and what each process does of it."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import timedelta
from uuid import uuid4

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from PIL import Image

from sdsclip_hf import shapes
from sdsclip_hf.common.checkpoints import fingerprint
from sdsclip_hf.common.errors import expand
from sdsclip_hf.common.locks import working_in
from sdsclip_hf.data.images import BAD_IMAGES_FILE, BadImages
from sdsclip_hf.data.loading import load_image_captions
from sdsclip_hf.data.scores import portable_name
from sdsclip_hf.evaluation.scorers import ClipScorer
from sdsclip_hf.hub.commits import claim_repo
from sdsclip_hf.rankers.caption_ranker import CaptionRanker, FunctionRanker, ScoreFunction
from sdsclip_hf.rankers.loading import RankerOptions, load_ranker
from sdsclip_hf.scoring.arguments import ScoringArguments
from sdsclip_hf.scoring.caption_errors import Candidates, CaptionErrors
from sdsclip_hf.scoring.caption_items import CaptionedRows, CaptionItem, caption_items, given_candidates
from sdsclip_hf.scoring.folder import ScoreFolder
from sdsclip_hf.scoring.labels import benchmark_gaps, finished_gaps, labelled_items, told_source
from sdsclip_hf.scoring.shared_out import SharedOut
from sdsclip_hf.students.dual_encoder import load_dual_encoder
from sdsclip_hf.students.open_clip_checkpoints import OpenClipOptions
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1


def score_captions(
    ranker: DiffusionTeacher | CaptionRanker | ScoreFunction | None,
    dataset: datasets.Dataset,
    embedder: ClipScorer | None = None,
    **options,
) -> dict:
    """Score a dataset and write a folder that [`CandidateScores`] reads; go on with it where a run was killed.

    Args:
        ranker: a teacher loaded with its autoencoder; or a [`CaptionRanker`], or a function that takes a picture and its
            candidates and gives each a score, higher where it matches better. None: write the candidates unscored.
        dataset: rows of a picture and its captions.
        embedder: of source ``nearest``.
        options: of [`ScoringArguments`]. What names a teacher, dataset or model there is for the record alone.

    Returns:
        What ``scores.json`` holds.

    Raises:
        ValueError: options or data that do not fit, or the folder holds other scores.
        OSError: a picture cannot be read.

    Example:

    ```python
    from sdsclip_hf import CandidateScores, DiffusionTeacher
    from sdsclip_hf.scoring.score_captions import score_captions
    from sdsclip_hf.shapes import load_shapes, model_path

    teacher = DiffusionTeacher.from_pretrained(model_path("teacher"), load_vae=True)
    dataset = load_shapes("train", per_scene=1).select(range(4))
    options = {"candidates": ["batch:1"], "num_draws": 4, "timestep_range": [100, 990]}
    score_captions(teacher, dataset, output_dir="scores/example", **options)
    print(len(CandidateScores.load("scores/example")))  # 4
    ```
    """
    told = {"dataset_name": dataset.info.dataset_name or "unnamed", "split": str(dataset.split or "train")}
    arguments = ScoringArguments(**{**told, **options})
    if "nearest" in arguments.sources and embedder is None:
        raise ValueError("the source of candidates 'nearest' needs an embedder; give a ClipScorer.")
    return Scoring(arguments, ranker, dataset, embedder).run()


def score_named(arguments: ScoringArguments) -> dict:
    """Load the teacher or ranker, the dataset and the model that the arguments name, and [`score_captions`] with them.

    Returns:
        What ``scores.json`` holds.

    Raises:
        OSError: one of them cannot be loaded.
        ValueError: they do not fit one another, or the folder holds other scores.
    """
    if arguments.push_to_hub and processes().is_main_process:
        claim_repo(arguments.hub_dataset_id, repo_type="dataset", private=arguments.private or None, needs_network=True)
    state = processes()
    ranker = embedder = None
    with state.main_process_first():
        dataset = load_image_captions(
            arguments.dataset_name,
            arguments.dataset_config_name,
            split=arguments.split,
            revision=arguments.dataset_revision,
            max_samples=arguments.max_samples,
        )
        if arguments.ranker is not None:
            ranker = load_named_ranker(arguments, str(state.device))
        elif arguments.teacher_name_or_path is not None:
            ranker = load_teacher(arguments)
    if "nearest" in arguments.sources and state.is_main_process:
        encoder = load_dual_encoder(arguments.model_name_or_path)
        embedder = ClipScorer(encoder.model, encoder.processor, arguments.batch_size)
    return Scoring(arguments, ranker, dataset, embedder).run()


def load_named_ranker(arguments: ScoringArguments, device: str) -> CaptionRanker:
    """The ranker that the arguments name.

    Raises:
        OSError: it cannot be loaded.
        ValueError: it is no ranker, or its options do not fit.
    """
    options = RankerOptions(
        revision=arguments.ranker_revision,
        dtype=arguments.ranker_dtype,
        question=arguments.ranker_question,
        batch_size=arguments.batch_size,
        open_clip=OpenClipOptions(arguments.architecture, arguments.processor, arguments.checkpoint_key),
    )
    return load_ranker(str(arguments.ranker), options, device)


def load_teacher(arguments: ScoringArguments) -> DiffusionTeacher:
    """The teacher that the arguments name, with its autoencoder.

    Raises:
        OSError: it cannot be loaded.
    """
    return DiffusionTeacher.from_pretrained(
        expand(shapes.resolve(str(arguments.teacher_name_or_path))),
        dtype=arguments.teacher_dtype,
        latent_size=arguments.latent_size,
        load_vae=True,
        revision=arguments.teacher_revision,
        variant=arguments.teacher_variant,
        quantization=arguments.teacher_quantization,
    )


def caption_errors(teacher: DiffusionTeacher, arguments: ScoringArguments, device: torch.device) -> CaptionErrors:
    """The teacher on its device, with the draws that the arguments ask for."""
    teacher.place(device, arguments.teacher_offload).speed_up(packed=True, compiled=arguments.teacher_compile)
    names = ("num_draws", "timestep_range", "weighting", "seed", "stop_confidence", "settled", "batch_size")
    return CaptionErrors(teacher, **{name: getattr(arguments, name) for name in names})


def processes() -> PartialState:
    """The processes of this run. They talk by gloo where there is no accelerator, and wait for one another however long."""
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=30))


class Scoring:
    """One scoring, on one process of maybe several; see [`score_captions`]."""

    def __init__(
        self,
        arguments: ScoringArguments,
        ranker: DiffusionTeacher | CaptionRanker | ScoreFunction | None,
        dataset: datasets.Dataset,
        embedder: ClipScorer | None,
    ):
        if arguments.wrong_images and ranker is None:
            raise ValueError("--wrong_images scores, and so needs a teacher; give --teacher_name_or_path.")
        self.arguments, self.dataset, self.embedder = arguments, dataset, embedder
        self.teacher = ranker if isinstance(ranker, DiffusionTeacher) else None
        self.ranker = None if ranker is None or self.teacher else _as_ranker(ranker)
        if arguments.fit_weights and self.teacher is None:
            raise ValueError("--fit_weights weighs a teacher's errors, but there is none; give --teacher_name_or_path.")
        of_benchmark = arguments.fit_weights and not arguments.fit_weights.startswith(("own", "scores="))
        self.labelled = labelled_items(arguments.fit_weights) if of_benchmark else None
        self.state = processes()
        self.files = ScoreFolder(arguments.output_dir)
        bad_images = BadImages(arguments.max_bad_images, self.files.folder / BAD_IMAGES_FILE)
        columns = arguments.image_column, arguments.caption_column
        self.rows = CaptionedRows(dataset, *columns, seed=arguments.seed, bad_images=bad_images)
        self.captions = self.rows.captions
        empty = sum(not text.strip() for texts in self.captions for text in texts)
        if empty and self.state.is_main_process:
            logger.warning(f"{empty} captions are empty; mend the rows, or leave them out.")
        self.scorer = caption_errors(self.teacher, arguments, self.state.device) if self.teacher else None

    def run(self) -> dict:
        """Score what is missing and return what ``scores.json`` holds."""
        settings = self.settings()
        with working_in(self.files.folder) if self.state.is_main_process else nullcontext():
            if self.state.is_main_process:
                self.files.claim(settings)
            self.state.wait_for_everyone()
            scores = self.files.finished() or self._score_missing(settings)
            if self.arguments.fit_weights is None:
                return scores
            if self.state.is_main_process:
                self._fit_weights(scores)
            self.state.wait_for_everyone()
            return self.files.finished()

    def _fit_weights(self, scores: dict) -> None:
        spec = self.arguments.fit_weights
        if self.labelled is None:
            self.files.fit_weights(lambda unweighted: finished_gaps(spec, self.arguments.labelled_items, unweighted))
            return
        source = told_source(spec, self.labelled)
        if (scores.get("timestep_weights") or {}).get("source") != source:
            self.files.fit_weights(lambda _: benchmark_gaps(source, self.labelled, self.scorer))

    def _score_missing(self, settings: dict) -> dict:
        if self.state.is_main_process and not self.files.has_items():
            self.files.write_items(self._make_items())
        self.state.wait_for_everyone()
        items, size = self.files.read_items(), self.arguments.chunk_size
        chunks = [items[start : start + size] for start in range(0, len(items), size)]
        told = [(self.files.missing(len(chunks)), uuid4().hex)] if self.state.is_main_process else [None]
        missing, name = broadcast_object_list(told)[0]
        share = SharedOut([chunks[chunk] for chunk in missing], name, with_bar=self.state.is_main_process)
        read = run_ahead(lambda place: (place, self._read(share.parts[place])), share)
        for place, pictures in read:
            self.files.write_chunk(missing[place], *self._score(share.parts[place], pictures))
            share.done(place)
        share.close()
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
        """The pictures of a chunk that can be read, of a teacher at its size, by their rows."""
        if self.scorer is None and self.ranker is None:
            return {}
        pictures = {row: self.rows.picture(row) for row in dict.fromkeys(item.row for item in items)}
        readable = {row: picture for row, picture in pictures.items() if picture is not None}
        return {row: self.teacher.crop(picture) for row, picture in readable.items()} if self.teacher else readable

    def _score(
        self, items: Sequence[CaptionItem], pictures: dict[int, Image.Image]
    ) -> tuple[Sequence[CaptionItem], list[np.ndarray]]:
        """The items of a chunk whose pictures were read, and their errors (K, r).

        A chunk keeps nothing for the next: what else is scored, and where, would then show in the last digits.
        """
        if self.scorer is None and self.ranker is None:
            return items, [np.empty((len(item.candidates), 0)) for item in items]
        kept = [item for item in items if item.row in pictures]
        if not kept:
            return [], []
        if self.ranker is not None:
            return kept, self.ranker.errors([pictures[item.row] for item in kept], [item.candidates for item in kept])
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
            } | self.teacher.conventions
            teacher |= {"quantization": self.teacher.quantization} if self.teacher.quantization else {}
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
        schedule = self.teacher.schedule if scored else None
        return {
            "sdsclip_hf_format": FORMAT_VERSION,
            "teacher": teacher,
            "ranker": None if self.ranker is None else self.ranker.settings(),
            "num_draws": arguments.num_draws if scored else None,
            "timestep_range": list(arguments.timestep_range or schedule.default_range) if scored else None,
            "weighting": (arguments.weighting or schedule.default_weighting) if scored else None,
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


def _as_ranker(given: CaptionRanker | ScoreFunction) -> CaptionRanker:
    if not isinstance(given, CaptionRanker) and not callable(given):
        raise ValueError(
            f"a {type(given).__name__} cannot rank captions; give a DiffusionTeacher, a CaptionRanker, or a function "
            "(picture, candidates) -> scores."
        )
    return given if isinstance(given, CaptionRanker) else FunctionRanker(given)


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
