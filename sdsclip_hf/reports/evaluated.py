"""A finished evaluation, read from its folder: what ``results.json`` holds, and every item's answers."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sdsclip_hf.common.errors import read_json
from sdsclip_hf.evaluation.evaluate_models import PARTS, RESULTS_FILE, SCORES_FILE

AGAIN = "Evaluate again, with another --output_dir."


@dataclass
class Answered:
    """One benchmark's items with the models' answers.

    Args:
        rows: of the N items ``item``, ``tag``, ``labels``, ``images`` (names) and ``captions``.
        answers: run -> N matrices, see [`outcomes`].
    """

    rows: list[dict]
    answers: dict[str, list[np.ndarray]]


def read_evaluation(folder: Path) -> tuple[dict, dict[str, Answered]]:
    """What ``results.json`` holds, and benchmark -> its items.

    Raises:
        ValueError: the folder holds no finished evaluation; the message names what is missing or damaged.
    """
    results = _read_results(folder)
    scores = folder / SCORES_FILE
    if not scores.is_file():
        raise ValueError(f"{folder} has no {SCORES_FILE}, which holds every item's scores. {AGAIN}")
    try:
        rows = pq.read_table(scores).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{scores} is not what was written ({error}). {AGAIN}") from error
    asked: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for row in rows:
        asked[row["benchmark"], row["model"]].append(row)
    found = {}
    for spec in results["benchmarks"]:
        by_run = {run: asked[spec, run] for run in results["models"]}
        identifiers = [[row["item"] for row in of_run] for of_run in by_run.values()]
        if not identifiers[0] or any(one != identifiers[0] for one in identifiers):
            raise ValueError(f"{scores} does not hold the same items of {spec} for each model. {AGAIN}")
        answers = {run: [_matrix(row) for row in of_run] for run, of_run in by_run.items()}
        found[spec] = Answered(next(iter(by_run.values())), answers)
    return results, found


def _read_results(folder: Path) -> dict:
    remedy = "Give the --output_dir of a finished `sdsclip evaluate`."
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}. {remedy}")
    path = folder / RESULTS_FILE
    if not path.is_file() and (folder / PARTS).is_dir():
        raise ValueError(
            f"{folder} has no {RESULTS_FILE} yet: its evaluation was interrupted. Type its `sdsclip evaluate` again, "
            "which goes on from there."
        )
    if not path.is_file():
        raise ValueError(f"{folder} has no {RESULTS_FILE}. {remedy}")
    results = read_json(path, AGAIN)
    if not {"models", "benchmarks", "command"} <= set(results):
        raise ValueError(f"{path} is not of an evaluation, which has models and benchmarks. {remedy}")
    return results


def _matrix(row: dict) -> np.ndarray:
    return (
        np.array(row["ranks"], dtype=np.int64) if row["scores"] is None else np.array(row["scores"], dtype=np.float32)
    )
