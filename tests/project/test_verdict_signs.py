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

    def run(arm, right, seeds=2):
        scores = np.tile(np.eye(2), (8, 1, 1))
        scores[[not one for one in right]] = 1 - np.eye(2)
        (tmp_path / arm).mkdir()
        for seed in range(seeds):
            np.savez(tmp_path / arm / f"seed-{seed}.npz", scores=scores, tags=tags)

    run("contrastive", [1, 1, 1, 0, 0, 0, 0, 1])
    run("ranking_200_steps", [1, 1, 0, 0, 1, 1, 0, 1])
    (tmp_path / "skill").mkdir()
    skill = {"attribute": 0.6, "relation": 0.2}
    (tmp_path / "skill" / "200_steps-0.json").write_text(json.dumps({"skill": skill}))
    first, second = tool.signs(tmp_path, "ranking", "contrastive")
    assert (first["student_is"], first["gain"], tool.is_right(first)) == (75, -25, True)
    assert (second["student_is"], second["gain"], tool.is_right(second)) == (25, 50, False)
    with pytest.raises(SystemExit, match="holds no run"):
        tool.signs(tmp_path, "confidence", "contrastive")
