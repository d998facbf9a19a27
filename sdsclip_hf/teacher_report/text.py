"""The report as text for a terminal, of at most 100 columns."""

import textwrap
from collections.abc import Iterator

from sdsclip_hf.evaluation.tables import WIDTH, aligned
from sdsclip_hf.teacher_report.figures import ALL, BY_KIND, BY_TAG
from sdsclip_hf.teacher_report.verdict import CHANCE, FEW, HELPS, HURTS, OPEN, SAME

NAME_WIDTH = 24
MEANING = {
    HELPS: "better than {student}: what it teaches should help there",
    HURTS: "worse than {student}: it should add nothing there, and as a divergence (--ranking_form) hurt",
    SAME: "level with {student}: there is nothing to learn",
    OPEN: "open, whether it is better than {student}: more pictures (--max_samples) tell",
    CHANCE: "no better than chance: nothing is to be learnt from it there",
    FEW: "too few pictures to tell",
}


def report_text(report: dict) -> str:
    """The table of accuracies, the verdict and the costs."""
    lines = [told_of(report), "", aligned(table_lines(report)), "", note(report), ""]
    for sentence in sentences(report):
        lines += textwrap.wrap(sentence, WIDTH, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)
    return "\n".join(lines)


def told_of(report: dict) -> str:
    """Who was asked what, in a line."""
    text = f"{report['teacher']['name']} on {report['questions']:,} pictures and {report['pairs']:,} pairs"
    return textwrap.shorten(f"{text} of {report['source']['name']}", WIDTH)


def note(report: dict) -> str:
    """What the table's figures are."""
    tags = " In brackets: the benchmark's own tags." if report["accuracy"][-1]["by"] == BY_TAG else ""
    return f"Pairs right in %, with 95 % intervals; a tie is wrong.{tags}"


def table_lines(report: dict) -> list[list[str]]:
    """Cells of the table: a head, and a line for all pairs, each kind and each tag."""
    has_students = bool(report["students"])
    lines = [["", "pairs", "teacher", *(["student", "difference"] if has_students else []), "verdict"]]
    for row, kind in zip(report["accuracy"], report["verdict"]["kinds"], strict=True):
        name = row["name"] if row["by"] != BY_TAG else f"[{row['name']}]"
        cells = [textwrap.shorten(name, NAME_WIDTH, placeholder="…"), f"{row['pairs']:,}", percent(row["teacher"])]
        if has_students:
            best = row["students"][kind["student"]]
            difference = {"value": best["difference"], "interval": best["difference_interval"]}
            cells += [percent(best), percent(difference, "+")]
        lines.append([*cells, kind["verdict"]])
    return lines


def percent(share: dict, sign: str = "") -> str:
    low, high = share["interval"]
    return f"{100 * share['value']:{sign}.0f} [{100 * low:{sign}.0f}, {100 * high:{sign}.0f}]"


def sentences(report: dict) -> Iterator[str]:
    """The verdict in words, each a thing to do."""
    yield from _of_kinds(report)
    verdict, calibrated = report["verdict"], report["calibration"]
    if ties := report["accuracy"][0]["ties"]:
        yield f"Ties: {ties:,} pairs score alike."
    if "draws" in report:
        yield from _of_draws(report)
    sure = sum(one["confidence"] * one["pairs"] for one in calibrated["bins"]) / report["pairs"]
    right = next(row for row in report["accuracy"] if row["by"] == ALL)["teacher"]["value"]
    yield (
        f"Confidence: it is {sure:.0%} sure of its choices on average, and right on {right:.0%}; of the half that it is "
        f"surest of, {calibrated['surer_half']['value']:.0%} are right."
        + (" Train with --ranking_confidence." if verdict.get("confidence") else "")
    )
    if temperature := calibrated.get("temperature"):
        yield (
            f"Temperature: its softmax fits best at {temperature:.3g} (--ranking_temperature {temperature:.3g}); at 1 it "
            f"is {calibrated['untempered']:.0%} sure on average."
        )
    if cost := report["cost"]:
        yield _of_cost(cost, report["calls_per_second"])
    if report["next"]:
        yield f"Next: {report['next']}"


def _of_kinds(report: dict) -> Iterator[str]:
    kinds = [kind for kind in report["verdict"]["kinds"] if kind["by"] == BY_KIND]
    for verdict, meaning in MEANING.items():
        names = {}
        for kind in kinds:
            if kind["verdict"] == verdict:
                names.setdefault(kind["student"], []).append(kind["name"])
        for student, of_student in names.items():
            yield f"{', '.join(of_student).capitalize()}: {meaning.format(student=student or 'chance')}."
    rows = zip(report["accuracy"], report["verdict"]["kinds"], strict=True)
    hard = [kind["name"] for row, kind in rows if kind["by"] == BY_KIND and _is_unlearnt(row, kind)]
    if hard:
        yield (
            f"{', '.join(hard).capitalize()}: the student is at chance. Whether it can learn this at all a run by true "
            "labels tells (--ranking_targets labels, which needs no teacher): what these do not teach it, no teacher does."
        )
    if not report["students"]:
        yield "It is compared with chance: give the student as --model, best of all as a run without the teacher leaves it."


def _is_unlearnt(row: dict, kind: dict) -> bool:
    """Whether the teacher is ahead on a kind of pairs of which the student knows nothing."""
    return (
        kind["verdict"] == HELPS
        and kind["student"] is not None
        and row["students"][kind["student"]]["interval"][0] <= 0.5
    )


def _of_draws(report: dict) -> Iterator[str]:
    verdict, most = report["verdict"], len(report["draws"])
    if verdict["more_draws"]:
        yield f"Draws: {verdict['draws']}; the last of {most} still gain. Try --num_draws {2 * most}."
    else:
        yield f"Draws: {verdict['draws']} are within a point of {most}: --num_draws {verdict['draws']}."
    if not verdict["weighted"]:
        weighed = "no weights are clearly better" if report["weights"] else "too few pictures to fit weights"
        yield f"Timesteps: all count the same; {weighed}."
        return
    weights, (first, last) = report["weights"], verdict["timestep_range"]
    told = ", ".join(f"{row['timestep']}: {row['weight']:.2f}" for row in report["timesteps"])
    yield (
        f"Timesteps: by fitted weights {weights['accuracy']:.1%} of pairs are right (cross-validated), by equal ones "
        f"{weights['uniform_accuracy']:.1%}: --fit_weights own --stop_confidence 0. Those that count lie from {first} to "
        f"{last}. Weights: {told}."
    )


def _of_cost(cost: dict, speed: float) -> str:
    told, takes = f"{cost['pictures']:,} pictures with {cost['captions']} captions", duration(cost["hours"])
    if "draws" not in cost:
        return f"Cost: {speed:,.0f} captions a second here. {told} each: {takes}."
    return (
        f"Cost: {speed:,.0f} calls of the denoiser a second here. {told} and {cost['draws']} draws each are at most "
        f"{cost['calls']:,} calls: {takes}, {cost['gib']:.3g} GiB."
    )


def duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes" if hours >= 1 / 30 else "a minute or two"
