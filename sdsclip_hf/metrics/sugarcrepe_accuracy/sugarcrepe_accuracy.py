"""SugarCrepe's accuracy (Hsieh et al. 2023, arXiv 2306.14610)."""

import datasets
import evaluate

from .choices import accuracies, judge, read_pairs, summarize
from .scoring import Bootstrap, CheckedInputs, by_group, read_labels

_DESCRIPTION = """
SugarCrepe's accuracy. An item is right if its caption scores strictly higher with the image than its hard negative; a tie
is wrong. The score is the unweighted mean of the accuracies of the benchmark's subsets (add, replace and swap, each of
objects, attributes and, for replace, relations). Random scores give 1/2.
"""

_INPUTS = """
Args:
    true_scores: N scores of the captions with their images; higher means a better match.
    false_scores: N scores of the hard negatives with the same images, as (N,) or (N, 1).
    subsets: optional list of N names of subsets, such as "swap_obj". Without it only the plain accuracy over all items
        is returned.
    confidence: of the intervals, in (0, 1). Default 0.95.
    n_resamples: bootstrap resamples of the items, within each subset. Default 1000; 0 gives no intervals.
    seed: of the bootstrap. Default 0.
Returns:
    sugarcrepe_accuracy: the mean over the subsets that occur, a fraction in [0, 1].
    sugarcrepe_accuracy_micro: the share of right items among all.
    subsets: subset -> {"accuracy", "n", "ties", "interval"}.
    n: how many items. ties: how many have an exact tie.
    counts: how many items each score is over. intervals: the (low, high) of each score.
Raises:
    ValueError: no items, a wrong shape, NaN, or subsets that differ in number.
Examples:
    >>> metric = evaluate.load("sugarcrepe_accuracy")
    >>> inputs = {"true_scores": [0.9, 0.2, 0.7], "false_scores": [0.1, 0.6, 0.3]}
    >>> metric.compute(**inputs, subsets=["swap_obj", "swap_obj", "add_att"])["sugarcrepe_accuracy"]
    0.75
"""

_CITATION = """
@inproceedings{hsieh2023sugarcrepe,
  title = {SugarCrepe: Fixing Hackable Benchmarks for Vision-Language Compositionality},
  author = {Hsieh, Cheng-Yu and Zhang, Jieyu and Ma, Zixian and Kembhavi, Aniruddha and Krishna, Ranjay},
  booktitle = {NeurIPS Datasets and Benchmarks},
  year = {2023},
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class SugarcrepeAccuracy(CheckedInputs, evaluate.Metric):
    read_inputs = staticmethod(read_pairs)

    def _info(self):
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"true_scores": number, "false_scores": datasets.Sequence(number)}),
            reference_urls=["https://arxiv.org/abs/2306.14610"],
            codebase_urls=["https://github.com/RAIVNLab/sugar-crepe"],
        )

    def _compute(self, true_scores, false_scores, subsets=None, confidence=0.95, n_resamples=1000, seed=0):
        bootstrap = Bootstrap(confidence, n_resamples, seed)
        right, tied = judge(true_scores, false_scores)
        micro = {"sugarcrepe_accuracy_micro": {"all": right}}
        counts = {"n": len(right), "ties": int(tied.sum())}
        if subsets is None:
            return summarize(micro, bootstrap, **counts)
        labels = read_labels("subsets", subsets, len(right))
        groups = by_group(right, labels)
        details = accuracies(groups)
        for name, ties in by_group(tied, labels).items():
            details[name]["ties"] = int(ties.sum())
            if bootstrap.n_resamples:
                details[name]["interval"] = bootstrap.interval([groups[name]])
        return summarize({"sugarcrepe_accuracy": groups} | micro, bootstrap, subsets=details, **counts)
