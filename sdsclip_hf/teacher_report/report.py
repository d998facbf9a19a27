"""A teacher or ranker on questions whose answer is known: all figures of the report, and the verdict."""

from collections.abc import Sequence
from dataclasses import replace

from sdsclip_hf.evaluation.scorers import ClipScorer
from sdsclip_hf.planning.scoring import plan_scoring
from sdsclip_hf.rankers.caption_ranker import CaptionRanker
from sdsclip_hf.scoring.arguments import ScoringArguments
from sdsclip_hf.scoring.caption_errors import CaptionErrors
from sdsclip_hf.teacher_report.answers import ask_ranker, ask_student, pairs_of
from sdsclip_hf.teacher_report.figures import accuracy_rows, by_draws, by_timestep, calibration, timestep_weights
from sdsclip_hf.teacher_report.questions import Question
from sdsclip_hf.teacher_report.verdict import judge


def report_on(
    ranker: CaptionErrors | CaptionRanker, questions: Sequence[Question], students: dict[str, ClipScorer] | None = None
) -> dict:
    """All figures and the verdict.

    Args:
        ranker: a teacher, as the [`CaptionErrors`] that takes its draws without an early stop; or a ranker, whose scores
            have one draw, so that draws and timesteps tell nothing.
        questions: from [`dataset_questions`] or [`benchmark_questions`].
        students: run -> model to be tuned, and what the teacher has to beat.

    Returns:
        ``questions`` and ``pairs`` (how many), ``calls`` and ``calls_per_second``;
        ``accuracy`` and ``calibration``, of a teacher ``draws``, ``timesteps`` and ``weights``, see [`figures`];
        ``verdict``, see [`judge`].

    Raises:
        ValueError: nothing is ranked, or a score is not finite.
        OSError: a picture cannot be read.

    Example:

    ```python
    from sdsclip_hf import FunctionRanker
    from sdsclip_hf.benchmarks import load_benchmark
    from sdsclip_hf.teacher_report.questions import benchmark_questions
    from sdsclip_hf.teacher_report.report import report_on

    def first_by_alphabet(image, captions):  # never looks at the picture
        return [-float(sorted(captions).index(text)) for text in captions]

    questions, _ = benchmark_questions(load_benchmark("shapes:validation"), most=40)
    report = report_on(FunctionRanker(first_by_alphabet), questions)
    print(report["pairs"], report["verdict"]["kinds"][0]["verdict"])  # 80 chance
    ```
    """
    pairs, answer = pairs_of(questions), ask_ranker(ranker, questions)
    students = {run: ask_student(one, questions) for run, one in (students or {}).items()}
    told: dict = {"questions": len(questions), "pairs": len(pairs.kinds)}
    told |= {"calls": answer.calls, "calls_per_second": answer.speed}
    told["accuracy"] = accuracy_rows(pairs, answer.gaps.sum(1), students)
    told["calibration"] = calibration(pairs, answer.gaps)
    if isinstance(ranker, CaptionErrors):
        timesteps = ranker.timesteps.tolist()
        told["draws"], told["timesteps"] = by_draws(pairs, answer.gaps), by_timestep(pairs, answer.gaps, timesteps)
        told["weights"] = timestep_weights(pairs, answer.gaps, timesteps)
        for row, weight in zip(told["timesteps"], (told["weights"] or {}).get("weights", ()), strict=False):
            row["weight"] = weight
    return told | {"verdict": judge(told)}


def scoring_cost(report: dict, arguments: ScoringArguments, pictures: int) -> dict:
    """What a scoring of so many pictures will take, at most; by a teacher with the draws of the verdict.

    Args:
        report: from [`report_on`].
        arguments: of the scoring.
        pictures: of the dataset.

    Returns:
        ``pictures``, ``captions``, ``calls``, and ``hours`` at the report's own speed; of a teacher also ``draws``, ``gib``
        of memory, and ``tflop`` of a call, as ``sdsclip plan`` tells them.
    """
    told: dict = {"pictures": pictures, "captions": 1 + sum(arguments.sources.values())}
    calls = told["pictures"] * told["captions"]
    if draws := report["verdict"].get("draws"):
        plan = plan_scoring(replace(arguments, num_draws=draws), 1.0, pictures)
        told |= {name: plan[name] for name in ("draws", "gib", "tflop")}
        calls *= draws
    return told | {"calls": calls, "hours": calls / report["calls_per_second"] / 3600}
