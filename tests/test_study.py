"""A study: arms x seeds, their summary, and what is kept between runs."""

import json

import numpy as np
import pytest
import yaml

from sdsclip_hf import study
from sdsclip_hf.benchmarks import load_benchmark
from sdsclip_hf.scorers import ClipScorer
from sdsclip_hf.student import load_clip
from sdsclip_hf.study import Study, _interval, main, table

pytestmark = pytest.mark.filterwarnings("ignore")
TAGS = ["attribute", "attribute in relation", "relation"]


@pytest.fixture(scope="module")
def settings(clip_folder, teacher_folder, pairs, tmp_path_factory):
    data = tmp_path_factory.mktemp("study_data")
    pairs.to_parquet(data / "pairs.parquet")
    return {
        "model_name_or_path": clip_folder,
        "teacher_name_or_path": teacher_folder,
        "dataset_name": str(data / "pairs.parquet"),
        "benchmark": "shapes:validation",
        "seeds": [0, 1],
        "baseline": "contrastive",
        "common": {
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.05,
            "logging_steps": 1,
            "use_cpu": True,
        },
        "arms": {"contrastive": {"lambda_sds": 0.0}, "sds": {"lambda_sds": 1.0, "trainable": "full"}},
    }


@pytest.fixture(scope="module")
def done(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return Study(settings, folder).run(), folder


def test_every_arm_and_seed_is_run_and_kept(done):
    _, folder = done
    files = {str(path.relative_to(folder)) for path in folder.rglob("*.npz")}
    assert files == {
        "before/seed-0.npz",
        *(f"{arm}/seed-{seed}.npz" for arm in ("contrastive", "sds") for seed in (0, 1)),
    }
    assert (folder / "study.png").stat().st_size > 1000
    history = json.loads((folder / "sds/seed-1.json").read_text())
    assert [row["step"] for row in history if "sds" in row] == [1, 2]
    assert not any("sds" in row for row in json.loads((folder / "contrastive/seed-1.json").read_text()))


def test_arms_and_seeds_give_different_scores_from_one_start(done, settings):
    _, folder = done
    start = ClipScorer(*load_clip(settings["model_name_or_path"])).score(load_benchmark("shapes:validation").items)
    before = np.load(folder / "before/seed-0.npz")["scores"]
    np.testing.assert_allclose(before, np.stack(start), atol=1e-6)
    runs = [np.load(folder / arm / f"seed-{seed}.npz")["scores"] for arm in ("contrastive", "sds") for seed in (0, 1)]
    for number, one in enumerate(runs):
        assert not np.array_equal(one, before)
        assert not any(np.array_equal(one, other) for other in runs[:number])


def test_summary_equals_the_group_score_counted_by_hand(done):
    summary, folder = done
    assert list(summary["arms"]) == ["before", "contrastive", "sds"]
    for arm, seeds in (("before", [0, 0]), ("contrastive", [0, 1]), ("sds", [0, 1])):
        assert list(summary["arms"][arm]) == TAGS
        for tag in TAGS:
            shares = []
            for seed in seeds:
                file = np.load(folder / arm / f"seed-{seed}.npz")
                right = [
                    s[0, 0] > s[1, 0] and s[1, 1] > s[0, 1] and s[0, 0] > s[0, 1] and s[1, 1] > s[1, 0]
                    for s, of in zip(file["scores"], file["tags"], strict=True)
                    if of == tag
                ]
                shares.append(100 * sum(right) / len(right))
            row = summary["arms"][arm][tag]
            assert row["seeds"] == pytest.approx(shares)
            assert row["group"] == pytest.approx(np.mean(shares))
            assert row["gain"] == pytest.approx(row["group"] - summary["arms"]["contrastive"][tag]["group"])
            assert row["items"] == len(right)


def test_summary_is_written_as_it_is_returned(done):
    summary, folder = done
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(summary))


def test_second_run_repeats_nothing_and_gives_the_same_summary(done, settings, monkeypatch):
    summary, folder = done
    monkeypatch.setattr(study, "SDSCLIPTrainer", lambda **_: pytest.fail("an arm was run again"))
    monkeypatch.setattr(study, "load_clip", lambda *_: pytest.fail("the start was scored again"))
    assert Study(settings, folder).run() == summary


def test_only_what_is_missing_is_run_and_ends_the_same(done, settings, monkeypatch):
    summary, folder = done
    missing = folder / "sds/seed-1.npz"
    before = np.load(missing)["scores"]
    missing.unlink()
    runs = []
    trainer = study.SDSCLIPTrainer
    monkeypatch.setattr(study, "SDSCLIPTrainer", lambda **parts: runs.append(parts["args"].seed) or trainer(**parts))
    assert Study(settings, folder).run() == summary
    assert runs == [1]
    np.testing.assert_array_equal(np.load(missing)["scores"], before)


