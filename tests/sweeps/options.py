"""Any option with any value, from a yaml file."""

import os
from dataclasses import fields
from pathlib import Path

import numpy as np
import yaml

from sdsclip_hf.config import SDSCLIPConfig
from sdsclip_hf.training.arguments import DataArguments, ModelArguments, parse_arguments

NAMES = sorted({entry.name for kind in (ModelArguments, DataArguments, SDSCLIPConfig) for entry in fields(kind)})
VALUES = [
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    2**70,
    0.5,
    -0.5,
    1.5,
    1e-300,
    float("inf"),
    float("nan"),
    "",
    "no",
    "x",
    "1e-5",
    "\x00",
]
VALUES += [
    [],
    [1],
    ["a", "b"],
    [None],
    {},
    {"a": 1},
    {1: 2},
    [[1]],
    "é" * 300,
    "2020-01-01",
    "shapes:test",
    ["shapes:test"],
]


def trial(rng: np.random.Generator, folder: Path) -> str:
    name, value = str(rng.choice(NAMES)), VALUES[rng.integers(len(VALUES))]
    path = folder / "mine.yaml"
    path.write_text(
        yaml.safe_dump({"output_dir": str(folder / "run"), name: value}, allow_unicode=True), encoding="utf-8"
    )
    before, environment = set(folder.rglob("*")), dict(os.environ)
    try:
        parse_arguments(["--config", str(path)])
    except (ValueError, OSError, ImportError) as error:
        assert name in str(error) or "mine.yaml" in str(error), f"{name}: {value!r}: {error}"
        return "refused"
    except SystemExit as stop:
        assert stop.code == 2, f"{name}: {value!r}: {stop}"
        return "refused"
    finally:
        os.environ.clear()
        os.environ.update(environment)
        assert set(folder.rglob("*")) == before, f"{name}: {value!r} left files"
    return "taken"
