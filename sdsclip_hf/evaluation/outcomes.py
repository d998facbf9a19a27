"""From scores to outcomes: which questions a model got right, by each benchmark's published rule."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from sdsclip_hf.benchmarks import Benchmark, Item
from sdsclip_hf.metrics.aro_relation.symmetric_relations import SYMMETRIC
from sdsclip_hf.metrics.common import choices, triplets, winoground

ALL = "all"
MIN_ATTRIBUTE_CASES = 25
MOST_TAGS = 12  # that have lines of their own in tables


class Outcome(NamedTuple):
    """One score, question by question.

    Args:
        subset: which items: ``all``, or one of the benchmark's tags.
        score: the score's name, e.g. ``group`` or ``macro accuracy``.
        right: (N,) bool, which questions are answered rightly; a tie is not.
        ties: how many questions hang on a tie.
        groups: (N,) labels; the score is the unweighted mean over the groups' accuracies. None: the plain mean.
        headline: whether it belongs into the table, or only among all results.
        clusters: (N,) numbers of the items that questions belong to, where an item has several; they are resampled
            together. None: each question is an item.
    """

    subset: str
    score: str
    right: np.ndarray
    ties: int
    groups: np.ndarray | None = None
    headline: bool = True
    clusters: np.ndarray | None = None

    def by_group(self) -> list[np.ndarray]:
        """``right`` of each group."""
        if self.groups is None:
            return [self.right]
        return [self.right[self.groups == name] for name in np.unique(self.groups)]


def outcomes(benchmark: Benchmark, answers: Sequence) -> list[Outcome]:
    """What a benchmark's rule makes of a scorer's answers.

    Args:
        benchmark: the items.
        answers: for each item a matrix (captions, images) of scores, of ``sugarcrepe_pp`` with the captions' own
            similarities behind the images, see [`ClipScorer.score_chunks`]; in classification and retrieval the ranks
            that [`ranks`] tells of.

    Raises:
        ValueError: a score is NaN.

    Example:

    ```python
    import numpy as np
    from sdsclip_hf.benchmarks import load_benchmark
    from sdsclip_hf.evaluation.outcomes import outcomes

    benchmark = load_benchmark("shapes:test")
    answers = [np.eye(2) for _ in benchmark.items]  # (captions, images): all right
    text, image, group, *by_tag = outcomes(benchmark, answers)
    print(group.score, group.right.mean())  # group 1.0
    ```
    """
    refuse_nan(benchmark.name, benchmark.items, answers)
    return RULES[benchmark.kind](benchmark, answers)


def refuse_nan(name: str, items: Sequence[Item], answers: Sequence) -> None:
    """Raise ValueError with the first item whose answer holds NaN."""
    for item, answer in zip(items, answers, strict=True):
        if np.isnan(answer).any():
            raise ValueError(
                f"{name}: the scores of item {item.identifier} hold NaN; try --dtype float32, or mend the model."
            )


def _winoground(benchmark: Benchmark, answers: Sequence) -> list[Outcome]:
    scores = np.stack(answers)
    right = winoground.right_items(scores)
    ties = {part: winoground.tied_items(scores, part) for part in right}
    return [
        Outcome(subset, part, right[part][chosen], int(ties[part][chosen].sum()), headline=headline)
        for subset, chosen, headline in _subsets(benchmark)
        for part in right
    ]


def _subsets(benchmark: Benchmark):
    """(name, bool (N,), whether it is a headline) of all items, of each tag, and of each value of each label."""
    items = benchmark.items
    yield ALL, np.ones(len(items), dtype=bool), True
    tags = _tags(benchmark)
    for tag in dict.fromkeys(filter(None, tags.tolist())):
        yield tag, tags == tag, True
    yield from _labelled(items)


def _labelled(items: Sequence[Item]):
    """(name, bool (N,), whether it is a headline) of each value of each label."""
    for label in dict.fromkeys(label for item in items for label, _ in item.labels):
        values = np.array([dict(item.labels).get(label, "") for item in items])
        for value in sorted(set(values.tolist()) - {""}):
            yield f"{label} {value}", values == value, label == "num_main_preds"


def _pairs_by_image(benchmark: Benchmark, answers: Sequence) -> list[Outcome]:
    """As pairs, for benchmarks whose published score is the image score: whether both captions pick their images."""
    found = _pairs(benchmark, answers)
    return [one._replace(score=one.score.replace("image", "image accuracy")) for one in found]


def _tags(benchmark: Benchmark) -> np.ndarray:
    return np.array([item.tag for item in benchmark.items])


def _pairs(benchmark: Benchmark, answers: Sequence) -> list[Outcome]:
    """As Winoground, and where there are several tags the means over them."""
    found, tags = _winoground(benchmark, answers), _tags(benchmark)
    if len(set(tags.tolist())) > 1:
        found[3:3] = [one._replace(score=f"macro {one.score}", groups=tags) for one in found[:3]]
    return found


def _choices(answers: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """(N,) right and (N,) tied of the true candidate, which stands first, against the false ones.

    The candidates are an image's captions, (captions, 1), or a caption's images, (1, images).
    """
    # Items with fewer candidates than others are filled up with what never wins.
    scores = np.full((len(answers), max(answer.size for answer in answers)), -np.inf)
    for row, answer in zip(scores, answers, strict=True):
        row[: answer.size] = answer.ravel()
    true, false = scores[:, 0], scores[:, 1:]
    return choices.right_items(true, false), choices.tied_items(true, false)


def _grouped(benchmark: Benchmark, answers: Sequence, keep: Callable[[dict[str, int]], set[str]]) -> list[Outcome]:
    """[`_by_tag`] of choices."""
    return _by_tag("accuracy", *_choices(answers), _tags(benchmark), keep)


def _by_tag(
    score: str, right: np.ndarray, tied: np.ndarray, tags: np.ndarray, keep: Callable[[dict[str, int]], set[str]] = set
) -> list[Outcome]:
    """The mean over the tags that ``keep`` chooses of the counts (macro), that over all (micro), and that of each tag."""
    found = [Outcome(ALL, f"micro {score}", right, int(tied.sum()))]
    if "" in tags:  # the source does not tell: there is no macro accuracy then
        return found
    names, counts = np.unique(tags, return_counts=True)
    kept = keep(dict(zip(names.tolist(), counts.tolist(), strict=True)))
    chosen = np.isin(tags, sorted(kept))
    if kept:
        macro = Outcome(ALL, f"macro {score}", right[chosen], int(tied[chosen].sum()), tags[chosen])
        found.insert(0, macro)
    return found + [
        Outcome(name, score, right[tags == name], int(tied[tags == name].sum()), headline=False) for name in names
    ]


def _relation(benchmark: Benchmark, answers: Sequence) -> list[Outcome]:
    """With the micro accuracy over what the macro one is over, and that over all items under a name of its own."""
    found = _grouped(benchmark, answers, lambda counts: set(counts) - set(SYMMETRIC))
    if found[0].score != "macro accuracy":
        return found
    macro, over_all, *by_relation = found
    micro = macro._replace(score="micro accuracy", groups=None)
    return [macro, micro, over_all._replace(score="micro accuracy with symmetric"), *by_relation]


def _attribution(benchmark: Benchmark, answers: Sequence) -> list[Outcome]:
    def frequent(counts: dict[str, int]) -> set[str]:
        return {name for name, count in counts.items() if count >= MIN_ATTRIBUTE_CASES}

    return _grouped(benchmark, answers, frequent)


def _order(benchmark: Benchmark, answers: Sequence) -> list[Outcome]:
    right, tied = _choices(answers)
    return [Outcome(ALL, "accuracy", right, int(tied.sum()))]


def _sugarcrepe(benchmark: Benchmark, answers: Sequence) -> list[Outcome]:
    found = _grouped(benchmark, answers, set)
    return [outcome._replace(headline=True) for outcome in found]


def _choice(benchmark: Benchmark, answers: Sequence) -> list[Outcome]:
    """As SugarCrepe; without tags the plain accuracy. Images that are chosen for captions are scored apart."""
    ways = ["image to text" if len(item.images) == 1 else "text to image" for item in benchmark.items]
    found = []
    for way in dict.fromkeys(ways):
        places = [place for place, one in enumerate(ways) if one == way]
        part = replace(benchmark, items=[benchmark.items[place] for place in places])
        rows = _one_way(part, [answers[place] for place in places])
        if len(places) < len(ways):
            rows = [one._replace(subset=way if one.subset == ALL else f"{one.subset}, {way}") for one in rows]
        found += rows
    return found


def _one_way(benchmark: Benchmark, answers: Sequence) -> list[Outcome]:
    few = len(set(_tags(benchmark).tolist())) <= MOST_TAGS
    found = [one._replace(headline=few or one.subset == ALL) for one in _grouped(benchmark, answers, set)]
    if len(found) == 1:
        found = [found[0]._replace(score="accuracy")]
    right, tied = _choices(answers)
    return found + [
        Outcome(subset, "accuracy", right[chosen], int(tied[chosen].sum()), headline=False)
        for subset, chosen, _ in _labelled(benchmark.items)
    ]


def _whatsup(benchmark: Benchmark, answers: Sequence) -> list[Outcome]:
    """Choices, and of each part how often both opposites, and all four places, of the same two things are right."""
    right, tied = _choices(answers)
    found, tags = _choice(benchmark, answers), _tags(benchmark)
    for tag in dict.fromkeys(tags.tolist()):
        sets, pairs = {}, {}
        for place in np.flatnonzero(tags == tag):
            captions = benchmark.items[place].captions
            across = bool({"left", "right"} & set(captions[0].split()))
            sets.setdefault(frozenset(captions), []).append(place)
            pairs.setdefault((frozenset(captions), across), []).append(place)
        for score, groups in (("pair accuracy", pairs), ("set accuracy", sets)):
            all_right = np.array([right[places].all() for places in groups.values()])
            ties = sum(bool(tied[places].any()) for places in groups.values())
            found.append(Outcome(tag or ALL, score, all_right, ties))
    return found


def _sugarcrepe_pp(benchmark: Benchmark, answers: Sequence) -> list[Outcome]:
    """Both true captions above the false one for the image (ITT), and closer to one another than to it (TOT)."""
    judged = [("ITT", *triplets.judge_itt(np.stack([answer[:, 0] for answer in answers])))]
    if answers[0].shape[1] > 1:  # a scorer without embeddings tells nothing of captions among themselves
        alike = np.stack([answer[[0, 0, 1], [2, 3, 3]] for answer in answers])
        judged.append(("TOT", *triplets.judge_tot(alike)))
    found = [_by_tag(score, right, tied, _tags(benchmark)) for score, right, tied in judged]
    return [one._replace(headline=True) for rows in zip(*found, strict=True) for one in rows]


def _classification(benchmark: Benchmark, answers: Sequence) -> list[Outcome]:
    return _at_k(ALL, "accuracy", np.stack(answers), _cuts(1, 5, below=len(benchmark.classes)))


def _retrieval(benchmark: Benchmark, answers: Sequence) -> list[Outcome]:
    of_images, of_captions = np.stack([answer[0] for answer in answers]), np.concatenate([a[1:] for a in answers])
    images = np.repeat(np.arange(len(answers)), [len(answer) - 1 for answer in answers])
    captions = {caption for item in benchmark.items for caption in item.captions}
    to_text = _at_k("image to text", "recall", of_images, _cuts(1, 5, 10, below=len(captions)))
    to_image = _at_k("text to image", "recall", of_captions, _cuts(1, 5, 10, below=len(benchmark.items)))
    return to_text + [outcome._replace(clusters=images) for outcome in to_image]


def _cuts(first: int, *others: int, below: int) -> list[int]:
    """Those that say something of ``below`` candidates."""
    return [first, *(k for k in others if k < below)]


def _at_k(subset: str, score: str, ranks: np.ndarray, cuts: Sequence[int]) -> list[Outcome]:
    """Of (N, 2) ranks from 0, with ties counted against the model and for it: right where even the first is below k."""
    against, favourable = ranks.T
    tied = {k: int(((favourable < k) & (against >= k)).sum()) for k in cuts}
    return [Outcome(subset, f"{score}@{k}", against < k, tied[k]) for k in cuts]


RULES = {
    "pairs": _pairs,
    "pairs_by_image": _pairs_by_image,
    "choices": _choice,
    "whatsup": _whatsup,
    "sugarcrepe_pp": _sugarcrepe_pp,
    "winoground": _winoground,
    "aro_relation": _relation,
    "aro_attribution": _attribution,
    "aro_order": _order,
    "sugarcrepe": _sugarcrepe,
    "classification": _classification,
    "retrieval": _retrieval,
}
