"""Timestep weights: found where the information is, left equal where there is none, kept with the scores."""

import datasets
import numpy as np
import pytest
from conftest import make_scores
from folders import contents
from scorings import QUICK, refuse

from sdsclip_hf.data.scores import CandidateScores
from sdsclip_hf.scoring import folder as folder_module
from sdsclip_hf.scoring.caption_errors import visiting_order
from sdsclip_hf.scoring.folder import ScoreFolder
from sdsclip_hf.scoring.labels import labelled_items
from sdsclip_hf.scoring.report import print_report
from sdsclip_hf.scoring.reweight import reweight_scores
from sdsclip_hf.scoring.score_captions import score_captions
from sdsclip_hf.scoring.timestep_weights import FittedWeights, fit_timestep_weights, minimise
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher

DRAWS = 6
SETTINGS = {
    **{"teacher": {"name": "t", "fingerprint": "x", "dtype": "float32"}, "ranker": None, "control": None},
    **{
        "num_draws": DRAWS,
        "timestep_range": [0, 100],
        "weighting": "constant",
        "stop_confidence": 0.0,
        "settled": "order",
    },
    **{
        "dataset": {"name": "d", "config": None, "split": "train", "revision": None},
        "captions_per_image": 1,
        "seed": 0,
    },
    **{"candidates": ["batch:2"], "candidates_column": None, "nearest_by": None},
}
TIMESTEPS = [40, 60, 20, 80, 0, 100]  # as the draws are visited, see visiting_order


TEACHER = ["--teacher_name_or_path", "shapes/teacher"]


def accuracy(means, weights, seed=9):
    gaps = np.random.default_rng(seed).normal(means, 1.5, (4000, len(means)))
    return float((gaps @ weights > 0).mean())


@pytest.mark.parametrize(("means", "least"), [([0, 0, 0, 1.5, 0, 0], 0.05), ([0.5] * 6, -0.01), ([0.0] * 6, -0.01)])
def test_weights_go_where_the_information_is_and_else_stay(means, least):
    for seed in range(3):
        gaps = np.random.default_rng(seed).normal(means, 1.5, (50, DRAWS))
        fitted = fit_timestep_weights(gaps, range(50))
        assert fitted.weights.min() >= 0 and fitted.weights.mean() == pytest.approx(1)
        assert accuracy(means, fitted.weights) >= accuracy(means, np.ones(DRAWS)) + least
        assert (fitted.weights == 1).all() or fitted.weights.argmax() == 3


def test_the_minimum_is_one():
    """No step within w >= 0 lowers the loss, written plainly."""
    rng = np.random.default_rng(0)
    inputs, shares = rng.normal([1, 0.2, -1, 0], 1, (60, 4)), np.ones(60)

    def loss(weights):
        spread = ((weights - weights.mean()) ** 2).mean()
        return np.log1p(np.exp(-inputs @ weights)).mean() + 0.1 * spread + 1e-3 * weights.mean() ** 2

    found = minimise(inputs, shares, 0.1)
    assert found[2] == 0 and found[0] > 0.5
    assert all(loss(np.maximum(found + 1e-3 * rng.normal(size=4), 0)) >= loss(found) for _ in range(200))


def made_folder(folder, count=40, draws=DRAWS, informed=3, seed=1, **settings):
    """A folder of items of three candidates, of whose draws one alone tells the own caption."""
    rng, items = np.random.default_rng(seed), []
    for number in range(count):
        errors = rng.normal(5, 1, (3, draws))
        errors[number % 3, informed % draws] -= 3
        texts = [f"a {number}", f"b {number}", f"c {number}"]
        items.append((str(number), texts[number % 3], texts, errors.tolist()))
    return make_scores(folder, items, **SETTINGS | settings)


def test_own_captions_tell_the_timestep_that_knows(tmp_path):
    folder = made_folder(tmp_path / "s")
    plain, raw = CandidateScores.load(folder), np.array(CandidateScores.load(folder).data["errors"])
    fitted = reweight_scores(folder, "own", 30)["timestep_weights"]
    assert fitted["timesteps"] == TIMESTEPS and np.argmax(fitted["weights"]) == 3 and fitted["labelled"] == 30
    assert fitted["accuracy"] > fitted["uniform_accuracy"] + 0.05 and fitted["source"] == "own captions"
    weighted = CandidateScores.load(folder)
    assert weighted.fingerprint != plain.fingerprint
    np.testing.assert_allclose(weighted.mean_errors, (raw * fitted["weights"]).mean(-1), rtol=1e-5)
    assert weighted.confidence.mean() != plain.confidence.mean()


