"""What to do with a teacher, by plain rules on the report's figures."""

from sdsclip_hf.scoring.caption_errors import FEWEST_DRAWS
from sdsclip_hf.scoring.timestep_weights import FEWEST_LABELLED
from sdsclip_hf.teacher_report.figures import ALL

LITTLE = 0.01  # of accuracy: what fewer draws may cost, and weights must gain
LEVEL = 0.02  # of accuracy: less between teacher and student is nothing to learn
CLEARLY = 0.05  # what weights by confidence should find between sure and unsure pairs
HELPS, HURTS, SAME, OPEN, CHANCE, FEW = "better", "worse", "level", "open", "chance", "few"


def judge_kind(row: dict) -> dict:
    """Whether the teacher is worth asking on one kind of pairs.

    It is where it is right more often than every student that the report was given, since what it teaches comes in the place
    of what they know. The difference must be clear of 0, and the accuracy of chance, by their 95 % intervals.

    Args:
        row: of [`accuracy_rows`].

    Returns:
        ``name``, ``verdict`` (better, worse, level, open, chance, or few: fewer than 20 pictures), ``student``, the best
        one's run, and ``difference``, the teacher's accuracy less that one's, whose sign tells which way an ``open`` one
        leans; without students they are None and the difference to chance.
    """
    best = max(row["students"], key=lambda run: row["students"][run]["value"], default=None)
    other = row["students"].get(best) or {
        "difference": row["teacher"]["value"] - 0.5,
        "difference_interval": [bound - 0.5 for bound in row["teacher"]["interval"]],
    }
    low, high = other["difference_interval"]
    if row["pictures"] < FEWEST_LABELLED:
        verdict = FEW
    elif row["teacher"]["interval"][0] <= 0.5 and high >= 0:
        verdict = CHANCE
    elif max(-low, high) <= LEVEL:
        verdict = SAME
    else:
        verdict = HELPS if low > 0 else HURTS if high < 0 else OPEN
    return {"name": row["name"], "verdict": verdict, "student": best, "difference": other["difference"]}


def judge(figures: dict) -> dict:
    """The verdict of a report.

    Args:
        figures: ``accuracy``, ``calibration``, ``draws``, ``timesteps`` and ``weights``, of [`figures`]; a ranker has not
            the last three.

    Returns:
        ``kinds``: see [`judge_kind`], of all pairs, kinds and tags. Of a teacher also ``draws``: the fewest whose accuracy
        is within a point of that of all; ``more_draws``: whether the last of them still gain; ``weighted``: whether fitted
        weights gain more than a point over equal ones; ``timestep_range``: those whose weight is above 0; and
        ``confidence``: whether the pairs that it is surer of are right more often than others by 5 points.
    """
    told: dict = {"kinds": [judge_kind(row) | {"by": row["by"]} for row in figures["accuracy"]]}
    if "draws" not in figures:
        return told
    overall = next(row for row in figures["accuracy"] if row["by"] == ALL)["teacher"]["value"]
    told["confidence"] = figures["calibration"]["surer_half"]["value"] - overall >= CLEARLY / 2
    draws, weights = figures["draws"], figures["weights"]
    told["draws"] = max(FEWEST_DRAWS, *(row["draws"] + 1 for row in draws if row["loss"] > LITTLE), 0)
    told["more_draws"] = len(draws) > 1 and draws[(len(draws) - 1) // 2]["loss"] > LITTLE
    told["weighted"] = bool(weights) and weights["accuracy"] - weights["uniform_accuracy"] > LITTLE
    used = [row["timestep"] for row in figures["timesteps"] if not told["weighted"] or row["weight"] > 0]
    return told | {"timestep_range": [min(used), max(used)]}
