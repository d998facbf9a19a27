"""Scorer x benchmark x metric: the one place where the three come together."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache

import numpy as np

from sdsclip_hf.benchmarks import Benchmark, expand, load_benchmark
from sdsclip_hf.evaluation.outcomes import Outcome, outcomes
from sdsclip_hf.evaluation.ranks import class_ranks, retrieval_ranks
from sdsclip_hf.evaluation.scorers import ClipScorer, DiffusionScorer
from sdsclip_hf.evaluation.significance import score_interval

Scorer = ClipScorer | DiffusionScorer
Results = dict[str, list[dict]]

RANKED = ("classification", "retrieval")

cached_benchmark = cache(load_benchmark)


def answer_chunks(scorer: Scorer, benchmark: Benchmark, start: int = 0) -> Iterator[list[np.ndarray]]:
    """A scorer's answers to a benchmark's items from ``start`` on, as many at a time as it gives.

    Returns:
        For each item a matrix (captions, images) of scores; in classification and retrieval the ranks that [`ranks`]
        tells of, the latter all at once.

    Raises:
        ValueError: the benchmark needs embeddings, and the scorer has none.
    """
    if benchmark.kind not in RANKED:
        return scorer.score_chunks(benchmark.items[start:])
    if not isinstance(scorer, ClipScorer):
        check_speed(benchmark)
    if benchmark.kind == "classification":
        return class_ranks(scorer, benchmark, benchmark.items[start:])
    return iter([retrieval_ranks(scorer, benchmark)])


def check_speed(benchmark: Benchmark) -> None:
    """Raise ValueError if a benchmark has too many pairs for a scorer without embeddings."""
    if benchmark.kind in RANKED:
        raise ValueError(
            f"{benchmark.name} compares every image with every caption, which a diffusion model is far too slow for; "
            "give it a --model."
        )


def score_rows(found: Sequence[Outcome]) -> list[dict]:
    """Each outcome's score with its 95 % interval by bootstrap over the items, as a row for tables and json.

    Returns:
        Rows of ``subset``, ``score``, ``value`` (a fraction), ``interval`` (low, high), ``n``, ``ties``, ``groups`` (how
        many the mean is over; None for a plain mean) and ``headline``.
    """
    rows = []
    for outcome in found:
        groups = outcome.by_group()
        row = {"subset": outcome.subset, "score": outcome.score, "value": float(np.mean([g.mean() for g in groups]))}
        row |= {"interval": score_interval(outcome), "n": len(outcome.right), "ties": outcome.ties}
        rows.append(row | {"groups": None if outcome.groups is None else len(groups), "headline": outcome.headline})
    return rows


def evaluate_benchmark(scorer: Scorer, benchmark: Benchmark) -> list[dict]:
    """A benchmark's scores, see [`score_rows`]."""
    answers = [answer for chunk in answer_chunks(scorer, benchmark) for answer in chunk]
    return score_rows(outcomes(benchmark, answers))


def evaluate_benchmarks(scorer: Scorer, specs: Sequence[str]) -> Results:
    """benchmark -> its scores; the benchmarks' items are kept for the next call."""
    return {spec: evaluate_benchmark(scorer, cached_benchmark(spec)) for spec in expand(specs)}


def labels(specs: Iterable[str]) -> dict[str, str]:
    """Benchmark -> its name without the source, or with it where others have that name too."""
    heads = {spec: spec.partition("=")[0] for spec in specs}
    return {spec: head if list(heads.values()).count(head) == 1 else spec for spec, head in heads.items()}


def flatten(results: Results) -> dict[str, float]:
    """The headline scores as one number a key, for logs: ``{"shapes:test/relation/group": 0.57, …}``."""
    return {
        f"{label}/{row['subset']}/{row['score']}".replace(" ", "_"): row["value"]
        for spec, label in labels(results).items()
        for row in results[spec]
        if row["headline"]
    }
