"""ARO's score on Visual Genome Attribution (Yuksekgonul et al. 2023, arXiv 2210.01936)."""

import datasets
import evaluate

from .choices import accuracies, judge, read_pairs, summarize
from .scoring import Bootstrap, CheckedInputs, by_group, read_labels

_DESCRIPTION = """
ARO's score on Visual Genome Attribution, where the false caption has the attributes of the two objects swapped. An item is
right if its true caption scores strictly higher with the image; a tie is wrong. The score is the unweighted mean over
ordered pairs of attributes of the accuracy on each, of the pairs with at least 25 cases. Random scores give 1/2.
"""

_INPUTS = """
Args:
    true_scores: N scores of the true captions with their images; higher means a better match.
    false_scores: N scores of the false captions with the same images, as (N,) or (N, 1).
    attributes: optional list of N pairs (a, b), in the caption's order, or of N strings such as "a_b". Without it only
        the plain accuracy over all items is returned, since the published score needs the attributes.
    min_count: pairs with fewer cases are left out of the mean. Default 25, as published.
    confidence: of the intervals, in (0, 1). Default 0.95.
    n_resamples: bootstrap resamples of the items, within each pair. Default 1000; 0 gives no intervals.
    seed: of the bootstrap. Default 0.
Returns:
    aro_attribution: the mean over the pairs kept, a fraction in [0, 1].
    aro_attribution_micro: the share of right items among all.
    attributes: "a_b" -> {"accuracy", "n"}, of the pairs kept.
    n: how many items. n_kept: how many belong to a pair that is kept. min_count: as given. ties: how many are tied.
    counts: how many items each score is over. intervals: the (low, high) of each score.
Raises:
    ValueError: no items, a wrong shape, NaN, attributes that differ in number, or no pair with min_count cases.
Examples:
    >>> metric = evaluate.load("aro_attribution")
    >>> inputs = {"true_scores": [0.9, 0.2, 0.7], "false_scores": [0.1, 0.6, 0.3]}
    >>> attributes = [("red", "round"), ("red", "round"), ("round", "red")]
    >>> metric.compute(**inputs, attributes=attributes, min_count=1)["aro_attribution"]
    0.75
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
class AroAttribution(CheckedInputs, evaluate.Metric):
    read_inputs = staticmethod(read_pairs)

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

    def _compute(
        self,
        true_scores,
        false_scores,
        attributes=None,
        min_count=25,
        confidence=0.95,
        n_resamples=1000,
        seed=0,
    ):
        bootstrap = Bootstrap(confidence, n_resamples, seed)
        right, tied = judge(true_scores, false_scores)
        micro = {"aro_attribution_micro": {"all": right}}
        if attributes is None:
            return summarize(micro, bootstrap, n=len(right), ties=int(tied.sum()))
        labels = read_labels("attributes", _pair_names(attributes), len(right))
        kept = _frequent(by_group(right, labels), min_count)
        counts = {"n": len(right), "n_kept": sum(map(len, kept.values())), "min_count": min_count}
        counts["ties"] = int(tied.sum())
        return summarize({"aro_attribution": kept} | micro, bootstrap, attributes=accuracies(kept), **counts)


def _pair_names(attributes):
    """Pairs (a, b) as "a_b", which is how the authors name them; strings as they are."""
    if isinstance(attributes, str):
        return attributes
    names = []
    for item, pair in enumerate(attributes):
        if isinstance(pair, list | tuple):
            if len(pair) != 2 or not all(isinstance(attribute, str) for attribute in pair):
                raise ValueError(f"attributes of item {item} are {pair!r}; give two texts, or one such as 'red_round'.")
            pair = "_".join(pair)
        names.append(pair)
    return names


def _frequent(groups, min_count):
    """The groups with at least ``min_count`` items."""
    kept = {name: right for name, right in groups.items() if len(right) >= min_count}
    if not kept:
        largest = max(groups, key=lambda name: len(groups[name]))
        raise ValueError(
            f"no attribute pair has min_count={min_count} cases; the most frequent, {largest!r}, has "
            f"{len(groups[largest])}. Lower min_count, or leave attributes out for the plain accuracy."
        )
    return kept
