"""Timestep weights from a folder of scores itself: the pictures' own captions are the right ones."""

import numpy as np

from sdsclip_hf.data.scores import CandidateScores
from sdsclip_hf.scoring.caption_errors import visiting_order
from sdsclip_hf.scoring.timestep_weights import fit_timestep_weights


def fit_on_own(scores: CandidateScores, count: int) -> dict:
    """Fit weights on the first ``count`` ranked items of unweighted scores, by their own captions.

    Returns:
        What ``scores.json`` keeps of it: ``weights`` and ``timesteps`` in the order of an item's errors, ``labelled``,
        ``accuracy`` and ``uniform_accuracy`` (see [`FittedWeights`]).

    Raises:
        ValueError: the right captions are not told, draws are missing or all at one timestep, or items are too few.
    """
    settings = scores.settings
    if settings["control"]:
        raise ValueError(
            f"the scores are those of the control {settings['control']}: which caption is right is not told there. Leave "
            "--fit_weights out."
        )
    draws = settings["num_draws"]
    timesteps = np.linspace(*settings["timestep_range"], draws).round().astype(int)
    if timesteps[0] == timesteps[-1]:
        raise ValueError(
            f"all draws are at timestep {timesteps[0]}, so there is nothing to weigh; give a wider --timestep_range."
        )
    gaps, pictures = [], []
    for number in np.flatnonzero(scores.ranked)[:count]:
        row = scores.data[int(number)]
        errors = np.asarray(row["errors"], np.float64)  # (K, r)
        if errors.shape[1] != draws:
            raise ValueError(
                f"item {number} has {errors.shape[1]} of {draws} draws' errors, and weights need each. Score with "
                "--stop_confidence 0 into another --output_dir."
            )
        own = row["candidates"].index(row["caption"])
        gaps.append(np.delete(errors, own, 0) - errors[own])
        pictures += [row["picture"]] * len(gaps[-1])
    if not gaps:
        raise ValueError("the scores order nothing, so no weights can be fitted. Choose other --candidates.")
    fitted = fit_timestep_weights(np.concatenate(gaps), pictures)
    return {
        "weights": [round(float(weight), 6) for weight in fitted.weights],
        "timesteps": timesteps[visiting_order(draws)].tolist(),
        "labelled": fitted.labelled,
        "accuracy": round(fitted.accuracy, 4),
        "uniform_accuracy": round(fitted.uniform_accuracy, 4),
    }
