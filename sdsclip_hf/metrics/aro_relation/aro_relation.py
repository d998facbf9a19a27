"""ARO's score on Visual Genome Relation (Yuksekgonul et al. 2023, arXiv 2210.01936)."""

import datasets
import evaluate
import numpy as np

from .choices import accuracies, judge, read_pairs, summarize
from .scoring import Bootstrap, CheckedInputs, by_group, read_labels
from .symmetric_relations import SYMMETRIC

_DESCRIPTION = """
ARO's score on Visual Genome Relation, where the false caption has the two nouns of the true one swapped. An item is
right if its true caption scores strictly higher with the image; a tie is wrong. The score is the unweighted mean over
relations of the accuracy on each, without the relations that the authors call symmetric. Random scores give 1/2.
"""

_INPUTS = """
Args:
    true_scores: N scores of the true captions with their images; higher means a better match.
    false_scores: N scores of the false captions with the same images, as (N,) or (N, 1).
    relations: optional list of N relation names. Without it only the plain accuracy over all items is returned, since
        the published score needs the relations.
    drop_symmetric: leave out the authors' symmetric relations. Default True. With False the mean over all relations is
        returned as "aro_relation_all", for it is not the published score.
    confidence: of the intervals, in (0, 1). Default 0.95.
    n_resamples: bootstrap resamples of the items, within each relation. Default 1000; 0 gives no intervals.
    seed: of the bootstrap. Default 0.
Returns:
    aro_relation: the mean over relations, a fraction in [0, 1].
    aro_relation_micro: the share of right items among those kept; aro_relation_micro_all: among all items.
    relations: relation -> {"accuracy", "n"}, of those kept.
    n: how many items are kept. n_dropped: how many have a symmetric relation. ties: how many of those kept are tied.
    counts: how many items each score is over. intervals: the (low, high) of each score.
Raises:
    ValueError: no items, a wrong shape, NaN, relations that differ in number, or none but symmetric ones.
Examples:
    >>> metric = evaluate.load("aro_relation")
    >>> inputs = {"true_scores": [0.9, 0.2, 0.7], "false_scores": [0.1, 0.6, 0.3]}
    >>> metric.compute(**inputs, relations=["on", "on", "behind"])["aro_relation"]
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
class AroRelation(CheckedInputs, evaluate.Metric):
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
        relations=None,
        drop_symmetric=True,
        confidence=0.95,
        n_resamples=1000,
        seed=0,
    ):
        bootstrap = Bootstrap(confidence, n_resamples, seed)
        right, tied = judge(true_scores, false_scores)
        if relations is None:
            return summarize({"aro_relation_micro": {"all": right}}, bootstrap, n=len(right), ties=int(tied.sum()))
        relations = read_labels("relations", relations, len(right))
        kept = _kept(relations, drop_symmetric)
        by_relation = by_group(right[kept], relations[kept])
        scores = {
            "aro_relation" if drop_symmetric else "aro_relation_all": by_relation,
            "aro_relation_micro": {"kept": right[kept]},
            "aro_relation_micro_all": {"all": right},
        }
        counts = {"n": int(kept.sum()), "n_dropped": int((~kept).sum()), "ties": int(tied[kept].sum())}
        return summarize(scores, bootstrap, relations=accuracies(by_relation), **counts)


def _kept(relations, drop_symmetric):
    """Which of N items count for the score, as bool (N,)."""
    if not drop_symmetric:
        return np.ones(len(relations), dtype=bool)
    kept = ~np.isin(relations, SYMMETRIC)
    if not kept.any():
        raise ValueError(
            f"all {len(relations)} items have a symmetric relation, such as {str(relations[0])!r}, which the published "
            "score leaves out; give drop_symmetric=False for a mean over all relations."
        )
    return kept
