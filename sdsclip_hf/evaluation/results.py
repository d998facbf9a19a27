"""Scorer x benchmark x metric: the one place where the three come together."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import cache

import numpy as np

from sdsclip_hf.benchmarks import Benchmark, expand, load_benchmark, picture_key
from sdsclip_hf.evaluation.outcomes import Outcome, outcomes
from sdsclip_hf.evaluation.ranks import class_ranks, retrieval_ranks
from sdsclip_hf.evaluation.scorers import ClipScorer, DiffusionScorer
from sdsclip_hf.evaluation.significance import score_interval

Scorer = ClipScorer | DiffusionScorer
Results = dict[str, list[dict]]
Keep = Callable[[Benchmark, list[np.ndarray]], None]

RANKED = ("classification", "retrieval")
OF_CAPTIONS = ("sugarcrepe_pp",)  # that compare captions with one another, too

cached_benchmark = cache(load_benchmark)


def answer_chunks(scorer: Scorer, benchmark: Benchmark, start: int = 0) -> Iterator[list[np.ndarray]]:
    """A scorer's answers to a benchmark's items from ``start`` on, as many at a time as it gives.

    Returns:
        For each item a matrix (captions, images) of scores, see [`outcomes`]; in classification and retrieval the ranks
        that [`ranks`] tells of, the latter all at once.

    Raises:
        ValueError: the benchmark needs embeddings, and the scorer has none.
    """
    if benchmark.kind in OF_CAPTIONS and isinstance(scorer, ClipScorer):
        return scorer.score_chunks(benchmark.items[start:], with_captions=True)
    if benchmark.kind not in RANKED:
        return scorer.score_chunks(benchmark.items[start:])
    if not isinstance(scorer, ClipScorer):
        check_speed(benchmark)
    if benchmark.kind == "classification":
        return class_ranks(scorer, benchmark, benchmark.items[start:])
    return iter([retrieval_ranks(scorer, benchmark)])


def shared_keys(benchmarks: Iterable[Benchmark]) -> set[Hashable]:
    """The keys of the pictures and captions that are in more than one benchmark."""
    counts: Counter[Hashable] = Counter()
    for benchmark in benchmarks:
        pictures = {picture_key(image) for item in benchmark.items for image in item.images}
        captions = {caption for item in benchmark.items for caption in item.captions}
        counts.update(pictures | captions.union(*benchmark.classes.values()))
    return {key for key, count in counts.items() if count > 1}


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


def evaluate_benchmark(scorer: Scorer, benchmark: Benchmark, keep: Keep | None = None) -> list[dict]:
    """A benchmark's scores with their 95 % intervals, by bootstrap over the items.

    Args:
        scorer: a [`ClipScorer`] or a [`DiffusionScorer`].
        benchmark: what [`load_benchmark`] gave, or one of your own.
        keep: is called with the benchmark and the scorer's answers to its items, see [`answer_chunks`].

    Returns:
        Rows of ``subset``, ``score``, ``value`` (a fraction), ``interval`` (low, high), ``n`` and ``ties`` (questions),
        ``groups`` (how many the value is a mean over, else None) and ``headline`` (whether it is in tables).

    Raises:
        ValueError: a score is NaN, or the benchmark needs embeddings, and the scorer has none.
        OSError: a picture cannot be read.

    Example:

    ```python
    from sdsclip_hf import ClipScorer
    from sdsclip_hf.benchmarks import load_benchmark
    from sdsclip_hf.evaluation.results import evaluate_benchmark
    from sdsclip_hf.shapes import model_path
    from sdsclip_hf.students.sdsclip_model import load_clip

    benchmark = load_benchmark("shapes:test")
    benchmark.items = benchmark.items[:16]  # a quick look
    rows = evaluate_benchmark(ClipScorer(*load_clip(model_path("student"))), benchmark)
    print([row["score"] for row in rows[:3]], rows[0]["n"])  # ['text', 'image', 'group'] 16
    ```
    """
    answers = [answer for chunk in answer_chunks(scorer, benchmark) for answer in chunk]
    if keep is not None:
        keep(benchmark, answers)
    return score_rows(outcomes(benchmark, answers))


def evaluate_benchmarks(scorer: Scorer, specs: Sequence[str], keep: Keep | None = None) -> Results:
    """Score several benchmarks by their names; the benchmarks' items are kept for the next call.

    Args:
        scorer: a [`ClipScorer`] or a [`DiffusionScorer`].
        specs: benchmarks as ``NAME[:PART][=SOURCE[@REVISION]]``, see [`load_benchmark`]; ``aro`` stands for its four.
        keep: see [`evaluate_benchmark`].

    Returns:
        Benchmark -> its scores, as [`evaluate_benchmark`] gives them; [`table`] prints them.

    Raises:
        ValueError: there is no such benchmark, a score is NaN, or the benchmark needs embeddings, and the scorer has none.
        OSError: a benchmark cannot be loaded, or a picture cannot be read.

    Example:

    ```python
    from sdsclip_hf import ClipScorer
    from sdsclip_hf.evaluation.results import evaluate_benchmarks
    from sdsclip_hf.evaluation.tables import table
    from sdsclip_hf.shapes import model_path
    from sdsclip_hf.students.sdsclip_model import load_clip

    scorer = ClipScorer(*load_clip(model_path("student")))
    results = evaluate_benchmarks(scorer, ["shapes_classes:validation=shape"])
    (row,) = [row for row in results["shapes_classes:validation=shape"] if row["score"] == "accuracy@1"]
    print(row["n"], 0 < row["value"] < 1)  # 192 True
    print(table({"student": results}).splitlines()[0].split()[-1])  # student
    ```
    """
    return {spec: evaluate_benchmark(scorer, cached_benchmark(spec), keep) for spec in expand(specs)}


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
