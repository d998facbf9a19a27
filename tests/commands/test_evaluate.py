"""The evaluate command: what it leaves behind, of which data, and what it says of them."""

import json
import shutil
from pathlib import Path

import datasets
import evaluate as metrics
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from benchmark_copies import aro_relation, write_json
from conftest import make_processor
from evaluations import CASES, SHAPES, by_name, error_of, run, save_clip, save_picture, scores_of
from folders import contents
from transformers import CLIPModel

from sdsclip_hf.benchmarks import load_benchmark
from sdsclip_hf.commands import evaluate
from sdsclip_hf.common.checkpoints import fingerprint
from sdsclip_hf.common.resources import versions
from sdsclip_hf.evaluation import evaluate_models
from sdsclip_hf.evaluation.results import evaluate_benchmark
from sdsclip_hf.evaluation.scorers import ClipScorer
from sdsclip_hf.metrics import path
from sdsclip_hf.students.dual_encoder import load_dual_encoder
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher

pytestmark = pytest.mark.usefixtures("work_folder")


@pytest.fixture
def aro(tmp_path):
    """Six relations and thirty attributes, of boxes in four images."""
    folder = tmp_path / "data/aro"
    names = [save_picture(folder / f"images/{number}.jpg", number) for number in range(4)]
    box = {"bbox_x": 2, "bbox_y": 1, "bbox_w": 12, "bbox_h": 9}

    def cases(count, extra):
        texts = {"true_caption": "the red cat", "false_caption": "the blue dog"}
        return [{"image_path": names[n % 4], **box, **texts, **extra(n)} for n in range(count)]

    relations = cases(6, lambda n: {"relation_name": ["on", "behind", "next to"][n % 3]})
    attributes = cases(30, lambda n: {"attributes": ["red", "round"] if n < 26 else ["old", "wet"]})
    (folder / "visual_genome_relation.json").write_text(json.dumps(relations))
    (folder / "visual_genome_attribution.json").write_text(json.dumps(attributes))
    return folder


def test_run_leaves_results_every_item_s_scores_and_a_plot(drawn, clip_folder, capsys):
    results = run("--model", clip_folder, "--benchmark", SHAPES)
    name = Path(clip_folder).name
    words = ["--model", clip_folder, "--benchmark", SHAPES, "--output_dir", "out", "--num_workers", "0"]
    assert results["command"] == f"sdsclip evaluate {' '.join(words)}"
    assert results["versions"] == versions() and torch.__version__.startswith(results["versions"]["torch"])
    model = CLIPModel.from_pretrained(clip_folder)
    record = results["models"][name]
    assert (record["name"], record["kind"]) == (clip_folder, "dual encoder")
    assert record["fingerprint"].partition("-")[0] == fingerprint(model)
    assert list(results["benchmarks"]) == [SHAPES]
    benchmark = results["benchmarks"][SHAPES]
    assert benchmark["source"] == load_benchmark(SHAPES).source
    assert benchmark["source"]["items"] == 288
    assert benchmark["differences"] == {}
    expected = evaluate_benchmark(ClipScorer(model, make_processor()), load_benchmark(SHAPES))
    assert benchmark["scores"][name] == json.loads(json.dumps(expected))
    height, width, _ = plt.imread("out/scores.png").shape
    assert height > 100 and width > 100
    assert set(contents("out")) == {"evaluation.json", "results.json", "scores.parquet", "scores.png"}
    printed = capsys.readouterr().out
    assert f"{SHAPES}: 288 items of sdsclip_hf.shapes" in printed and "difference" not in printed


def test_metrics_can_be_computed_again_from_the_scores(clip_folder, other_clip):
    results = run("--model", clip_folder, other_clip, "--benchmark", SHAPES)
    metric = metrics.load(path("winoground_group_score"), keep_in_memory=True)
    for name in (Path(clip_folder).name, "clip_b"):
        rows = scores_of(model=name, benchmark=SHAPES)
        assert len(rows) == 288 and all(len(row["captions"]) == 2 for row in rows)
        again = metric.compute(scores=[row["scores"] for row in rows], tags=[row["tag"] for row in rows])
        found = by_name(results["benchmarks"][SHAPES]["scores"][name])
        for subset, one in {"all": again, **again["tags"]}.items():
            for part in ("text", "image", "group"):
                assert found[subset, part]["value"] == pytest.approx(one[f"winoground_{part}_score"])
                assert found[subset, part]["interval"] == pytest.approx(one["intervals"][f"winoground_{part}_score"])


