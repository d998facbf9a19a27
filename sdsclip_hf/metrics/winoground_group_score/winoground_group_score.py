"""Winoground's text, image and group scores (Thrush et al. 2022, arXiv 2204.03162)."""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
Winoground's scores from a 2 x 2 matrix of similarities an item, captions in rows and images in columns. With s(c, i):
text: s(c0, i0) > s(c1, i0) and s(c1, i1) > s(c0, i1); image: s(c0, i0) > s(c0, i1) and s(c1, i1) > s(c1, i0);
group: both. A tie is wrong. Random scores give 1/4, 1/4 and 1/6.
"""

_INPUTS = """
Args:
    scores: N matrices of 2 captions x 2 images; higher means a better match.
    tags: optional list of N strings; the scores of each tag are then returned under "tags".
    confidence: of the intervals, in (0, 1). Default 0.95.
    n_resamples: bootstrap resamples of the items. Default 1000; 0 gives no intervals.
    seed: of the bootstrap. Default 0.
Returns:
    winoground_group_score, winoground_text_score, winoground_image_score: fractions in [0, 1].
    intervals: the (low, high) of each.
    n: how many items. ties: how many have an exact tie in one of the four comparisons.
Raises:
    ValueError: no items, a wrong shape, NaN, or tags that differ in number.
Examples:
    >>> metric = evaluate.load("winoground_group_score")
    >>> metric.compute(scores=[[[0.9, 0.1], [0.2, 0.8]]])["winoground_group_score"]
    1.0
"""

_CITATION = """
@inproceedings{thrush2022winoground,
  title = {Winoground: Probing Vision and Language Models for Visio-Linguistic Compositionality},
  author = {Thrush, Tristan and Jiang, Ryan and Bartolo, Max and Singh, Amanpreet and Williams, Adina and Kiela, Douwe
            and Ross, Candace},
  booktitle = {CVPR},
  year = {2022},
}
"""

NAMES = ("winoground_group_score", "winoground_text_score", "winoground_image_score")


def right_items(scores):
    """Whether each of N items is right by the group, text and image rule: scores (N, 2, 2) to bool (3, N)."""
    text = (scores[:, 0, 0] > scores[:, 1, 0]) & (scores[:, 1, 1] > scores[:, 0, 1])
    image = (scores[:, 0, 0] > scores[:, 0, 1]) & (scores[:, 1, 1] > scores[:, 1, 0])
    return np.stack([text & image, text, image])


def tied_items(scores):
    """Whether any of the four comparisons of each item is an exact tie: scores (N, 2, 2) to bool (N,)."""
    captions = (scores[:, 0, :] == scores[:, 1, :]).any(axis=1)
    images = (scores[:, :, 0] == scores[:, :, 1]).any(axis=1)
    return captions | images


def bootstrap_intervals(right, confidence, n_resamples, seed):
    """Percentile intervals of the row means of ``right`` (R, N) over resampled items, as (R, 2)."""
    n = right.shape[1]
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=n_resamples)
    means = right.astype(float) @ weights.T / n
    tail = (1 - confidence) / 2
    return np.quantile(means, [tail, 1 - tail], axis=1).T


def summarize(scores, confidence, n_resamples, seed):
    """The three scores of (N, 2, 2) ``scores``, with counts and intervals."""
    right = right_items(scores)
    result = {name: float(row.mean()) for name, row in zip(NAMES, right, strict=True)}
    result["n"] = len(scores)
    result["ties"] = int(tied_items(scores).sum())
    if n_resamples:
        intervals = bootstrap_intervals(right, confidence, n_resamples, seed)
        result["intervals"] = {
            name: (float(low), float(high)) for name, (low, high) in zip(NAMES, intervals, strict=True)
        }
    return result


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class WinogroundGroupScore(evaluate.Metric):
    def _info(self):
        pair = datasets.Sequence(datasets.Sequence(datasets.Value("float64")))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"scores": pair}),
            reference_urls=["https://arxiv.org/abs/2204.03162", "https://huggingface.co/datasets/facebook/winoground"],
        )

    def _compute(self, scores, tags=None, confidence=0.95, n_resamples=1000, seed=0):
        scores = _checked(scores)
        result = summarize(scores, confidence, n_resamples, seed)
        if tags is not None:
            if len(tags) != len(scores):
                raise ValueError(f"{len(tags)} tags for {len(scores)} items; give one tag an item.")
            labels = np.array([str(tag) for tag in tags])
            result["tags"] = {
                str(tag): summarize(scores[labels == tag], confidence, n_resamples, seed) for tag in np.unique(labels)
            }
        return result


def _checked(scores):
    if len(scores) == 0:
        raise ValueError("scores is empty; give at least one item.")
    try:
        array = np.asarray(scores, dtype=np.float64)
    except ValueError as error:
        raise ValueError("scores is ragged; every item must be 2 captions x 2 images.") from error
    if array.shape[1:] != (2, 2):
        raise ValueError(f"scores has shape {array.shape}; it must be (items, 2 captions, 2 images).")
    bad = np.flatnonzero(np.isnan(array).any(axis=(1, 2)))
    if bad.size:
        raise ValueError(f"scores of item {bad[0]} hold NaN ({bad.size} such items); mend the model or leave them out.")
    return array
