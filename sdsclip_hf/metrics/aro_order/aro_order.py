"""ARO's score on COCO Order and Flickr30k Order (Yuksekgonul et al. 2023, arXiv 2210.01936)."""

import datasets
import evaluate
import numpy as np

from .choices import judge, read_choices, summarize
from .scoring import Bootstrap, CheckedInputs

_DESCRIPTION = """
ARO's score on COCO Order and Flickr30k Order, published as precision@1: the share of items whose true caption scores
strictly higher with the image than every one of its K reordered captions; a tie is wrong. Random scores give
1 / (K + 1), which is 1/5 for the four reorderings of the benchmark.
"""

_INPUTS = """
Args:
    true_scores: N scores of the true captions with their images; higher means a better match.
    false_scores: N lists of K scores of the reordered captions with the same images, in the same order for each item.
    confidence: of the intervals, in (0, 1). Default 0.95.
    n_resamples: bootstrap resamples of the items. Default 1000; 0 gives no intervals.
    seed: of the bootstrap. Default 0.
Returns:
    aro_order: the share of right items, a fraction in [0, 1].
    perturbations: K fractions; the k-th is the share of items whose true caption scores higher than the k-th false one.
    n: how many items. ties: in how many the true caption scores the same as the best false one.
    counts: how many items the score is over. intervals: the (low, high) of the score.
Raises:
    ValueError: no items, a wrong shape, or NaN.
Examples:
    >>> metric = evaluate.load("aro_order")
    >>> result = metric.compute(true_scores=[0.9, 0.5], false_scores=[[0.1, 0.2, 0.3, 0.4], [0.6, 0.1, 0.2, 0.3]])
    >>> result["aro_order"], result["perturbations"]
    (0.5, [0.5, 1.0, 1.0, 1.0])
"""

_CITATION = """
@inproceedings{yuksekgonul2023when,
  title = {When and why vision-language models behave like bags-of-words, and what to do about it?},
  author = {Yuksekgonul, Mert and Bianchi, Federico and Kalluri, Pratyusha and Jurafsky, Dan and Zou, James},
  booktitle = {ICLR},
  year = {2023},
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class AroOrder(CheckedInputs, evaluate.Metric):
    read_inputs = staticmethod(read_choices)

    def _info(self):
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"true_scores": number, "false_scores": datasets.Sequence(number)}),
            reference_urls=["https://arxiv.org/abs/2210.01936"],
            codebase_urls=["https://github.com/mertyg/vision-language-models-are-bows"],
        )

    def _compute(self, true_scores, false_scores, confidence=0.95, n_resamples=1000, seed=0):
        right, tied = judge(true_scores, false_scores)
        wins = np.asarray(true_scores)[:, None] > np.asarray(false_scores)  # (N, K)
        return summarize(
            {"aro_order": {"all": right}},
            Bootstrap(confidence, n_resamples, seed),
            perturbations=wins.mean(axis=0).tolist(),
            n=len(right),
            ties=int(tied.sum()),
        )
