"""Damage to a file of a folder of scores."""

import shutil
from pathlib import Path

import numpy as np

from sdsclip_hf.data.scores import CandidateScores
from sweeps import world
from sweeps.damage import damage


def trial(rng: np.random.Generator, folder: Path) -> str:
    whole = CandidateScores.load(world.scores())
    copy = folder / "scores"
    shutil.copytree(world.scores(), copy)
    file = rng.choice(sorted(path for path in copy.rglob("*") if path.is_file()))
    damage(file, rng)
    try:
        found = CandidateScores.load(copy)
    except (OSError, ValueError) as error:
        assert str(copy) in str(error), str(error)
        assert not any(word in str(error) for word in ("Traceback", "NoneType", "KeyError", "pyarrow.lib")), str(error)
        return "refused"
    assert found.data.to_dict() == whole.data.to_dict() and found.settings == whole.settings
    return "whole"
