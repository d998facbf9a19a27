"""What a teacher does that knows one kind of change and nothing of another, learnt from and taken as evidence."""

import numpy as np
import pytest
from conftest import make_scores

from sdsclip_hf import CandidateScores, SDSCLIPConfig, SDSCLIPTrainer
from sdsclip_hf.benchmarks.shapes import load
from sdsclip_hf.evaluation.scorers import ClipScorer
from sdsclip_hf.metrics.common import winoground
from sdsclip_hf.shapes import load_shapes, model_path

AT_HIGHEST_NOISE = 7  # of the draws of shapes/scores; there colours are gone, and sides are not


@pytest.mark.slow
def test_as_evidence_a_teacher_at_chance_takes_nothing_away(tmp_path):
    """The bundled teacher at t = 990: 57 % right on exchanged colours of plain captions, 100 % on exchanged things."""
    rows = list(CandidateScores.load("shapes/scores").data)
    items = [(*list(row.values())[:3], [[d[AT_HIGHEST_NOISE]] for d in row["errors"]]) for row in rows]
    folder, data = str(make_scores(tmp_path / "scores", items)), load_shapes("train")
    pairs = load("shapes", "validation", "", None).items
    tags = np.array([item.tag for item in pairs])
    arms = {"contrastive": {}} | {
        form: {"lambda_rank": 1.0, "ranking_form": form, "ranking_scores": folder}
        for form in ("divergence", "likelihood")
    }
    found = {}
    for arm, options in arms.items():
        args = SDSCLIPConfig(
            output_dir=str(tmp_path / arm), save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
            max_steps=200, learning_rate=1e-3, lr_scheduler_type="cosine", trainable="full", train_text=False,
            lambda_sds=0.0, keep_images_in_memory=True, mask_duplicates=False, **options,
        )  # fmt: skip
        trainer = SDSCLIPTrainer(model=model_path("student"), args=args, train_dataset=data)
        trainer.train()
        scores = np.stack(ClipScorer(trainer.whole_student().base_clip, trainer.processing_class).score(pairs))
        right = winoground.right_items(scores)["group"]
        found[arm] = {tag: 100 * right[tags == tag].mean() for tag in ("attribute", "relation")}
        print(arm, {tag: round(float(score), 1) for tag, score in found[arm].items()}, flush=True)
    assert found["likelihood"]["attribute"] > found["contrastive"]["attribute"] - 5
    assert found["likelihood"]["attribute"] > found["divergence"]["attribute"] + 15
    assert found["likelihood"]["relation"] > found["contrastive"]["relation"] + 15