def test_two_models_are_compared_item_by_item(clip_folder, other_clip, capsys):
    results = run("--model", clip_folder, other_clip, "--benchmark", SHAPES)
    printed = capsys.readouterr().out
    first, second = Path(clip_folder).name, "clip_b"
    scores, differences = (results["benchmarks"][SHAPES][key] for key in ("scores", "differences"))
    assert list(differences) == [second]
    one, other = by_name(scores[first]), by_name(scores[second])
    rights = [
        {
            row["item"]: row["scores"][0][0] > row["scores"][1][0] and row["scores"][1][1] > row["scores"][0][1]
            for row in scores_of(model=name)
        }
        for name in (first, second)
    ]
    for key, row in by_name(differences[second]).items():
        assert row["value"] == pytest.approx(other[key]["value"] - one[key]["value"])
        assert row["interval"][0] <= row["value"] <= row["interval"][1]
    text = by_name(differences[second])["all", "text"]
    assert text["only_first"] == sum(rights[0][item] and not rights[1][item] for item in rights[0])
    assert text["only_second"] == sum(rights[1][item] and not rights[0][item] for item in rights[0])
    (header,) = [line for line in printed.splitlines() if line.startswith("benchmark ")]
    assert header.split() == [
        "benchmark",
        "subset",
        "score",
        "items",
        "ties",
        first,
        second,
        *["difference", "McNemar", "p"],
    ]
    (line,) = [line for line in printed.splitlines() if line.split()[:3] == [SHAPES, "all", "text"]]
    assert f"{100 * text['value']:+5.1f} [" in line and line.endswith(f" {text['p']:.2g}")


def test_two_models_leave_a_report_with_the_pictures_that_were_scored(clip_folder, sugarcrepe, other_clip, capsys):
    words = ["--model", clip_folder, other_clip, "--benchmark", f"sugarcrepe:swap_att={sugarcrepe}"]
    run(*words)
    assert "out/report.html shows what was won and lost" in capsys.readouterr().out
    assert 0 < Path("out/report.html").read_text().count("data:image/") <= 5
    run(*words, "--no_images")  # finished: shown again
    assert "data:image/" not in Path("out/report.html").read_text()
    run(*words, "--no_report", output="without")
    assert not Path("without/report.html").exists()


def test_more_models_are_each_compared_with_the_first(clip_folder, other_clip, tmp_path, capsys):
    third = save_clip(tmp_path / "clip_c", 12)
    results = run("--model", clip_folder, other_clip, "--model", third, "--benchmark", SHAPES)
    scores, differences = (results["benchmarks"][SHAPES][key] for key in ("scores", "differences"))
    assert list(differences) == ["clip_b", "clip_c"]
    first = by_name(scores[Path(clip_folder).name])
    for name, rows in differences.items():
        for key, row in by_name(rows).items():
            assert row["value"] == pytest.approx(by_name(scores[name])[key]["value"] - first[key]["value"])
    assert "difference" not in capsys.readouterr().out


def test_models_with_one_last_name_are_told_apart(tmp_path):
    one, other = (save_clip(tmp_path / part / "clip", seed) for part, seed in (("a", 1), ("b", 2)))
    third = save_clip(tmp_path / "clip_c", 3)
    results = run("--model", one, other, third, "--benchmark", SHAPES)
    assert list(results["models"]) == [one, other, "clip_c"]
    assert len({record["fingerprint"] for record in results["models"].values()}) == 3
    rows = {name: [row["scores"] for row in scores_of(model=name)] for name in results["models"]}
    assert rows[one] != rows[other] != rows["clip_c"] and {len(found) for found in rows.values()} == {288}


def test_teacher_and_model_stand_side_by_side(clip_folder, teacher_folder, monkeypatch):
    few = load_benchmark(SHAPES)
    few.items = few.items[:10]
    monkeypatch.setattr(evaluate_models, "load_benchmark", lambda *_: few)
    options = {"num_draws": 2, "timestep_range": (100, 800), "weighting": "velocity", "seed": 7}
    words = ["--num_draws", "2", "--timestep_range", "100", "800", "--weighting", "velocity", "--seed", "7"]
    results = run("--model", clip_folder, "--teacher", teacher_folder, "--benchmark", SHAPES, *words)
    teacher = DiffusionTeacher.from_pretrained(teacher_folder, load_vae=True)
    name = Path(teacher_folder).name
    record = {"name": teacher_folder, "kind": "diffusion model", "fingerprint": fingerprint(teacher)}
    assert results["models"][name] == record
    for row, item in zip(scores_of(model=name), few.items, strict=True):
        expected = -teacher.diffusion_score(list(item.images), list(item.captions), **options).T
        np.testing.assert_allclose(row["scores"], expected, atol=1e-5)
    assert by_name(results["benchmarks"][SHAPES]["differences"][name])["all", "group"]["n"] == 10


