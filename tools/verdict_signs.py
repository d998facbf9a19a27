# /// script
# requires-python = ">=3.10"
# dependencies = ["sdsclip_hf"]  # or from git: ["sdsclip_hf @ git+https://github.com/OWNER/sdsclip_hf"]
# ///
"""Whether the rule of `sdsclip teacher-report` tells beforehand where a teacher helps, by finished studies of teachers.

python tools/verdict_signs.py outputs/study_teachers outputs/study_teachers_direction

The rule: a teacher helps on a kind of pairs where it is right more often than the student that the baseline leaves. What
came of it: the group score of the arm that learnt from the teacher, less that of the baseline, with its 95 % interval. With
--labels ARM, which learnt from true labels, a teacher helps only where these gain for certain: what a student does not learn
from labels no teacher teaches it.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from sdsclip_hf.study.settings import slug


def signs(study: Path, curve: str, baseline: str, labels: str | None = None) -> list[dict]:
    """Rows of ``teacher``, ``kind``, the accuracies ``teacher_is`` and ``student_is``, ``gain`` and its ``interval``, in %;
    and ``can_learn``, whether labels gain for certain, always without them.

    Args:
        study: the folder of a finished study with curves.
        curve, baseline, labels: arms of it.
    """
    file = study / "results.json"
    if not file.is_file():
        raise SystemExit(f"error: {study} has no results.json; give the folder of a finished study.")
    results, student = json.loads(file.read_text(encoding="utf-8")), _accuracy(study / slug(baseline))
    rows = []
    for teacher, skill in results["skill"].items():
        arm = f"{curve}, {teacher}"
        if arm not in results["arms"]:
            curves = ", ".join(results["settings"]["curves"])
            raise SystemExit(f"error: {study} has no curve {curve!r}; give --curve one of {curves}.")
        for kind, accuracy in skill.items():
            came = results["arms"][arm][kind]
            row = {"teacher": teacher, "kind": kind, "teacher_is": accuracy, "student_is": student[kind]}
            can_learn = labels is None or results["arms"][labels][kind]["gain_interval"][0] > 0
            rows.append(row | {"gain": came["gain"], "interval": came["gain_interval"], "can_learn": can_learn})
    return rows


def _accuracy(folder: Path) -> dict[str, float]:
    """Kind -> the share of pairs of captions that an arm has right, in %, the mean over its seeds."""
    files = sorted(folder.glob("seed-*.npz"))
    if not files:
        raise SystemExit(f"error: {folder} holds no run; give the folder of a finished study.")
    found: dict[str, list[float]] = {}
    for file in files:
        with np.load(file) as run:
            scores, tags = run["scores"], run["tags"]
        right = np.stack([scores[:, 0, 0] > scores[:, 1, 0], scores[:, 1, 1] > scores[:, 0, 1]], 1)
        for kind in dict.fromkeys(tags.tolist()):
            found.setdefault(kind, []).append(100 * right[tags == kind].mean())
    return {kind: float(np.mean(values)) for kind, values in found.items()}


def sign_is_right(row: dict) -> bool:
    """Whether the gain has the sign that the rule tells; no gain at all is a wrong one."""
    return (row["teacher_is"] - row["student_is"]) * row["gain"] > 0


def help_is_right(row: dict) -> bool:
    """Whether the teacher gains where the rule says that it helps, and where it does not, gains nothing that is certain."""
    helps = row["can_learn"] and row["teacher_is"] > row["student_is"]
    return row["gain"] > 0 if helps else row["interval"][0] <= 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path)
    parser.add_argument("--curve", default="ranking")
    parser.add_argument("--baseline", default="contrastive")
    parser.add_argument("--labels", help="an arm that learnt from true labels")
    args = parser.parse_args()
    rows = [
        row | {"study": study.name}
        for study in args.studies
        for row in signs(study, args.curve, args.baseline, args.labels)
    ]
    for row in rows:
        print(
            f"{row['study']:<26} {row['teacher']:<12} {row['kind']:<22} teacher {row['teacher_is']:5.1f}  student "
            f"{row['student_is']:5.1f}  gain {row['gain']:+6.1f} [{row['interval'][0]:+.1f}, {row['interval'][1]:+.1f}]  "
            f"{'right' if help_is_right(row) else 'WRONG'}{'' if sign_is_right(row) else ', other sign'}"
        )
    told, signed = sum(map(help_is_right, rows)), sum(map(sign_is_right, rows))
    print(f"Whether the teacher helps is told right in {told} of {len(rows)} cases, the sign of the gain in {signed}.")


if __name__ == "__main__":
    main()
