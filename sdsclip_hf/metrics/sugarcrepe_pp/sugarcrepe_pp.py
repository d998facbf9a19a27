"""SugarCrepe++'s image-text and text-only accuracy (Dumpala et al. 2024, arXiv 2406.11171)."""

import datasets
import evaluate

from .choices import summarize
from .scoring import Bootstrap, CheckedInputs, by_group, read_labels, refuse_nan
from .triplets import judge_itt, judge_tot, read_triplets

_DESCRIPTION = """
SugarCrepe++'s two accuracies. An item has an image, two true captions P1 and P2 of different words, and a false one N. It is
right in the image-text task (ITT) if both true captions score strictly higher with the image than the false one, and in the
text-only task (TOT) if the true ones are strictly more similar to one another than each to the false one. The scores are
unweighted means over the five subsets. Random scores give 1/3.
"""

_INPUTS = """
Args:
    image_scores: N triples: the scores of P1, P2 and N with the image; higher means a better match.
    caption_scores: N triples: the similarities of P1 and P2, of P1 and N, and of P2 and N.
    subsets: optional list of N names of subsets, such as "swap_object". Without it only the plain accuracies are returned.
    confidence: of the intervals, in (0, 1). Default 0.95.
    n_resamples: bootstrap resamples of the items, within each subset. Default 1000; 0 gives no intervals.
    seed: of the bootstrap. Default 0.
Returns:
    itt, tot: the means over the subsets that occur, fractions in [0, 1].
    itt_micro, tot_micro: the shares of right items among all.
    subsets: subset -> {"itt", "tot", "n"}.
    n: how many items. ties: in how many a comparison of either task is an exact tie.
    counts: how many items each score is over. intervals: the (low, high) of each score.
Raises:
    ValueError: no items, a wrong shape, NaN, or subsets that differ in number.
Examples:
    >>> metric = evaluate.load("sugarcrepe_pp")
    >>> result = metric.compute(image_scores=[[0.9, 0.8, 0.1]], caption_scores=[[0.7, 0.8, 0.2]])
    >>> result["itt_micro"], result["tot_micro"]
    (1.0, 0.0)
"""

_CITATION = """
@inproceedings{dumpala2024sugarcrepepp,
  title = {SUGARCREPE++ Dataset: Vision-Language Model Sensitivity to Semantic and Lexical Alterations},
  author = {Dumpala, Sri Harsha and Jaiswal, Aman and Sastry, Chandramouli and Milios, Evangelos and Oore, Sageev and
            Sajjad, Hassan},
  booktitle = {NeurIPS Datasets and Benchmarks},
  year = {2024},
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class SugarcrepePp(CheckedInputs, evaluate.Metric):
    read_inputs = staticmethod(read_triplets)

    def _info(self):
        triple = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"image_scores": triple, "caption_scores": triple}),
            reference_urls=["https://arxiv.org/abs/2406.11171", "https://huggingface.co/datasets/Aman-J/SugarCrepe_pp"],
            codebase_urls=["https://github.com/Sri-Harsha/scpp"],
        )

    def _compute(self, image_scores, caption_scores, subsets=None, confidence=0.95, n_resamples=1000, seed=0):
        bootstrap = Bootstrap(confidence, n_resamples, seed)
        inputs = read_triplets(image_scores, caption_scores)
        for name, array in inputs.items():
            refuse_nan(name, array)
        itt, tied = judge_itt(inputs["image_scores"])
        tot, alike = judge_tot(inputs["caption_scores"])
        micro = {"itt_micro": {"all": itt}, "tot_micro": {"all": tot}}
        counts = {"n": len(itt), "ties": int((tied | alike).sum())}
        if subsets is None:
            return summarize(micro, bootstrap, **counts)
        labels = read_labels("subsets", subsets, len(itt))
        macro = {"itt": by_group(itt, labels), "tot": by_group(tot, labels)}
        details = {
            name: {"itt": float(right.mean()), "tot": float(macro["tot"][name].mean()), "n": len(right)}
            for name, right in macro["itt"].items()
        }
        return summarize(macro | micro, bootstrap, subsets=details, **counts)