def test_retrieval_and_classification_keep_ranks(clip_folder, classes, tmp_path):
    retrieval, classification = "retrieval:validation=shapes", f"classification={classes}"
    (tmp_path / "prompts.txt").write_text("a photo of a {}.\n\n a {} on a mat\n")
    benchmarks = ["--benchmark", retrieval, classification]
    results = run("--model", clip_folder, *benchmarks, "--templates", tmp_path / "prompts.txt")
    name = Path(clip_folder).name
    encoder = load_dual_encoder(clip_folder)
    scorer = ClipScorer(encoder.model, encoder.processor)
    texts = scorer.embed_captions(
        ["a photo of a dog.", "a dog on a mat", "a photo of a red cat.", "a red cat on a mat"]
    )
    prompts = texts.view(2, 2, -1).mean(1)
    similarity = load_pictures(scorer, classes) @ (prompts / prompts.norm(dim=1, keepdim=True)).T
    truth = torch.tensor([row["tag"] == "red_cat" for row in scores_of(benchmark=classification)]).long()
    found = by_name(results["benchmarks"][classification]["scores"][name])
    assert truth.sum() == 4
    assert found["all", "accuracy@1"]["value"] == pytest.approx((similarity.argmax(1) == truth).float().mean().item())
    assert ("all", "accuracy@5") not in found
    rows = scores_of(benchmark=retrieval)
    recalls = by_name(results["benchmarks"][retrieval]["scores"][name])
    assert len(rows) == recalls["image to text", "recall@1"]["n"] == 768
    assert recalls["text to image", "recall@5"]["n"] == 768 * 12
    for k in (1, 5, 10):
        shares = np.mean([row["ranks"][0][0] < k for row in rows])
        assert recalls["image to text", f"recall@{k}"]["value"] == pytest.approx(shares)
        shares = np.mean([rank[0] < k for row in rows for rank in row["ranks"][1:]])
        assert recalls["text to image", f"recall@{k}"]["value"] == pytest.approx(shares)
    words = "--templates", "a photo of a {}.", "a {} on a mat"
    again = run("--model", clip_folder, *benchmarks[:1], classification, *words, output="again")
    assert again["benchmarks"][classification] == results["benchmarks"][classification]


def load_pictures(scorer, classes) -> torch.Tensor:
    return scorer.embed_images(datasets.load_dataset("imagefolder", data_dir=str(classes), split="test")["image"])


def test_data_folder_holds_each_benchmark_by_its_name(clip_folder, sugarcrepe, aro, capsys):
    for name in ("aro_relation", "aro_attribution"):
        shutil.copytree(aro, sugarcrepe.parent / name)
    benchmarks = ["sugarcrepe", "aro_relation", "aro_attribution"]
    results = run("--model", clip_folder, "--benchmark", *benchmarks, "--data", sugarcrepe.parent)
    specs = [f"{name}={sugarcrepe.parent / name}" for name in benchmarks]
    assert list(results["benchmarks"]) == specs
    name = Path(clip_folder).name
    crepe, relation, attribution = (by_name(results["benchmarks"][spec]["scores"][name]) for spec in specs)
    rows = scores_of(benchmark=specs[0])
    assert [row["item"] for row in rows][:3] == ["add_obj/0", "add_obj/3", "add_obj/6"]
    again = metrics.load(path("sugarcrepe_accuracy"), keep_in_memory=True).compute(
        true_scores=[row["scores"][0][0] for row in rows],
        false_scores=[row["scores"][1][0] for row in rows],
        subsets=[row["tag"] for row in rows],
    )
    assert crepe["all", "macro accuracy"]["value"] == pytest.approx(again["sugarcrepe_accuracy"])
    assert {subset: crepe[subset, "accuracy"]["n"] for subset in CASES} == CASES
    assert relation["all", "macro accuracy"]["groups"] == 2 and relation["next to", "accuracy"]["n"] == 2
    assert attribution["all", "macro accuracy"]["n"] == 26 and attribution["all", "micro accuracy"]["n"] == 30
    printed = capsys.readouterr().out
    assert "sugarcrepe: 21 items" in printed and "the published benchmark has 7511" in printed


