"""What the student that binds nothing learns from a ranker that is always right, and from one that guesses."""

import json
from pathlib import Path

import numpy as np
import pytest

from sdsclip_hf.commands.finetune import main
from sdsclip_hf.data.images import picture_digest
from sdsclip_hf.scoring.score_captions import score_captions
from sdsclip_hf.shapes import load_shapes


def group_scores(evaluation: dict) -> dict[str, float]:
    return {row["subset"]: row["value"] for row in evaluation["shapes:test"] if row["score"] == "group"}


@pytest.mark.slow
@pytest.mark.usefixtures("work_folder")
def test_a_perfect_ranker_reaches_the_labels_and_a_guess_changes_little():
    """Group score on swapped pairs, each arm beside contrastive training on the same captions."""
    dataset, rng = load_shapes("train"), np.random.default_rng(0)
    true = {picture_digest(row["image"]): row["caption"] for row in dataset}
    rankers = {
        "perfect": lambda image, texts: [float(text in true[picture_digest(image)]) for text in texts],
        "guessing": lambda image, texts: rng.random(len(texts)),
    }
    for name, function in rankers.items():
        score_captions(function, dataset, output_dir=f"scores/{name}", candidates=["swap:3"])
    compared = {
        "labels": {"lambda_rank": 3.0, "ranking_targets": "labels"},
        "perfect": {"lambda_rank": 3.0},
        "guessing": {"lambda_rank": 3.0, "ranking_scores": "scores/guessing"},
    }
    words = {
        "model_name_or_path": "shapes/student_bag_of_words",
        "dataset_name": "shapes",
        "ranking_scores": "scores/perfect",
        "lambda_sds": 0,
        "max_steps": 200,
        "per_device_train_batch_size": 32,
        "learning_rate": 1e-3,
        "trainable": "full",
        "keep_images_in_memory": True,
        "test_benchmarks": "shapes:test",
        "compare": json.dumps(compared),
        "output_dir": "out",
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    main([word for name, value in words.items() for word in (f"--{name}", str(value))])
    results = json.loads(Path("out/results.json").read_text())
    alone, arms = (
        group_scores(results["after"]),
        {name: group_scores(found) for name, found in results["compared"].items()},
    )
    print(alone, arms)
    assert arms["labels"]["attribute"] > alone["attribute"] + 0.2
    for subset in alone:
        assert abs(arms["perfect"][subset] - arms["labels"][subset]) < 0.1  # 192 pairs tell no less
    means = [np.mean(list(scores.values())) for scores in (arms["guessing"], alone)]  # of 576 pairs
    assert abs(means[0] - means[1]) < 0.03
