"""The text, image and group scores of any pairs, by Winoground's rules (Thrush et al. 2022, arXiv 2204.03162)."""

import datasets
import evaluate

from .scoring import Bootstrap, CheckedInputs
from .winoground import read_scores, summarize

_DESCRIPTION = """
Scores of pairs of captions and images by Winoground's rules, from a 2 x 2 matrix of similarities an item, captions in rows
and images in columns: for BiVLC, ColorSwap, VisMin, MMVP-VLM, NaturalBench-Retrieval, EqBen, COLA and sets of one's own.
With s(c, i):

* text: s(c0, i0) > s(c1, i0) and s(c1, i1) > s(c0, i1);
* image: s(c0, i0) > s(c0, i1) and s(c1, i1) > s(c1, i0);
* group: both.

A tie is wrong. Random scores give 1/4, 1/4 and 1/6.
"""

_INPUTS = """
Args:
    scores: N matrices of 2 captions x 2 images; higher means a better match.
    tags: optional list of N strings; the scores of each tag are then returned under "tags".
    confidence: of the intervals, in (0, 1). Default 0.95.
    n_resamples: bootstrap resamples of the items. Default 1000; 0 gives no intervals.
    seed: of the bootstrap. Default 0.
Returns:
    group_score, text_score, image_score: fractions in [0, 1].
    n: how many items. ties: how many have an exact tie in one of the four comparisons.
    intervals: the (low, high) of each score. tags: tag -> all of these for its items.
Raises:
    ValueError: no items, a wrong shape, NaN, or tags that differ in number.
Examples:
    >>> metric = evaluate.load("pairs_score")
    >>> metric.compute(scores=[[[0.9, 0.1], [0.2, 0.8]]])["group_score"]
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


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class PairsScore(CheckedInputs, evaluate.Metric):
    read_inputs = staticmethod(read_scores)

    def _info(self):
        matrix = datasets.Sequence(datasets.Sequence(datasets.Value("float64")))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"scores": matrix}),
            reference_urls=["https://arxiv.org/abs/2204.03162"],
        )

    def _compute(self, scores, tags=None, confidence=0.95, n_resamples=1000, seed=0):
        bootstrap = Bootstrap(confidence, n_resamples, seed)
        return summarize(scores, tags, ("group", "text", "image"), bootstrap, name="{}_score")
