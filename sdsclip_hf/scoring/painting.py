"""Wrong pictures beside the right ones: a teacher's own pipeline paints what a look-alike caption tells."""

import io
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from sdsclip_hf.common.checkpoints import fingerprint
from sdsclip_hf.common.chunks import Chunks
from sdsclip_hf.common.errors import read_json
from sdsclip_hf.common.locks import working_in
from sdsclip_hf.common.writing import sweep, whole_file, write_json
from sdsclip_hf.data.images import BAD_IMAGES_FILE, BadImages
from sdsclip_hf.data.scores import portable_name
from sdsclip_hf.scoring.arguments import ScoringArguments
from sdsclip_hf.scoring.caption_errors import Candidates, CaptionErrors
from sdsclip_hf.scoring.caption_items import CaptionedRows, CaptionItem, caption_items, given_candidates
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher

PAINTED_FILE, PARTS, DATA = "painted.json", "parts", "data/train-00000-of-00001.parquet"
CHUNK = 8  # pictures painted at once
FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "caption": datasets.Value("string"),
        "negative_caption": datasets.Value("string"),  # None with the next, where none was kept
        "negative_image": datasets.Image(),
    }
)


def paint_negatives(
    teacher: DiffusionTeacher,
    dataset: datasets.Dataset,
    arguments: ScoringArguments,
    num_inference_steps: int = 30,
    guidance_scale: float | None = None,
) -> dict:
    """Write a dataset of each row's picture and caption, a wrong caption, and a picture of that; go on after a kill.

    A painted picture is kept where the teacher's error d of it is lower with the wrong caption than with the row's own; else
    the row stands without one. Each is painted by a seed of its own, so that the bytes do not depend on interruptions.

    Args:
        teacher: loaded with its autoencoder, on its device.
        dataset: rows of a picture and its captions.
        arguments: the sources of wrong captions, of which each row takes one; the draws; ``seed`` and ``output_dir``.
        num_inference_steps, guidance_scale: of the pipeline; default of the latter: the pipeline's own.

    Returns:
        What ``painted.json`` holds: the settings, ``rows``, ``painted`` and ``kept``.

    Raises:
        ValueError: no row has a wrong caption, or the folder holds what was painted by other settings.
        OSError: a picture cannot be read.
    """
    folder = Path(arguments.output_dir)
    rows = CaptionedRows(
        dataset,
        arguments.image_column,
        arguments.caption_column,
        seed=arguments.seed,
        bad_images=BadImages(arguments.max_bad_images, folder / BAD_IMAGES_FILE),
    )
    settings = _settings(teacher, rows, arguments) | {"steps": num_inference_steps, "guidance_scale": guidance_scale}
    with working_in(folder):
        sweep(folder, alone=True)
        if (finished := _claim(folder, settings)) is not None:
            return finished
        given = None
        if "column" in arguments.sources:
            given = given_candidates(dataset, arguments.candidates_column, rows.captions)
        items = caption_items(rows, arguments.sources, given=given, seed=arguments.seed)
        if not any(_wrong(item) for item in items):
            raise ValueError(
                f"none of the {len(items)} captions has a look-alike to be painted; choose other --candidates."
            )
        names = ("num_draws", "timestep_range", "weighting", "seed", "batch_size")
        scorer = CaptionErrors(teacher, **{name: getattr(arguments, name) for name in names})
        painter = _Painter(scorer, arguments.seed, num_inference_steps, guidance_scale)
        chunks, starts = Chunks(folder / PARTS, "chunk"), range(0, len(items), CHUNK)
        there = chunks.numbers()
        for number in tqdm([number for number in range(len(starts)) if number not in there], "chunks"):
            made = painter.rows(rows, items[starts[number] : starts[number] + CHUNK])
            chunks.write(number, datasets.Dataset.from_list(made, features=FEATURES).data.table)
        return _finish(folder, settings, chunks, items)


def _settings(teacher: DiffusionTeacher, rows: CaptionedRows, arguments: ScoringArguments) -> dict:
    names = (
        "dataset_name",
        "split",
        "candidates",
        "candidates_column",
        "num_draws",
        "timestep_range",
        "weighting",
        "seed",
    )
    told = {name: getattr(arguments, name) for name in names} | {"rows": len(rows)}
    told |= {"dataset_name": portable_name(arguments.dataset_name), "fingerprint": fingerprint(teacher.denoiser)}
    return told | {"teacher": portable_name(teacher.name_or_path)}