def test_changed_settings_do_not_reuse_old_scores(done, settings):
    _, folder = done
    changed = settings | {"common": settings["common"] | {"learning_rate": 0.01}}
    with pytest.raises(ValueError, match=r"other settings|common|learning_rate"):
        Study(changed, folder).run()


def test_arm_may_name_its_own_teacher(settings, velocity_teacher_folder, tmp_path):
    arms = {"contrastive": {"lambda_sds": 0.0}, "other": {"teacher_name_or_path": velocity_teacher_folder}}
    one = Study(settings | {"seeds": [0], "arms": arms}, tmp_path)
    one.run()
    assert list(one.teachers) == [velocity_teacher_folder]


def plain_interval(values: np.ndarray, resamples: int = 4000) -> tuple[float, float]:
    rng = np.random.default_rng(1)
    seeds, items = values.shape
    means = []
    for _ in range(resamples):
        rows = rng.integers(0, seeds, seeds)
        columns = rng.integers(0, items, items)
        means.append(values[rows][:, columns].mean())
    return tuple(100 * np.quantile(means, [0.025, 0.975]))


@pytest.mark.parametrize("shape, scale", [((5, 80), 1), ((3, 40), -1), ((1, 60), 1)], ids=str)
def test_interval_agrees_with_a_plain_bootstrap(shape, scale):
    rng = np.random.default_rng(3)
    values = (rng.random(shape) < rng.random((shape[0], 1))).astype(float) * scale
    np.testing.assert_allclose(_interval(values), plain_interval(values), atol=2.5)


def test_interval_of_values_that_do_not_differ_has_no_width():
    assert _interval(np.full((3, 7), 0.25)) == pytest.approx((25.0, 25.0))


def test_interval_of_a_paired_difference_is_narrow_where_the_arms_err_on_the_same_items():
    rng = np.random.default_rng(0)
    base = (rng.random((4, 100)) < 0.5).astype(float)
    low, high = _interval(base - base)
    assert (low, high) == (0.0, 0.0)


def row(group, gain):
    return {"group": group, "interval": (1.0, 2.0), "gain": gain, "gain_interval": (-1.0, 3.5), "seeds": [], "items": 9}


def test_table_is_markdown_with_a_line_for_each_arm_and_no_gain_of_the_baseline():
    arms = {"before": {"rel": row(5.0, -2.0)}, "plain": {"rel": row(7.0, 0.0)}, "sds": {"rel": row(9.25, 2.25)}}
    lines = table({"settings": {"baseline": "plain"}, "arms": arms}).splitlines()
    assert lines == [
        "| arm | rel: group | gain |",
        "|---|---|---|",
        "| before | 5.0 [1.0, 2.0] | -2.0 [-1.0, +3.5] |",
        "| plain | 7.0 [1.0, 2.0] |  |",
        "| sds | 9.2 [1.0, 2.0] | +2.2 [-1.0, +3.5] |",
    ]


def test_command_prints_the_table_and_names_the_folder(done, settings, tmp_path, capsys):
    _, folder = done
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    main(["--config", str(tmp_path / "mine.yaml"), "--output_dir", str(folder)])
    printed = capsys.readouterr().out
    assert "| contrastive |" in printed and str(folder) in printed


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"baseline": "nobody"}, "nobody"),
        ({"benchmark": "winogrand"}, "unknown benchmark 'winogrand'"),
        ({"arms": {"contrastive": {"lambda_sd": 0.0}}}, "lambda_sd"),
        ({"model_name_or_path": "nobody/nothing"}, "nobody/nothing"),
        ({"dataset_name": None}, "dataset_name"),
        ({"seeds": []}, "seeds"),
    ],
    ids=str,
)
def test_mistake_in_the_settings_ends_in_one_clear_line_before_anything_runs(
    settings, tmp_path, change, expected, monkeypatch
):
    monkeypatch.setattr(study.SDSCLIPTrainer, "train", lambda *_: pytest.fail("a run was started"))
    changed = {name: value for name, value in (settings | change).items() if value is not None}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(changed))
    with pytest.raises(SystemExit) as stop:
        main(["--config", str(tmp_path / "mine.yaml"), "--output_dir", str(tmp_path / "out")])
    assert str(stop.value.code).startswith("error: ") and expected in str(stop.value.code)
