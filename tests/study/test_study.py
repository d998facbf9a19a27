"""A study: arms x seeds, their summary, and what is kept between runs."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from damage import DAMAGE
from dual_encoders import make_dual_encoder

from sdsclip_hf.benchmarks import load_benchmark
from sdsclip_hf.benchmarks.items import read_picture
from sdsclip_hf.commands.study import main
from sdsclip_hf.common import precision
from sdsclip_hf.evaluation.results import evaluate_benchmarks
from sdsclip_hf.evaluation.scorers import ClipScorer, DiffusionScorer
from sdsclip_hf.students.dual_encoder import load_dual_encoder
from sdsclip_hf.students.sdsclip_model import load_clip
from sdsclip_hf.study import plots as study_plots
from sdsclip_hf.study import study
from sdsclip_hf.study.settings import quick
from sdsclip_hf.study.study import Study
from sdsclip_hf.study.summary import interval, table
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher

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
        "figures": ["image"],
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
        "before/world-0.npz",
        *(f"{arm}/seed-{seed}.npz" for arm in ("contrastive", "sds") for seed in (0, 1)),
    }
    assert (folder / "study.png").stat().st_size > 1000
    assert len(list((folder.parent / "study_prompts").glob("*/*.arrow"))) >= 1
    history = json.loads((folder / "sds/seed-1.json").read_text())["history"]
    assert [row["step"] for row in history if "sds" in row] == [1, 2]
    assert not any("sds" in row for row in json.loads((folder / "contrastive/seed-1.json").read_text())["history"])


def test_a_teacher_s_format_on_a_gpu_is_told_of_the_arms_that_have_one(settings, tmp_path, monkeypatch):
    on_cpu = Study(settings, tmp_path).options("sds", 0)
    monkeypatch.setattr(precision, "mixed_precision", lambda: "bf16")
    assert Study(settings, tmp_path).options("sds", 0) == on_cpu and "teacher_dtype" not in on_cpu
    on_gpu = Study(settings | {"common": settings["common"] | {"use_cpu": False}}, tmp_path)
    assert on_gpu.options("sds", 0) == on_cpu | {"use_cpu": False, "teacher_dtype": "bfloat16"}
    assert "teacher_dtype" not in on_gpu.options("contrastive", 0)


def test_arms_and_seeds_give_different_scores_from_one_start(done, settings):
    _, folder = done
    start = ClipScorer(*load_clip(settings["model_name_or_path"])).score(load_benchmark("shapes:validation").items)
    before = np.load(folder / "before/world-0.npz")["scores"]
    np.testing.assert_allclose(before, np.stack(start), atol=1e-6)
    runs = [np.load(folder / arm / f"seed-{seed}.npz")["scores"] for arm in ("contrastive", "sds") for seed in (0, 1)]
    for number, one in enumerate(runs):
        assert not np.array_equal(one, before)
        assert not any(np.array_equal(one, other) for other in runs[:number])


def test_summary_equals_the_group_score_counted_by_hand(done):
    summary, folder = done
    assert list(summary["arms"]) == ["before", "contrastive", "sds"]
    for arm, seeds in (("before", [0]), ("contrastive", [0, 1]), ("sds", [0, 1])):
        assert list(summary["arms"][arm]) == TAGS
        for tag in TAGS:
            shares, of_images = [], []
            for seed in seeds:
                file = np.load(folder / arm / f"{'world' if arm == 'before' else 'seed'}-{seed}.npz")
                scores = [s for s, of in zip(file["scores"], file["tags"], strict=True) if of == tag]
                image = [s[0, 0] > s[0, 1] and s[1, 1] > s[1, 0] for s in scores]
                right = [s[0, 0] > s[1, 0] and s[1, 1] > s[0, 1] and ok for s, ok in zip(scores, image, strict=True)]
                shares.append(100 * sum(right) / len(right))
                of_images.append(100 * sum(image) / len(image))
            row = summary["arms"][arm][tag]
            assert summary["figures"]["image"][arm][tag]["seeds"] == pytest.approx(of_images)
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
    monkeypatch.setattr(study, "ClipScorer", lambda *_: pytest.fail("the start was scored again"))
    assert Study(settings, folder).run() == summary


@pytest.mark.parametrize(("name", "kind"), [("npz", "missing"), ("npz", "one bit"), ("json", "cut")])
def test_only_what_is_missing_or_damaged_is_run_and_ends_the_same(done, settings, monkeypatch, name, kind, capsys):
    summary, folder = done
    missing = folder / "sds/seed-1.npz"
    before = np.load(missing)["scores"]
    DAMAGE[kind](missing.with_suffix(f".{name}"))
    runs = []
    trainer = study.SDSCLIPTrainer
    monkeypatch.setattr(study, "SDSCLIPTrainer", lambda **parts: runs.append(parts["args"].seed) or trainer(**parts))
    assert Study(settings, folder).run() == summary
    assert runs == [1]
    assert (f"{missing} is not what was written" in capsys.readouterr().out) == (kind != "missing")
    np.testing.assert_array_equal(np.load(missing)["scores"], before)


@pytest.mark.slow
def test_seeds_can_be_run_apart_and_are_summed_up_with_the_others(settings, done, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    command = ["--config", str(tmp_path / "mine.yaml"), "--output_dir", str(tmp_path / "out")]
    main([*command, "--seeds", "1"])
    assert {path.name for path in (tmp_path / "out").rglob("*.npz")} == {"world-0.npz", "seed-1.npz"}
    assert "without --seeds" in capsys.readouterr().out and not (tmp_path / "out/results.json").exists()
    main(command)
    assert json.loads((tmp_path / "out/results.json").read_text())["arms"] == json.loads(json.dumps(done[0]["arms"]))
    with pytest.raises(SystemExit, match=r"no seeds 7; choose from 0, 1\."):
        main([*command, "--seeds", "1", "7"])


def test_changed_settings_do_not_reuse_old_scores(done, settings):
    _, folder = done
    changed = settings | {"common": settings["common"] | {"learning_rate": 0.01}}
    with pytest.raises(ValueError, match=r"other settings|common|learning_rate"):
        Study(changed, folder).run()


@pytest.mark.slow
def test_student_may_be_of_another_kind_than_clip(settings, tmp_path):
    for part in make_dual_encoder("siglip2"):  # its pictures are several tensors
        part.save_pretrained(tmp_path / "student")
    changes = {"model_name_or_path": str(tmp_path / "student"), "seeds": [0], "baseline": "sds"}
    changes |= {"common": settings["common"] | {"max_steps": 1}, "arms": {"sds": settings["arms"]["sds"]}}
    Study(settings | changes, tmp_path / "out").run()
    encoder, item = load_dual_encoder(tmp_path / "student"), load_benchmark("shapes:validation").items[0]
    images = encoder.embed_pixels(encoder.preprocess([read_picture(image) for image in item.images]))
    texts = encoder.embed_tokens(encoder.tokenize(list(item.captions)))
    before, after = (np.load(tmp_path / "out" / name) for name in ("before/world-0.npz", "sds/seed-0.npz"))
    np.testing.assert_allclose(before["scores"][0], texts @ images.T, atol=1e-5)
    assert not np.allclose(before["scores"], after["scores"], atol=1e-3) and after["decoded"].any()


def test_prompts_of_teachers_that_differ_in_their_second_text_encoder_alone_stand_apart(settings, tmp_path):
    one, first = Study(settings, tmp_path), torch.nn.Linear(2, 2)
    teachers = [{"text_encoder": first, "text_encoder_2": torch.nn.Linear(2, 2)} for _ in range(2)]
    folders = {one._prompts_folder(SimpleNamespace(text_encoders=parts, **parts)) for parts in teachers}
    assert len(folders) == 2


def test_arm_may_name_its_own_teacher(settings, velocity_teacher_folder, tmp_path):
    arms = {"contrastive": {"lambda_sds": 0.0}, "other": {"teacher_name_or_path": velocity_teacher_folder}}
    one = Study(settings | {"seeds": [0], "arms": arms}, tmp_path)
    one.run()
    assert [name for name, *_ in one.teachers] == [velocity_teacher_folder]


def test_scores_that_cannot_be_made_are_refused_before_any_are(settings, tmp_path):
    with pytest.raises(ValueError, match="num_draws is 1; it must be at least 2"):
        Study(settings | {"scores": {"two": {}, "one": {"num_draws": 1}}}, tmp_path)


def test_scores_may_be_a_ranker_s(settings, tmp_path):
    scores = {"clip": {"ranker": "dual_encoder=org/clip", "candidates": ["batch:2"]}}
    one = Study(settings | {"scores": scores}, tmp_path / "study")
    assert one.scores_folder("clip", 0).relative_to(tmp_path / "study_scores").name.startswith("clip-")
    assert one._scoring_arguments("clip", 0).ranker == "dual_encoder=org/clip"


@pytest.fixture(scope="module")
def ranked(settings, velocity_teacher_folder, teacher_folder, clip_folder, tmp_path_factory):
    """A study with two worlds, scores that it makes itself, a curve, and two processes."""
    folder = tmp_path_factory.mktemp("ranked")
    world = {"student": clip_folder, "teacher": teacher_folder}
    changes = {
        "worlds": [world, {"student": clip_folder, "teacher": velocity_teacher_folder}],
        "retained": ["shapes_classes:validation"],
        "skill_benchmark": "shapes:validation",
        "seeds": [0, 1, 2],
        "scoring": {"candidates": ["batch:2"], "num_draws": 2, "timestep_range": [100, 900]},
        "scores": {"teacher": {}, "other": {"teacher_name_or_path": velocity_teacher_folder}},
        "common": settings["common"] | {"lambda_sds": 0.0, "trainable": "full", "scores": "teacher"},
        "arms": {"contrastive": {}, "sds": {"lambda_sds": 1.0}},
        "curves": {"ranking": {"lambda_rank": 1.0}},
    }
    kept = {name: value for name, value in settings.items() if not name.endswith("name_or_path")}
    one = Study(kept | changes, folder, workers=2)
    return one, one.run(), folder


def test_arms_begin_in_the_worlds_in_turn_with_the_scores_of_their_own(ranked, velocity_teacher_folder, teacher_folder):
    one, *_ = ranked
    scores = [one.scores_folder("teacher", world) for world in (0, 1)]
    asked = [one.options("ranking, teacher", seed)["ranking_scores"] for seed in (0, 1, 2)]
    assert asked == [str(scores[world]) for world in (0, 1, 0)]
    assert one.options("sds", 1)["teacher_name_or_path"] == velocity_teacher_folder
    assert one.options("sds", 2)["teacher_name_or_path"] == teacher_folder
    names = {json.loads((path / "scores.json").read_text())["teacher"]["fingerprint"] for path in scores}
    assert len(names) == 2
    assert one.scores_folder("other", 0) == one.scores_folder("other", 1) == scores[1]  # made once


def test_curves_become_an_arm_with_each_of_the_scores_and_their_teachers_are_measured(ranked, velocity_teacher_folder):
    _, summary, folder = ranked
    assert list(summary["arms"]) == ["before", "contrastive", "sds", "ranking, teacher", "ranking, other"]
    for name in ("teacher", "other"):
        measured = [json.loads((folder / f"skill/{name}-{world}.json").read_text())["skill"] for world in (0, 1)]
        for tag in TAGS:
            assert summary["skill"][name][tag] == pytest.approx(50 * (measured[0][tag] + measured[1][tag]))
    scorer = DiffusionScorer(
        DiffusionTeacher.from_pretrained(velocity_teacher_folder, load_vae=True), num_draws=2, timestep_range=(100, 900)
    )
    rows = evaluate_benchmarks(scorer, ["shapes:validation"])["shapes:validation"]
    group = {row["subset"]: row["value"] for row in rows if row["score"] == "group"}
    assert summary["teacher_group"]["other"] == pytest.approx({tag: 100 * group[tag] for tag in TAGS})
    assert all((folder / f"{plot}.png").stat().st_size > 5000 for plot in ("study", "skill", "health", "decoded"))


def test_what_is_retained_and_how_far_the_towers_moved_is_told(ranked):
    _, summary, folder = ranked
    told = [json.loads((folder / f"sds/seed-{seed}.json").read_text()) for seed in (0, 1, 2)]
    (name,) = [name for name in told[0]["retained"] if name.endswith("accuracy@1")]
    row = summary["retained"]["sds"][name]
    assert row["group"] == pytest.approx(100 * np.mean([one["retained"][name] for one in told]))
    base = [json.loads((folder / f"contrastive/seed-{seed}.json").read_text())["retained"][name] for seed in (0, 1, 2)]
    assert row["gain"] == pytest.approx(row["group"] - 100 * np.mean(base))
    assert summary["drift"]["sds"]["images"] == pytest.approx(np.mean([one["drift"]["images"] for one in told]))
    assert summary["drift"]["sds"]["images"] > 0
    steps = [step for step, _ in summary["health"]["sds"]["sds_gap"]]
    assert steps == sorted(set(steps)) and set(summary["health"]["contrastive"]) == {"contrastive"}


def test_a_run_in_a_worker_equals_one_in_this_process_with_the_same_scores(ranked):
    one, _, folder = ranked
    again = Study(one.settings, folder.parent / "again")
    again.train("ranking, teacher", 1)
    np.testing.assert_allclose(
        np.load(folder.parent / "again/ranking_teacher/seed-1.npz")["scores"],
        np.load(folder / "ranking_teacher/seed-1.npz")["scores"],
        atol=1e-4,
    )


def test_quick_form_puts_its_settings_in_the_place_of_the_others():
    settings = {"seeds": [0, 1], "common": {"a": 1, "b": 2}, "arms": {"one": {}, "two": {}}}
    settings["quick"] = {"seeds": [0], "common": {"b": 3}, "arms": {"two": {}}}
    assert quick(settings) == {"seeds": [0], "common": {"a": 1, "b": 3}, "arms": {"two": {}}}
    with pytest.raises(ValueError, match="no quick form"):
        quick({"seeds": [0]})


def plain_bootstrap(values: np.ndarray, resamples: int = 4000) -> tuple[float, float]:
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
    np.testing.assert_allclose(interval(values), plain_bootstrap(values), atol=2.5)


def test_interval_of_values_that_do_not_differ_has_no_width():
    assert interval(np.full((3, 7), 0.25)) == pytest.approx((25.0, 25.0))


def test_interval_of_a_paired_difference_is_narrow_where_the_arms_err_on_the_same_items():
    rng = np.random.default_rng(0)
    base = (rng.random((4, 100)) < 0.5).astype(float)
    low, high = interval(base - base)
    assert (low, high) == (0.0, 0.0)


def row(group, gain):
    return {"group": group, "interval": (1.0, 2.0), "gain": gain, "gain_interval": (-1.0, 3.5), "seeds": [], "items": 9}


def test_table_is_markdown_with_a_line_for_each_arm_and_no_gain_of_the_baseline():
    arms = {"before": {"rel": row(5.0, -2.0)}, "plain": {"rel": row(7.0, 0.0)}, "sds": {"rel": row(9.25, 2.25)}}
    summary = {"settings": {"baseline": "plain"}, "arms": arms, "figures": {}, "retained": {}, "drift": {}}
    lines = table(summary).splitlines()
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
        ({"arm": {}}, "no settings arm"),
        ({"common": {"scores": "mine"}}, "asks for the scores 'mine'"),
        ({"scoring": {"draws": 3}}, "unknown options draws of scoring"),
        ({"curves": {"ranking": {"lambda_rank": 1.0}}}, "curves need scores"),
        (
            {"curves": {"c": {}}, "skill_benchmark": "shapes:validation", "scores": {"clip": {"ranker": "a/b"}}},
            "curves measure diffusion teachers, but the scores 'clip' are a ranker's",
        ),
        ({"arms": {"contrastive": {"teacher_name_or_path": "{stages}/x"}}}, "names {stages}, which its world has not"),
        ({"arms": {"contrastive": {"learning_rate": "1e-3"}}}, "learning_rate of contrastive is text to yaml"),
        ({"arms": {"contrastive": {}, "+ contrastive": {}}}, "would share the folder contrastive"),
        ({"arms": {"contrastive": {}, "before": {}}}, "would share the folder before"),
        ({"common": {"seeds": 3}}, "unknown options seeds of common"),
        ({"figures": ["picture"]}, "unknown figure 'picture'; choose from text, image"),
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


@pytest.mark.slow
def test_arms_that_go_back_part_of_the_way_share_a_training(settings, tmp_path, monkeypatch):
    trained = []
    train = study.SDSCLIPTrainer.train
    monkeypatch.setattr(study.SDSCLIPTrainer, "train", lambda trainer: trained.append(1) or train(trainer))
    whole = {"lambda_sds": 1.0, "trainable": "full"}
    arms = {"contrastive": {"lambda_sds": 0.0}, "sds": whole, "half": whole | {"wise_ft_alpha": 0.5, "seeds": 1}}
    Study(settings | {"arms": arms}, tmp_path / "together").run()
    assert len(trained) == 4
    Study(settings | {"arms": {"contrastive": arms["contrastive"], "half": arms["half"]}}, tmp_path / "alone").run()
    together, alone = (np.load(tmp_path / folder / "half/seed-0.npz") for folder in ("together", "alone"))
    assert np.array_equal(together["scores"], alone["scores"]) and np.array_equal(together["decoded"], alone["decoded"])
    ends = [json.loads((tmp_path / "together" / arm / "seed-0.json").read_text())["drift"] for arm in ("sds", "half")]
    assert 0 < ends[1]["images"] < ends[0]["images"]
    (tmp_path / "together/half/seed-0.npz").unlink()
    Study(settings | {"arms": arms}, tmp_path / "together").run()
    assert len(trained) == 4 + 3 + 1
    assert np.array_equal(np.load(tmp_path / "together/half/seed-0.npz")["scores"], alone["scores"])


def test_arms_that_share_a_training_share_a_line_of_the_health_plot():
    one, other = {"sds": [(1, 0.5)]}, {"sds": [(1, 0.4)]}
    assert study_plots._joined({"a": one, "b": other, "c": dict(one)}) == {"a; c": one, "b": other}
