"""Pairs whose right caption is known, to fit weights on: by how much a wrong one's errors are above it, draw by draw."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from sdsclip_hf.benchmarks import Item, load_benchmark, parse, places, read_picture
from sdsclip_hf.data.scores import CandidateScores, portable_name, ranked_by
from sdsclip_hf.scoring.caption_errors import Candidates, CaptionErrors
from sdsclip_hf.scoring.timestep_weights import FEWEST_LABELLED

UNTOLD = (
    "classification",
    "retrieval",
    "sugarcrepe_pp",
)  # rules by which one caption of an item is not the only true one
MOST_ITEMS = 200
AT_ONCE = 64


class LabelledGaps(NamedTuple):
    """Pairs of a true and a wrong caption of a picture.

    Args:
        gaps: the wrong caption's error less the true one's in each draw, (P, R).
        groups: what each pair belongs to, P; pairs of one are held out together.
        source: where they are from, for the record.
    """

    gaps: np.ndarray
    groups: list[str]
    source: str


def own_gaps(scores: CandidateScores, count: int, source: str = "own captions") -> LabelledGaps:
    """Of the first ``count`` ranked items of unweighted scores, of which every draw is there.

    Raises:
        ValueError: the right captions are not told, or the items order nothing.
    """
    if control := scores.settings["control"]:
        raise ValueError(
            f"the scores are those of the control {control}: which caption is right is not told there. Leave "
            "--fit_weights out."
        )
    gaps, groups = [], []
    for number in np.flatnonzero(scores.ranked)[:count]:
        row = scores.data[int(number)]
        errors, own = np.asarray(row["errors"], np.float64), row["candidates"].index(row["caption"])  # (K, R)
        gaps.append(np.delete(errors, own, 0) - errors[own])
        groups += [row["picture"]] * len(gaps[-1])
    if not gaps:
        raise ValueError("the scores order nothing, so no weights can be fitted. Choose other --candidates.")
    return LabelledGaps(np.concatenate(gaps), groups, source)


def labelled_items(spec: str) -> list[Item]:
    """Items of a benchmark, 200 at most, spread over all of it.

    Args:
        spec: e.g. ``pairs=SOURCE?captions=c0,c1&images=i0,i1``, see [`load_benchmark`].

    Raises:
        ValueError: it does not tell which caption of a picture is right, or has too few items.
        OSError: it cannot be loaded.
    """
    benchmark = load_benchmark(spec)
    odd = next((item for item in benchmark.items if len(item.captions) < 2), None)
    if benchmark.kind in UNTOLD or odd is not None:
        why = (
            f"item {odd.identifier} has one caption" if odd else f"a benchmark of the kind {benchmark.kind} has several"
        )
        raise ValueError(
            f"--fit_weights {spec} does not tell which of a picture's captions is right: {why}. Give pairs, or choices of "
            "one picture and several captions."
        )
    if len(benchmark.items) < FEWEST_LABELLED:
        raise ValueError(
            f"--fit_weights {spec} has {len(benchmark.items)} items; weights need at least {FEWEST_LABELLED}. Give more, or "
            "own:COUNT."
        )
    chosen = np.linspace(0, len(benchmark.items) - 1, min(MOST_ITEMS, len(benchmark.items))).round().astype(int)
    return [benchmark.items[place] for place in chosen]


def told_source(spec: str, items: Sequence[Item]) -> str:
    """What a card calls the items of a benchmark; it tells nothing of the machine."""
    name, part, _ = parse(spec)
    digest = hashlib.sha256(repr([item.captions for item in items]).encode()).hexdigest()[:8]
    return f"{name}:{part}={portable_name(places(spec)[0])}, {len(items)} items with captions {digest}".replace(
        ":=", "="
    )


def benchmark_gaps(source: str, items: Sequence[Item], scorer: CaptionErrors) -> LabelledGaps:
    """Of a benchmark's items, scored with the draws of ``scorer``.

    Raises:
        OSError: a picture cannot be read.
    """
    gaps, groups, teacher, size = [], [], scorer.teacher, scorer.batch_size
    for start in range(0, len(items), AT_ONCE):
        part = items[start : start + AT_ONCE]
        images = [teacher.crop(read_picture(image)) for item in part for image in item.images]
        batches = [images[first : first + size] for first in range(0, len(images), size)]
        latents = torch.cat([teacher.encode_images(batch) for batch in batches])
        asked = [(item, true) for item in part for true in range(len(item.images))]  # caption k is true of picture k
        found = scorer.score(latents, [Candidates(row, item.captions) for row, (item, _) in enumerate(asked)])
        for (item, true), errors in zip(asked, found, strict=True):
            gaps.append(np.delete(errors, true, 0) - errors[true])
            groups += [item.identifier] * len(gaps[-1])
    return LabelledGaps(np.concatenate(gaps), groups, source)


def finished_gaps(spec: str, count: int, scores: CandidateScores) -> LabelledGaps:
    """Of what is scored already, for the weights of unweighted scores: ``own:COUNT`` their own, or ``scores=FOLDER``."""
    if spec.startswith("scores="):
        return gaps_of_scores(spec.removeprefix("scores="), scores.settings)
    return own_gaps(scores, count)


def gaps_of_scores(name: str, by: dict) -> LabelledGaps:
    """Of another scored folder's own captions.

    Args:
        name: the folder, or its id on the Hub.
        by: settings of the scores that the weights are for.

    Raises:
        OSError, ValueError: it cannot be read, or other draws of another teacher made it.
    """
    scores = CandidateScores.load(name)
    check_draws(scores)
    same = ("num_draws", "timestep_range", "weighting")
    differs = next((key for key in same if scores.settings[key] != by[key]), None)
    if scores.settings["teacher"]["fingerprint"] != by["teacher"]["fingerprint"]:
        differs = "teacher"
    if differs:
        raise ValueError(
            f"--fit_weights scores={name} are of another {differs}; weights are fitted on scores of the same teacher, "
            "--num_draws, --timestep_range and --weighting."
        )
    return own_gaps(scores, len(scores), f"scores {portable_name(name)}, fingerprint {scores.fingerprint}")


def check_draws(scores: CandidateScores) -> None:
    """Raise ValueError unless scores keep the errors of every draw, at several timesteps."""
    draws, span = scores.settings.get("num_draws"), scores.settings.get("timestep_range")
    if not scores.settings.get("teacher") or not draws or not span:
        raise ValueError(
            f"the scores {scores.name!r}, of {ranked_by(scores.settings) or 'no teacher'}, tell no errors of draws at "
            "timesteps (num_draws and timestep_range), and only those can be weighed. Score with --teacher_name_or_path."
        )
    if span[0] == span[1]:
        raise ValueError(
            f"all draws are at timestep {span[0]}, so there is nothing to weigh; give a wider --timestep_range."
        )
    held = (~np.isnan(scores.errors[scores.ranked])).sum(-1).max(-1)  # (ranked items,)
    if (held < draws).any():
        first = int(np.flatnonzero(held < draws)[0])
        raise ValueError(
            f"item {np.flatnonzero(scores.ranked)[first]} has {held[first]} of {draws} draws' errors, and weights need "
            "each. Score with --stop_confidence 0 into another --output_dir."
        )
