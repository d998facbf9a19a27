"""Timestep weights of finished scores, fitted on their own captions or on other scores': nothing is scored."""

from pathlib import Path

from sdsclip_hf.common.locks import working_in
from sdsclip_hf.data.scores import SCORES_FILE
from sdsclip_hf.scoring.arguments import DEFAULT_LABELLED
from sdsclip_hf.scoring.folder import ScoreFolder
from sdsclip_hf.scoring.labels import finished_gaps


def reweight_scores(folder: str | Path, fit_weights: str = "own", labelled: int = DEFAULT_LABELLED) -> dict:
    """Weigh a folder's draws in place; card and ``scores.json`` alone are written.

    Args:
        folder: of finished scores.
        fit_weights: ``own``, or ``scores=FOLDER``, others of the same teacher.
        labelled: of how many items at most ``own`` uses the own captions.

    Returns:
        What ``scores.json`` holds now.

    Raises:
        OSError: there are no finished scores.
        ValueError: they lack the errors of draws, or there are too few pairs.

    Example:

    ```python
    from sdsclip_hf import DiffusionTeacher
    from sdsclip_hf.scoring.reweight import reweight_scores
    from sdsclip_hf.scoring.score_captions import score_captions
    from sdsclip_hf.shapes import load_shapes, model_path

    teacher = DiffusionTeacher.from_pretrained(model_path("teacher"), load_vae=True)
    dataset = load_shapes("train", per_scene=1).select(range(20))
    options = {"candidates": ["batch:1"], "num_draws": 2, "timestep_range": [100, 990], "stop_confidence": 0}
    score_captions(teacher, dataset, output_dir="scores/example", **options)
    fitted = reweight_scores("scores/example")["timestep_weights"]
    print(fitted["source"], fitted["labelled"], len(fitted["weights"]))  # own captions 20 2
    ```
    """
    files = ScoreFolder(folder)
    if files.finished() is None:
        raise OSError(
            f"{folder} has no {SCORES_FILE}, so that it holds no finished scores; give --reweight a folder that sdsclip "
            "score-captions finished."
        )
    with working_in(files.folder):
        files.fit_weights(lambda scores: finished_gaps(fit_weights, labelled, scores))
    return files.finished()
