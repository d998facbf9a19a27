# /// script
# requires-python = ">=3.10"
# dependencies = ["sdsclip_hf"]  # or from git: ["sdsclip_hf @ git+https://github.com/OWNER/sdsclip_hf"]
# ///
"""Whether the rule of `sdsclip teacher-report` tells beforehand where a teacher helps, by finished studies of teachers.

python tools/verdict_signs.py outputs/study_teachers outputs/study_teachers_direction

The rule: a teacher helps on a kind of pairs where it is right more often than the student that the baseline leaves. What
came of it: the group score of the arm that learnt from the teacher, less that of the baseline, each the mean over its seeds.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from sdsclip_hf.metrics.common.winoground import right_items
from sdsclip_hf.study.settings import slug


def signs(study: Path, curve: str, baseline: str) -> list[dict]:
    """Rows of ``teacher``, ``kind``, the accuracies ``teacher_is`` and ``student_is``, and the ``gain``, all in %.

    Args:
        study: the folder of a finished study with curves.
        curve, baseline: arms of it.
    """
    rows, before = [], _runs(study / slug(baseline))
    for path in sorted((study / "skill").glob("*.json")):
        name = path.stem.rpartition("-")[0]
        after = _runs(study / f"{slug(curve)}_{name}")
        for kind, skill in json.loads(path.read_text(encoding="utf-8"))["skill"].items():
            row = {"teacher": name, "kind": kind, "teacher_is": 100 * skill, "student_is": before[kind]["pairs"]}
            rows.append(row | {"gain": after[kind]["group"] - before[kind]["group"]})
    return rows


def _runs(folder: Path) -> dict[str, dict[str, float]]:
    """Kind -> the share of pairs of captions, and of items as a group, that an arm's seeds have right, in %."""
    files = sorted(folder.glob("seed-*.npz"))
    if not files:
        raise SystemExit(f"error: {folder} holds no run; give the folder of a finished study.")
    found: dict[str, dict[str, list[float]]] = {}
    for file in files:
        with np.load(file) as run:
            scores, tags = run["scores"], run["tags"]
        pairs = np.stack([scores[:, 0, 0] > scores[:, 1, 0], scores[:, 1, 1] > scores[:, 0, 1]], 1)
        group = right_items(scores)["group"]
        for kind in dict.fromkeys(tags.tolist()):
            of_kind = found.setdefault(kind, {"pairs": [], "group": []})
            of_kind["pairs"].append(100 * pairs[tags == kind].mean())
            of_kind["group"].append(100 * group[tags == kind].mean())
    return {kind: {name: float(np.mean(values)) for name, values in one.items()} for kind, one in found.items()}


def is_right(row: dict) -> bool:
    """Whether the sign that the rule tells is that of the gain; no gain at all is a wrong one."""
    return (row["teacher_is"] - row["student_is"]) * row["gain"] > 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path)
    parser.add_argument("--curve", default="ranking")
    parser.add_argument("--baseline", default="contrastive")
    args = parser.parse_args()
    rows = [row | {"study": study.name} for study in args.studies for row in signs(study, args.curve, args.baseline)]
    for row in rows:
        print(
            f"{row['study']:<26} {row['teacher']:<12} {row['kind']:<22} teacher {row['teacher_is']:5.1f}  student "
            f"{row['student_is']:5.1f}  gain {row['gain']:+6.1f}  {'right' if is_right(row) else 'WRONG'}"
        )
    print(f"{sum(map(is_right, rows))} of {len(rows)} signs are right.")


if __name__ == "__main__":
    main()
