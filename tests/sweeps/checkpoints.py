"""Damage to one or two files of a checkpoint."""

import shutil
from pathlib import Path

import numpy as np

from sdsclip_hf.common.checkpoints import damage, last_checkpoint
from sweeps import world
from sweeps.damage import damage as damage_file


def trial(rng: np.random.Generator, folder: Path) -> str:
    shutil.copytree(world.run(), folder / "run")
    newest = folder / "run" / "checkpoint-4"
    names = [path.name for path in sorted(newest.iterdir())]
    before = {name: (newest / name).read_bytes() for name in names}
    for name in rng.choice(names, int(rng.integers(1, 3)), replace=False):
        damage_file(newest / name, rng)
    after = {path.name: path.read_bytes() for path in newest.iterdir()}
    changed = [name for name in names if after.get(name) != before[name]]
    if not changed:
        assert last_checkpoint(folder / "run") == str(newest)
        return "whole"
    assert last_checkpoint(folder / "run") == str(folder / "run" / "checkpoint-2")
    told = damage(newest)
    seal = "sdsclip_run.json"
    assert (seal in changed and seal not in after) or any(name in told for name in changed), (changed, told)
    assert {path.name: path.read_bytes() for path in newest.iterdir()} == after
    return "refused"
