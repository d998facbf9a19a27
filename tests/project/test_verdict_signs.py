"""The tool that counts how often the verdict's sign is right, on a made-up study."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parents[2] / "tools" / "verdict_signs.py"


def test_signs_of_a_made_up_study(tmp_path):
    spec = importlib.util.spec_from_file_location("verdict_signs", PATH)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tags = np.array(["attribute"] * 4 + ["relation"] * 4)

    (tmp_path / "contrastive").mkdir()
    scores = np.tile(np.eye(2), (8, 1, 1))
    scores[[3, 4, 5, 6]] = 1 - np.eye(2)  # right on three quarters of the attributes and a quarter of the relations
    for seed in (0, 1):
        np.savez(tmp_path / "contrastive" / f"seed-{seed}.npz", scores=scores, tags=tags)

    def came(gain, low, high):
        return {"gain": gain, "gain_interval": [low, high]}

    teachers = {
        "early": ({"attribute": 60.0, "relation": 20.0}, came(-25.0, -30.0, -20.0), came(3.0, -1.0, 7.0)),
        "late": ({"attribute": 70.0, "relation": 90.0}, came(9.0, 5.0, 12.0), came(-1.0, -4.0, 2.0)),
    }
    results = {"settings": {"curves": {"ranking": {}}}, "skill": {name: one[0] for name, one in teachers.items()}}
    results["arms"] = {f"ranking, {n}": {"attribute": a, "relation": r} for n, (_, a, r) in teachers.items()}
    (tmp_path / "results.json").write_text(json.dumps(results))
    labels = {"attribute": came(8.0, 4.0, 12.0), "relation": came(1.0, -2.0, 4.0)}
    results["arms"]["labels"] = labels
    (tmp_path / "results.json").write_text(json.dumps(results))
    rows = tool.signs(tmp_path, "ranking", "contrastive", "labels")
    assert [tool.help_is_right(row) for row in rows] == [True, True, False, True]  # nobody can teach it relations
    rows = tool.signs(tmp_path, "ranking", "contrastive")
    assert [row["student_is"] for row in rows] == [75, 25, 75, 25]
    assert [tool.sign_is_right(row) for row in rows] == [True, False, False, False]
    assert [tool.help_is_right(row) for row in rows] == [True, True, False, False]
    for arms, message in (
        (("confidence", "contrastive"), "no curve 'confidence'"),
        (("ranking", "other"), "holds no run"),
    ):
        with pytest.raises(SystemExit, match=message):
            tool.signs(tmp_path, *arms)
