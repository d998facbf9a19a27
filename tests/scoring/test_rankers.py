"""Rankers beside the diffusion teachers: what is written of their scores, what it teaches, and what is refused."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from conftest import make_scores
from scorings import QUICK, rows_of

from sdsclip_hf.cards.model_card import model_card
from sdsclip_hf.data.images import picture_digest
from sdsclip_hf.data.scores import CandidateScores
from sdsclip_hf.rankers.caption_ranker import CaptionRanker, FunctionRanker
from sdsclip_hf.scoring.report import print_report
from sdsclip_hf.scoring.score_captions import score_captions


@pytest.fixture(scope="module")
def knows(pairs):
    """Scores 1 for a picture's own caption and 0 for others."""
    own = {picture_digest(row["image"]): row["caption"] for row in pairs}

    def knows_the_labels(image, candidates):
        return [float(text == own[picture_digest(image)]) for text in candidates]

    return knows_the_labels


def test_a_function_s_scores_are_written_and_named(knows, pairs, tmp_path, capsys):
    settings = score_captions(knows, pairs, output_dir=tmp_path, **QUICK)
    assert settings["teacher"] is None and settings["own_first_share"] == 1 and settings["tied_items"] == 0
    assert settings["ranker"] == {
        "kind": "function", "name": "knows_the_labels", "revision": None, "fingerprint": None,
    }  # fmt: skip
    for row in rows_of(tmp_path):
        assert row["errors"] == [[-float(text == row["caption"])] for text in row["candidates"]]
    assert "scored by knows_the_labels" in (tmp_path / "README.md").read_text()
    print_report(settings, tmp_path)
    said = capsys.readouterr()
    assert "It puts the picture's own caption first on 100%, by chance 33%." in said.out
    assert "warning" not in said.err
    assert "teacher is sure" not in said.out and "Denoiser" not in said.out


def test_a_perfect_ranker_teaches_as_labels_do(knows, pairs, tmp_path, make_trainer, caplog):
    score_captions(knows, pairs, output_dir=tmp_path / "s", **QUICK)
    terms = {"lambda_sds": 0.0, "lambda_rank": 1.0, "ranking_scores": str(tmp_path / "s")}
    make = partial(make_trainer, teacher=None, trainable="full", optim="sgd", learning_rate=0.1, **terms)
    weights = {}
    for targets in ("teacher", "labels"):
        trainer = make(targets, ranking_targets=targets, ranking_temperature=0.05)  # labels: e^-20 for the others
        trainer.train()
        weights[targets] = torch.cat([weight.flatten() for weight in trainer.student.clip.state_dict().values()])
    start = torch.cat([weight.flatten() for weight in make("untrained").student.clip.state_dict().values()])
    assert (weights["teacher"] - start).abs().max() > 1e-5
    torch.testing.assert_close(weights["teacher"], weights["labels"], rtol=0, atol=1e-6)
    assert "little or no signal" not in caplog.text
    told = model_card(make("again").run_facts()).text
    assert "the ranker knows_the_labels gave" in told and "diffusion model knows" not in told
    with pytest.raises(ValueError, match=r"--ranking_confidence .* do not tell"):
        make("confident", ranking_confidence=True)


def test_scores_at_chance_are_warned_of(tmp_path, caplog):
    items = [(f"{number}", "a", ["a", "b"], [[number % 2], [0.5]]) for number in range(20)]
    CandidateScores.load(make_scores(tmp_path / "s", items, ranker={"name": "coin"})).check_ranked()
    assert "their ranker puts the image's own caption first on 50 % of the items (by chance 50 %)" in caplog.text


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([0.5, float("nan"), 0.1], "scored the candidate '.*' as nan; a score must be a finite"),
        ([0.5, float("-inf"), 0.1], "as -inf; a score must be a finite"),
        ([0.5, 0.1], r"gave scores of shape \(2,\) for 3 candidates; it must give one number each, of shape \(3,\)"),
        (np.zeros((3, 1)), r"gave scores of shape \(3, 1\) for 3"),
        (["a", "b", "c"], "which are no numbers; it must give one number each"),
        ([1, 1, 1], "'mine' scored all candidates of each of the 24 items alike, so that it ranks nothing"),
    ],
)
def test_what_is_no_score_is_refused(pairs, tmp_path, answer, said):
    with pytest.raises(ValueError, match=said):
        ranker = FunctionRanker(lambda image, candidates: answer, "mine")
        score_captions(ranker, pairs, output_dir=tmp_path, **QUICK)
    assert not (tmp_path / "scores.json").exists()


class TooFew(CaptionRanker):
    kind = "rule"

    def scores(self, images, candidates):
        return [np.arange(len(texts)) for texts in candidates][1:]


def test_a_ranker_of_too_few_pictures_and_no_ranker_are_refused(pairs, tmp_path):
    with pytest.raises(ValueError, match=r"gave scores of 6 pictures for 7"):
        score_captions(TooFew("few"), pairs, output_dir=tmp_path / "a", **QUICK)
    with pytest.raises(ValueError, match="a str cannot rank captions; give a DiffusionTeacher"):
        score_captions("shapes/teacher", pairs, output_dir=tmp_path / "b", **QUICK)


def test_items_that_are_scored_alike_are_counted_and_not_ranked(knows, pairs, tmp_path, capsys):
    own = set(pairs["caption"][:6])

    def unsure(image, candidates):
        scores = torch.tensor(knows(image, candidates))
        return scores * 0 if candidates[int(scores.argmax())] in own else scores

    settings = score_captions(unsure, pairs, output_dir=tmp_path, **QUICK)
    alike = [row["caption"] in own for row in rows_of(tmp_path)]
    assert settings["tied_items"] == sum(alike) > 0
    assert CandidateScores.load(tmp_path).ranked.tolist() == [not tied for tied in alike]
    print_report(settings, tmp_path)
    assert f"{sum(alike)} items are not ranked" in capsys.readouterr().out


def test_a_stopped_ranking_goes_on_and_another_revision_is_refused(knows, pairs, tmp_path):
    calls = []

    def counting(image, candidates):
        calls.append(0)
        if len(calls) == 12:
            raise InterruptedError
        return knows(image, candidates)

    go_on = partial(score_captions, FunctionRanker(counting, "mine", "1"), pairs, **QUICK)
    with pytest.raises(InterruptedError):
        go_on(output_dir=tmp_path / "s")
    with pytest.raises(ValueError, match="its ranker is of revision '1', not '2'"):
        score_captions(FunctionRanker(counting, "mine", "2"), pairs, output_dir=tmp_path / "s", **QUICK)
    go_on(output_dir=tmp_path / "s")
    assert len(calls) == 12 + 24 - 7
    go_on(output_dir=tmp_path / "whole")
    assert json.loads((tmp_path / "s/scores.json").read_text()) == json.loads(
        (tmp_path / "whole/scores.json").read_text()
    )
    assert rows_of(tmp_path / "s") == rows_of(tmp_path / "whole")
