"""Scores of the same candidates by several teachers or rankers, combined into scores of their own: no model is called."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sdsclip_hf.common.locks import working_in
from sdsclip_hf.data.scores import CandidateScores, ranked_by
from sdsclip_hf.scoring.arguments import DEFAULT_LABELLED
from sdsclip_hf.scoring.caption_items import CaptionItem
from sdsclip_hf.scoring.folder import ScoreFolder
from sdsclip_hf.scoring.timestep_weights import fit_timestep_weights

OF_DATA = (
    "sdsclip_hf_format",
    "dataset",
    "candidates",
    "candidates_column",
    "nearest_by",
    "captions_per_image",
    "seed",
)
OF_TEACHER = ("teacher", "num_draws", "timestep_range", "weighting", "stop_confidence", "settled", "control")
CHUNK = 10_000


def combine_scores(
    folders: Sequence[str | Path],
    output_dir: str | Path,
    weights: Sequence[float] | None = None,
    labelled: int = DEFAULT_LABELLED,
) -> dict:
    """Write a folder in which a caption's d is the weighted sum of those that the folders have, each brought to one spread.

    Args:
        folders: of finished scores of the same pictures and candidates, or their ids on the Hub.
        output_dir: receives the new ones.
        weights: of the folders; default: fitted on own captions by [`fit_timestep_weights`], to which a ranker's score and
            each draw of a teacher that has them all are a column alike.
        labelled: on the own captions of how many items at most.

    Returns:
        What ``scores.json`` holds.

    Raises:
        ValueError: there are fewer than two folders, their items differ, they are unscored or a control's, or the weights
            do not fit them.
        OSError: a folder cannot be read.

    Example:

    ```python
    from sdsclip_hf.scoring.combine import combine_scores
    from sdsclip_hf.scoring.score_captions import score_captions
    from sdsclip_hf.shapes import load_shapes

    def shortness(image, captions):
        return [-len(caption) for caption in captions]

    def redness(image, captions):
        return [caption.count("red") for caption in captions]

    dataset = load_shapes("train", per_scene=1).select(range(8))
    for function in (shortness, redness):
        score_captions(function, dataset, output_dir=f"scores/{function.__name__}", candidates=["batch:2"])
    found = combine_scores(["scores/shortness", "scores/redness"], "scores/both", weights=[1, 2])
    print(found["items"], found["ranker"]["name"])  # 8 shortness + redness
    ```
    """
    parts = [CandidateScores.load(folder) for folder in folders]
    _check_parts(parts)
    tables = [_columns(scores, by_draw=weights is None) for scores in parts]  # (N, K, C) each
    table = np.concatenate(tables, -1)
    if weights is None:
        fitted, by_column = _fit(parts, tables, labelled)
    else:
        fitted, by_column = {}, np.asarray(_checked(weights, parts), np.float64)
    combined = table @ by_column  # (N, K)
    ends = np.cumsum([one.shape[-1] for one in tables])[:-1]
    first = parts[0].settings
    told = [
        {"name": ranked_by(scores.settings), "fingerprint": scores.fingerprint, "weights": own.round(6).tolist()}
        for scores, own in zip(parts, np.split(by_column, ends), strict=True)
    ]
    ranker = {
        "kind": "combined",
        "name": " + ".join(part["name"] for part in told),
        "revision": None,
        "fingerprint": None,
    }
    settings = {key: first[key] for key in OF_DATA} | dict.fromkeys(OF_TEACHER)
    settings |= {"ranker": ranker, "chunk_size": CHUNK, "combined": {"parts": told} | fitted}
    return _write(ScoreFolder(output_dir), settings, parts[0], combined)


def _write(files: ScoreFolder, settings: dict, scores: CandidateScores, combined: np.ndarray) -> dict:
    with working_in(files.folder):
        files.claim(settings)
        if found := files.finished():
            return found
        starts = range(0, len(scores), CHUNK)
        for chunk, start in enumerate(starts):
            rows = scores.data.select(range(start, min(start + CHUNK, len(scores))))
            items = [
                CaptionItem(row["picture"], start + place, row["caption"], row["candidates"])
                for place, row in enumerate(rows)
            ]
            errors = [_differing(combined[item.row, : len(item.candidates)]) for item in items]
            files.write_chunk(chunk, items, errors)
        files.finish(settings, len(starts))
        return files.finished()


def _differing(errors: np.ndarray) -> np.ndarray:
    """(K,) as (K, 1), or as (K, 0) where all are alike."""
    return errors[:, None] if np.ptp(errors) > 0 else np.empty((len(errors), 0))


def _columns(scores: CandidateScores, by_draw: bool) -> np.ndarray:
    """(N, K, C), whose sums over C have spread 1 among a picture's candidates; 0 where nothing is ranked.

    C is the number of draws where each is there, and 1 otherwise.
    """
    means, ranked = scores.mean_errors, scores.ranked
    whole = by_draw and not np.isnan(scores.errors[~np.isnan(means)]).any()
    table = scores.errors if whole else means[..., None]
    centred = means[ranked] - np.nanmean(means[ranked], 1, keepdims=True)
    spread = float(np.sqrt(np.nanmean(centred.astype(np.float64) ** 2)))
    return np.nan_to_num(table.astype(np.float64)) * ranked[:, None, None] / (spread * table.shape[-1])


def _fit(parts: Sequence[CandidateScores], tables: Sequence[np.ndarray], labelled: int) -> tuple[dict, np.ndarray]:
    """What is told of the fit, and the weights of all columns."""
    numbers = np.flatnonzero(np.any([scores.ranked for scores in parts], 0))[:labelled]
    gaps, pictures = [], []
    table = np.concatenate(tables, -1)
    for number in numbers:
        row = parts[0].data[int(number)]
        own, count = row["candidates"].index(row["caption"]), len(row["candidates"])
        gaps.append(np.delete(table[number, :count], own, 0) - table[number, own])
        pictures += [row["picture"]] * len(gaps[-1])
    fitted = fit_timestep_weights(np.concatenate(gaps), pictures)
    ends = np.cumsum([one.shape[-1] for one in tables])[:-1]
    alone = [own.sum(1) for own in np.split(np.concatenate(gaps), ends, axis=1)]
    told = fitted.told() | {"alone": [round(float(((own > 0) + (own == 0) / 2).mean()), 4) for own in alone]}
    del told["weights"]
    return told, fitted.weights


def _check_parts(parts: Sequence[CandidateScores]) -> None:
    """Raise ValueError unless they are two or more, scored, and of the same items."""
    if len(parts) < 2:
        raise ValueError(f"--combine names {len(parts)} folder of scores; give two or more.")
    for place, scores in enumerate(parts):
        what = "unscored" if ranked_by(scores.settings) is None else scores.settings["control"]
        if what or not scores.ranked.any():
            raise ValueError(
                f"the scores {scores.name!r} order nothing that could be combined ({what or 'no item is ranked'}); leave "
                "them out of --combine."
            )
        twice = next((one for one in parts[:place] if one.fingerprint == scores.fingerprint), None)
        if twice is not None:
            raise ValueError(f"the scores {scores.name!r} are those of {twice.name!r}; name each once in --combine.")
        _check_same_items(parts[0], scores)


def _check_same_items(one: CandidateScores, other: CandidateScores) -> None:
    if len(one) != len(other):
        raise ValueError(
            f"the scores {one.name!r} have {len(one)} items and {other.name!r} {len(other)}; combine scores of the same "
            "rows, --candidates and --seed."
        )
    for column in ("picture", "caption", "candidates"):
        for number, (ours, theirs) in enumerate(zip(one.data[column], other.data[column], strict=True)):
            if ours != theirs:
                raise ValueError(
                    f"item {number} has another {column} in {one.name!r} than in {other.name!r}: {ours!r:.100}, not "
                    f"{theirs!r:.100}; combine scores of the same rows, --candidates and --seed."
                )


def _checked(weights: Sequence[float], parts: Sequence[CandidateScores]) -> list[float]:
    found = [float(weight) for weight in weights]
    if len(found) != len(parts) or not np.isfinite(found).all() or min(found) < 0 or max(found) == 0:
        raise ValueError(
            f"combine_weights are {found} for {len(parts)} folders; give each a finite number of at least 0, one of them "
            "above 0. Set --combine_weights."
        )
    return found
