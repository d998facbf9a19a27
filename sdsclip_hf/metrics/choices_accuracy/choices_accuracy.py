"""How often the true candidate scores above all others, over all items and as a mean over groups."""

import datasets
import evaluate

from .choices import accuracies, judge, read_choices, summarize
from .scoring import Bootstrap, CheckedInputs, by_group, read_labels

_DESCRIPTION = """
The accuracy of choices: an item is right if its true caption scores strictly higher with the image than each of its K
false ones (or its true image with the caption); a tie is wrong. With groups the score is the unweighted mean of their
accuracies. VALSE, What'sUp, SPEC, CREPE and NegBench are scored so. Random scores give 1 / (K + 1).
"""

_INPUTS = """
Args:
    true_scores: N scores of the true candidates; higher means a better match.
    false_scores: N lists of K scores of the false candidates, or N scores where there is one; items with fewer are filled
        up with -inf.
    groups: optional list of N names, such as subsets. Without it only the plain accuracy over all items is returned.
    confidence: of the intervals, in (0, 1). Default 0.95.
    n_resamples: bootstrap resamples of the items, within each group. Default 1000; 0 gives no intervals.
    seed: of the bootstrap. Default 0.
Returns:
    choices_accuracy: the mean over the groups that occur, a fraction in [0, 1].
    choices_accuracy_micro: the share of right items among all.
    groups: group -> {"accuracy", "n", "ties", "interval"}.
    n: how many items. ties: how many have an exact tie.
    counts: how many items each score is over. intervals: the (low, high) of each score.
Raises:
    ValueError: no items, a wrong shape, NaN, or groups that differ in number.
Examples:
    >>> metric = evaluate.load("choices_accuracy")
    >>> inputs = {"true_scores": [0.9, 0.2, 0.7], "false_scores": [[0.1, 0.3], [0.6, 0.1], [0.3, 0.2]]}
    >>> metric.compute(**inputs, groups=["count", "count", "existence"])["choices_accuracy"]
    0.75
"""

_CITATION = """
@inproceedings{parcalabescu2022valse,
  title = {VALSE: A Task-Independent Benchmark for Vision and Language Models Centered on Linguistic Phenomena},
  author = {Parcalabescu, Letitia and Cafagna, Michele and Muradjan, Lilitta and Frank, Anette and Calixto, Iacer and
            Gatt, Albert},
  booktitle = {ACL},
  year = {2022},
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class ChoicesAccuracy(CheckedInputs, evaluate.Metric):
    read_inputs = staticmethod(read_choices)

    def _info(self):
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"true_scores": number, "false_scores": datasets.Sequence(number)}),
            reference_urls=["https://arxiv.org/abs/2112.07566"],
        )

    def _compute(self, true_scores, false_scores, groups=None, confidence=0.95, n_resamples=1000, seed=0):
        bootstrap = Bootstrap(confidence, n_resamples, seed)
        right, tied = judge(true_scores, false_scores)
        micro = {"choices_accuracy_micro": {"all": right}}
        counts = {"n": len(right), "ties": int(tied.sum())}
        if groups is None:
            return summarize(micro, bootstrap, **counts)
        labels = read_labels("groups", groups, len(right))
        of_group = by_group(right, labels)
        details = accuracies(of_group)
        for name, ties in by_group(tied, labels).items():
            details[name]["ties"] = int(ties.sum())
            if bootstrap.n_resamples:
                details[name]["interval"] = bootstrap.interval([of_group[name]])
        return summarize({"choices_accuracy": of_group} | micro, bootstrap, groups=details, **counts)