def test_benchmarks_in_one_folder_of_a_long_name_are_not_mixed_up(clip_folder, aro, tmp_path):
    long = tmp_path / ("x" * 120)
    aro.rename(long)
    results = run("--model", clip_folder, "--benchmark", f"aro_attribution={long}", f"aro_relation={long}")
    counts = [one["scores"][Path(clip_folder).name][0]["n"] for one in results["benchmarks"].values()]
    assert counts == [26, 4]


def test_copy_without_tags_says_that_there_is_no_macro_accuracy(clip_folder, aro, capsys):
    file = aro / "visual_genome_relation.json"
    file.write_text(json.dumps([{**row, "relation_name": None} for row in json.loads(file.read_text())]))
    run("--model", clip_folder, "--benchmark", f"aro_relation={aro}")
    assert "it does not tell relations, attributes or subsets, so there is no macro" in capsys.readouterr().out


def test_copy_with_no_group_that_counts_says_so(clip_folder, aro, capsys):
    file = aro / "visual_genome_relation.json"
    file.write_text(json.dumps([{**row, "relation_name": "near"} for row in json.loads(file.read_text())]))
    run("--model", clip_folder, "--benchmark", f"aro_relation={aro}")
    assert "no group is one that counts, so there is no macro" in capsys.readouterr().out


def test_without_arguments_the_bundled_student_is_scored_on_the_shapes_world():
    args = evaluate.parse_arguments([])
    assert args.model == ["shapes/student"] and args.benchmark == ["shapes:test", "retrieval:test=shapes"]
    assert evaluate.parse_arguments(["--teacher", "shapes/teacher"]).model == []


def test_model_that_is_nowhere_is_refused_by_its_name():
    message = error_of("--model", "no/such-model", "--benchmark", SHAPES)
    assert "could not load the model 'no/such-model'" in message and "--model" in message


def test_unreadable_image_is_named(clip_folder, sugarcrepe):
    broken = sugarcrepe / "val2017/swap_att2.jpg"
    broken.write_bytes(broken.read_bytes()[:60])
    message = error_of("--model", clip_folder, "--benchmark", f"sugarcrepe={sugarcrepe}")
    assert f"the image {broken} could not be read" in message and "--allow_missing" in message


def test_missing_images_are_refused_or_left_out_and_counted(clip_folder, sugarcrepe, capsys):
    for name in ("swap_att2.jpg", "add_obj0.jpg"):
        (sugarcrepe / "val2017" / name).unlink()
    words = "--model", clip_folder, "--benchmark", f"sugarcrepe={sugarcrepe}"
    message = error_of(*words)
    assert "the images of 1 of 3 items are missing" in message and "--allow_missing" in message
    assert not Path("out").exists()
    results = run(*words, "--allow_missing")
    (one,) = results["benchmarks"].values()
    assert one["source"]["missing_images"] == 2 and one["source"]["items"] == 19
    found = by_name(one["scores"][Path(clip_folder).name])
    assert (found["swap_att", "accuracy"]["n"], found["all", "micro accuracy"]["n"]) == (4, 19)
    assert "2 left out, since their images are missing" in capsys.readouterr().out


def test_images_may_lie_elsewhere(clip_folder, sugarcrepe, tmp_path):
    (sugarcrepe / "val2017").rename(tmp_path / "pictures")
    words = "--model", clip_folder, "--benchmark", f"sugarcrepe={sugarcrepe}"
    assert "--image_dir" in error_of(*words)
    assert run(*words, "--image_dir", tmp_path / "pictures")["models"]


def test_cut_captions_are_counted(clip_folder, tmp_path):
    copy = aro_relation()
    copy.json_rows[0]["true_caption"] = "red " * 40
    source = write_json(tmp_path / "copy", copy)
    results = run("--model", clip_folder, "--benchmark", f"aro_relation={source}")
    (count,) = results["benchmarks"][f"aro_relation={source}"]["captions_cut"].values()
    assert count == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--dtype", "foo"), "invalid choice"),
        (("--batch_size", "0"), "0 is below 1"),
        (("--num_draws", "0"), "below 1"),
    ],
)
def test_arguments_out_of_range_are_refused(words, message, capsys):
    with pytest.raises(SystemExit):
        evaluate.parse_arguments(list(words))
    assert message in capsys.readouterr().err


def test_a_pipeline_is_no_dual_encoder(teacher_folder):
    with pytest.raises(SystemExit, match="give it as --teacher"):
        run("--model", teacher_folder, "--benchmark", SHAPES)