def _claim(folder: Path, settings: dict) -> dict | None:
    """Make the folder that of these settings, or see that it is; what it holds where all is painted."""
    finished, begun = folder / PAINTED_FILE, folder / PARTS / "settings.json"
    path = finished if finished.is_file() else begun
    if path.is_file():
        then = read_json(path, f"Delete {folder}, or choose another --output_dir.")
        changed = [name for name, value in settings.items() if then.get(name) != value]
        if changed:
            raise ValueError(
                f"{folder} holds what was painted by other settings: its {changed[0]} is {then.get(changed[0])!r:.200}, not "
                f"{settings[changed[0]]!r:.200}. Choose another --output_dir."
            )
        return then if path == finished else None
    begun.parent.mkdir(parents=True, exist_ok=True)
    write_json(begun, settings)
    return None


def _wrong(item: CaptionItem) -> str | None:
    return next((text for text in item.candidates if text != item.caption), None)


class _Painter:
    """Paints wrong captions, and asks the teacher whether the pictures show them."""

    def __init__(self, scorer: CaptionErrors, seed: int, steps: int, guidance_scale: float | None):
        self.scorer, self.teacher, self.seed = scorer, scorer.teacher, seed
        height, width = (self.teacher.family.factor * edge for edge in self.teacher.latent_shape[1:])
        self.options = {"num_inference_steps": steps, "height": height, "width": width, "output_type": "pil"}
        self.options |= {} if guidance_scale is None else {"guidance_scale": guidance_scale}

    def rows(self, rows: CaptionedRows, items: Sequence[CaptionItem]) -> list[dict]:
        """The rows of some items, see ``FEATURES``."""
        wrong = [_wrong(item) for item in items]
        asked = [place for place, text in enumerate(wrong) if text is not None]
        pictures = self._paint([items[place].row for place in asked], [wrong[place] for place in asked])
        kept = dict(zip(asked, pictures, strict=True))
        for place, shows in zip(
            asked, self._show(pictures, [(wrong[p], items[p].caption) for p in asked]), strict=True
        ):
            if not shows:
                del kept[place]
        return [
            {
                "image": {"bytes": _bytes(rows.source[item.row][rows.image_column]), "path": None},
                "caption": item.caption,
                "negative_caption": wrong[place] if place in kept else None,
                "negative_image": {"bytes": _png(kept[place]), "path": None} if place in kept else None,
            }
            for place, item in enumerate(items)
        ]

    @torch.no_grad()
    def _paint(self, numbers: Sequence[int], captions: Sequence[str]) -> list[Image.Image]:
        if not captions:
            return []
        seeds = [int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0]) for number in numbers]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        pipeline = self.teacher.family.pipeline
        pipeline.set_progress_bar_config(disable=True)
        with _decoding_in_its_own_format(self.teacher.vae):
            return pipeline(prompt=list(captions), generator=generators, **self.options).images

    def _show(self, pictures: Sequence[Image.Image], captions: Sequence[tuple[str, str]]) -> list[bool]:
        """Whether each picture fits the first of its two captions better."""
        if not pictures:
            return []
        latents = torch.cat([self.teacher.encode_images([picture]) for picture in pictures])
        errors = self.scorer.score(latents, [Candidates(row, texts) for row, texts in enumerate(captions)])
        return [bool(mean[0] < mean[1]) for mean in (of_item.mean(1) for of_item in errors)]


@contextmanager
def _decoding_in_its_own_format(autoencoder: nn.Module) -> Iterator[None]:
    """Have an autoencoder that is in float32 beside a denoiser in less take the latents that a pipeline hands it."""
    decode = autoencoder.decode
    autoencoder.decode = lambda latents, *args, **options: decode(latents.to(autoencoder.dtype), *args, **options)
    try:
        yield
    finally:
        del autoencoder.decode  # so that it is its class's again


def _bytes(cell: dict) -> bytes:
    return cell["bytes"] if cell.get("bytes") is not None else Path(cell["path"]).read_bytes()


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _finish(folder: Path, settings: dict, chunks: Chunks, items: Sequence[CaptionItem]) -> dict:
    """One parquet file of all chunks, and what is told of them."""
    table = pa.concat_tables(chunks.read(range(-(-len(items) // CHUNK))))
    (folder / DATA).parent.mkdir(exist_ok=True)
    with whole_file(folder / DATA, table.nbytes) as partial:
        datasets.Dataset(table).cast(FEATURES).to_parquet(partial)
    kept = sum(text is not None for text in table["negative_caption"].to_pylist())
    told = settings | {"painted": sum(_wrong(item) is not None for item in items), "kept": kept}
    write_json(folder / PAINTED_FILE, told)
    shutil.rmtree(folder / PARTS)
    return told