def test_other_scores_of_the_teacher_tell_it_too(tmp_path):
    """Where the own captions are too few; and weights that were fitted there before do not count."""
    few, many = made_folder(tmp_path / "few", count=5), made_folder(tmp_path / "many", seed=2)
    reweight_scores(many, "own")
    found = reweight_scores(few, f"scores={many}")["timestep_weights"]
    assert np.argmax(found["weights"]) == 3 and found["labelled"] == 40
    assert found["source"].startswith("scores many, fingerprint ") and str(tmp_path) not in str(found)
    assert found["weights"] == reweight_scores(many, "own")["timestep_weights"]["weights"]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"count": 19}, "19 labelled pictures are too few .* at least 20"),
        ({"control": "wrong_images"}, "control wrong_images: which caption is right is not told"),
        ({"timestep_range": [50, 50]}, "all draws are at timestep 50"),
        ({"draws": 1}, "item 0 has 1 of 6 draws' errors.*--stop_confidence 0"),
        ({"num_draws": None}, "of t, tell no errors of draws at timesteps .num_draws and timestep_range."),
        ({"teacher": None, "ranker": {"name": "r"}}, "of r, tell no errors of draws"),
    ],
)
def test_what_cannot_be_fitted_is_refused(tmp_path, made, said):
    folder = made_folder(tmp_path / "s", **made)
    before = contents(folder)
    with pytest.raises(ValueError, match=said):
        reweight_scores(folder)
    assert contents(folder) == before


def test_scores_of_another_teacher_or_of_other_draws_are_refused(tmp_path):
    folder = made_folder(tmp_path / "s")
    for number, (other, what) in enumerate(
        [({"teacher": {"name": "t", "fingerprint": "y"}}, "teacher"), ({"timestep_range": [0, 99]}, "timestep_range")]
    ):
        with pytest.raises(
            ValueError, match=f"are of another {what}; weights are fitted on scores of the same teacher"
        ):
            reweight_scores(folder, f"scores={made_folder(tmp_path / str(number), **other)}")
    with pytest.raises(OSError, match=r"has no scores.json, so that it holds no finished scores"):
        reweight_scores(tmp_path / "none")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fit_weights", "own:19", "--stop_confidence", 0], "fit_weights is 'own:19'; it must be own:COUNT"),
        (["--fit_weights", "guess=x", "--stop_confidence", 0], "fit_weights is 'guess=x'"),
        (
            ["--fit_weights", "own", "--reweight", "a", "--combine", "a", "b"],
            "--reweight a needs --fit_weights, and goes",
        ),
        (["--reweight", "a"], "--reweight a needs --fit_weights"),
        (
            ["--reweight", "a", "--fit_weights", "pairs=x"],
            "--reweight scores nothing, but --fit_weights pairs=x has to be",
        ),
        (["--reweight", "a", "--fit_weights", "own", *TEACHER], "--teacher_name_or_path is given, but finished scores"),
        (["--fit_weights", "own"], "needs all draws of each item, but stop_confidence is 0.99"),
        (["--fit_weights", "own", "--stop_confidence", 0], "weighs a teacher's errors, but there is none"),
    ],
)
def test_options_that_do_not_fit_are_refused(capsys, numbered, tmp_path, words, said):
    assert said in refuse(capsys, "--dataset_name", numbered, "--output_dir", tmp_path / "s", *words)


