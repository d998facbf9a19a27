"""Pictures whose right caption is known among wrong ones, of a dataset or of a benchmark."""

from collections.abc import Sequence
from typing import NamedTuple

import datasets
import numpy as np

from sdsclip_hf.benchmarks import Benchmark, ImageCell, Item
from sdsclip_hf.data.images import BadImages
from sdsclip_hf.evaluation.scorers import ClipScorer
from sdsclip_hf.scoring.arguments import ScoringArguments
from sdsclip_hf.scoring.candidates import Tagger, load_tagger
from sdsclip_hf.scoring.caption_items import CaptionedRows, caption_items, given_candidates
from sdsclip_hf.scoring.kinds import kind_of_change

UNTOLD = ("classification", "retrieval", "sugarcrepe_pp")  # benchmarks without one true caption against false ones


class Question(NamedTuple):
    """A picture, its right caption and wrong ones.

    Args:
        item: one picture and K captions, the right one first.
        kinds: what makes each wrong caption of the right one, K - 1 of [`KINDS`].
        group: questions of one number share a picture, or an item of the benchmark; they are resampled together.
    """

    item: Item
    kinds: tuple[str, ...]
    group: int


def dataset_questions(
    dataset: datasets.Dataset,
    arguments: ScoringArguments,
    embedder: ClipScorer | None = None,
    bad_images: BadImages | None = None,
) -> list[Question]:
    """A random sample of a dataset's rows, each caption against candidates, as a scoring would make them.

    Args:
        dataset: all rows.
        arguments: of the scoring; ``max_samples`` is the size of the sample, ``seed`` draws it.
        embedder: of source ``nearest``, which looks for neighbours within the sample.
        bad_images: where unreadable pictures are noted; default: the first one is an error.

    Raises:
        ValueError: no row has a wrong caption, or a column is missing.
        ImportError: the tagger is not installed.
    """
    chosen = np.random.default_rng(arguments.seed).permutation(len(dataset))[: arguments.max_samples]
    dataset = dataset.select(chosen)
    columns = arguments.image_column, arguments.caption_column
    rows = CaptionedRows(dataset, *columns, seed=arguments.seed, bad_images=bad_images)
    given = None
    if "column" in arguments.sources:
        given = given_candidates(dataset, arguments.candidates_column, rows.captions)
    found = caption_items(rows, arguments.sources, given=given, embedder=embedder, seed=arguments.seed)
    pictures = rows.source.select_columns([arguments.image_column])
    items = [
        Item(
            str(one.row),
            (ImageCell(pictures, one.row, bytes.fromhex(one.picture)),),
            (one.caption, *(text for text in one.candidates if text != one.caption)),
        )
        for one in found
    ]
    groups = {one.picture: number for number, one in enumerate(found)}
    return _questions(items, [groups[one.picture] for one in found])


def benchmark_questions(benchmark: Benchmark, most: int | None = None, seed: int = 0) -> tuple[list[Question], int]:
    """The questions of a benchmark, of a pair of pictures and captions two, and how many items choose among pictures.

    The latter are left out: a teacher's errors of two pictures cannot be compared.

    Args:
        benchmark: of pairs, or of choices among captions.
        most: of more items a random sample is taken.
        seed: of the sample.

    Raises:
        ValueError: it does not tell which caption is right, or asks for no caption.
        ImportError: the tagger is not installed.
    """
    if benchmark.kind in UNTOLD:
        raise ValueError(
            f"{benchmark.name} does not tell one right caption of a picture and wrong ones; give pairs=SOURCE, "
            "choices=SOURCE or another benchmark of such, or leave --benchmark out."
        )
    chosen = np.random.default_rng(seed).permutation(len(benchmark.items))[:most]
    items, groups, left_out = [], [], 0
    for number in sorted(chosen.tolist()):
        one = benchmark.items[number]
        if len(one.captions) < 2:
            left_out += 1
        elif len(one.images) == 1:
            items.append(one)
        else:
            first, second = one.images, one.captions
            items += [one._replace(images=(first[k],), captions=(second[k], second[1 - k])) for k in (0, 1)]
        groups += [number] * (len(items) - len(groups))
    return _questions(items, groups), left_out


def _questions(items: Sequence[Item], groups: Sequence[int]) -> list[Question]:
    tagger = load_tagger()
    found = [
        Question(item, _kinds(item.captions, tagger), group)
        for item, group in zip(items, groups, strict=True)
        if len(item.captions) > 1
    ]
    if not found:
        raise ValueError(
            f"none of the {len(items)} pictures has a wrong caption beside its right one, so there are no pairs. Choose "
            "other --candidates, or another --benchmark."
        )
    return found


def _kinds(captions: Sequence[str], tagger: Tagger) -> tuple[str, ...]:
    return tuple(kind_of_change(captions[0], text, tagger) for text in captions[1:])