def test_finished_scores_are_weighed_anew_without_the_denoiser(teacher_folder, pairs, tmp_path, monkeypatch, capsys):
    teacher = DiffusionTeacher.from_pretrained(teacher_folder, load_vae=True)
    options = QUICK | {"stop_confidence": 0, "output_dir": tmp_path}
    before = score_captions(teacher, pairs, **options)
    data = (tmp_path / "data/train-00000-of-00001.parquet").read_bytes()
    monkeypatch.setattr(teacher.denoiser, "forward", None)
    after = score_captions(teacher, pairs, fit_weights="own", **options)
    assert after["fingerprint"] != before["fingerprint"] and after["timestep_weights"]["labelled"] == 24
    timesteps = teacher.draws(5)[0].tolist()
    assert after["timestep_weights"]["timesteps"] == [timesteps[draw] for draw in visiting_order(5)]
    assert score_captions(teacher, pairs, fit_weights="own", **options) == after == ScoreFolder(tmp_path).finished()
    assert score_captions(teacher, pairs, **options) == after  # without the option they stay as they are
    assert (tmp_path / "data/train-00000-of-00001.parquet").read_bytes() == data
    assert CandidateScores.load(tmp_path).settings == after
    assert "weights of the timesteps | 0: " in (tmp_path / "README.md").read_text()
    print_report(after, tmp_path)
    assert "Timestep weights: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            "retrieval:test=shapes",
            "which of a picture's captions is right: a benchmark of the kind retrieval has several",
        ),
        ("choices={}?captions=caption&images=image,other", "captions is right: item 0 has one caption"),
        ("choices={}?captions=caption,wrong&images=image", "has 4 items; weights need at least 20"),
    ],
)
def test_pairs_that_cannot_be_fitted_on_are_refused(pairs, tmp_path, spec, said):
    rows, others = pairs[:4], pairs[4:8]
    few = datasets.Dataset.from_dict(rows | {"wrong": others["caption"], "other": others["image"]})
    few.to_parquet(tmp_path / "few.parquet")
    with pytest.raises(ValueError, match=said):
        labelled_items(spec.format(tmp_path / "few.parquet"))


def test_labelled_pairs_are_scored_with_the_same_draws(teacher_folder, pairs, tmp_path, monkeypatch):
    """Gaps of pairs, of both pictures, and of choices; once, and not again for the same command."""
    teacher = DiffusionTeacher.from_pretrained(teacher_folder, load_vae=True)
    images, texts = pairs["image"][:], pairs["caption"][:]
    table = {"image_0": images[:20], "image_1": images[4:], "caption_0": texts[:20], "caption_1": texts[4:]}
    datasets.Dataset.from_dict(table).to_parquet(tmp_path / "pairs.parquet")
    seen = []
    monkeypatch.setattr(folder_module, "fit_timestep_weights", lambda *given: seen.append(given) or FittedWeights(
        np.ones(5), 20, 0.6, 0.6))  # fmt: skip
    options = QUICK | {
        "stop_confidence": 0,
        "fit_weights": f"pairs={tmp_path}/pairs.parquet",
        "output_dir": tmp_path / "s",
    }
    told = score_captions(teacher, pairs, **options)
    ((gaps, groups),) = seen
    errors = teacher.diffusion_score([images[0], images[4]], [texts[0], texts[4]], num_draws=5, seed=3)
    expected = [errors[0, 1] - errors[0, 0], errors[1, 0] - errors[1, 1]]
    np.testing.assert_allclose(gaps[:2].mean(1), expected, rtol=1e-3, atol=1e-6)
    assert gaps.shape == (40, 5) and groups[0] == groups[1] != groups[2]
    assert told["timestep_weights"]["source"].startswith("pairs=pairs.parquet, 20 items with captions ")
    monkeypatch.setattr(teacher.denoiser, "forward", None)
    assert score_captions(teacher, pairs, **options) == told and len(seen) == 1


@pytest.mark.slow
def test_what_fifty_pictures_are_worth():
    """The table of docs/ranking.md: accuracy on other pairs by equal and by fitted weights, 20 sets a row."""
    ten = np.ones(10)
    rows = {
        "two of ten timesteps tell": (np.eye(10)[[3, 4]].sum(0), 1.5 * ten),
        "five of ten tell": (np.repeat([0.4, 0], 5), ten),
        "all tell the same, two are loud": (0.3 * ten, np.repeat([6.0, 1.0], [2, 8])),
        "all tell the same, little": (0.2 * ten, ten),
        "all tell the same, much": (0.5 * ten, ten),
        "none tells": (0 * ten, ten),
    }
    for name, (means, noise) in rows.items():
        gains, equal = [], []
        for seed in range(20):
            rng = np.random.default_rng(seed)
            known, others = rng.normal(means, noise, (50, 10)), rng.normal(means, noise, (4000, 10))
            fitted = fit_timestep_weights(known, range(50))
            equal.append((others.sum(1) > 0).mean())
            gains.append((others @ fitted.weights > 0).mean() - equal[-1])
        print(f"| {name} | {np.mean(equal):.1%} | {np.mean(gains):+.1%} | {min(gains):+.1%} |")
        assert min(gains) > -0.01
