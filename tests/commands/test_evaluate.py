"""The evaluate command: what it leaves behind, how it goes on after an interruption, and how it refuses."""

import json
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import datasets
import evaluate as metrics
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from benchmark_copies import aro_relation, write_json
from conftest import make_clip, make_processor, make_rows
from damage import DAMAGE
from full_disk import files_up_to
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from sdsclip_hf.benchmarks import load_benchmark
from sdsclip_hf.commands import evaluate
from sdsclip_hf.common.checkpoints import fingerprint
from sdsclip_hf.common.resources import versions
from sdsclip_hf.evaluation import evaluate_models
from sdsclip_hf.evaluation.results import evaluate_benchmark
from sdsclip_hf.evaluation.scorers import ClipScorer, DiffusionScorer
from sdsclip_hf.metrics import path
from sdsclip_hf.students.dual_encoder import load_dual_encoder
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher

pytestmark = pytest.mark.filterwarnings("ignore")
SHAPES = "shapes:validation"


def save_clip(folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    make_clip().save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def other_clip(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("other") / "clip_b", 11)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def run(*words, output="out") -> dict:
    evaluate.main([*map(str, words), "--output_dir", str(output), "--num_workers", "0"])
    return read(output)


def read(output="out") -> dict:
    return json.loads(Path(output, "results.json").read_text())


def error_of(*words, output="out") -> str:
    with pytest.raises(SystemExit) as stop:
        run(*words, output=output)
    assert isinstance(stop.value.code, str) and stop.value.code.startswith("error: "), stop.value.code
    return stop.value.code


def by_name(rows) -> dict:
    return {(row["subset"], row["score"]): row for row in rows}


def files(folder="out") -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in sorted(Path(folder).rglob("*")) if one.is_file()}


def scores_of(folder="out", **chosen) -> list[dict]:
    rows = datasets.Dataset.from_parquet(str(Path(folder, "scores.parquet")), cache_dir="cache")
    return [row for row in rows if all(row[name] == value for name, value in chosen.items())]


# Data in the authors' formats


def save_picture(place: Path, number: int) -> str:
    place.parent.mkdir(parents=True, exist_ok=True)
    make_rows(number + 1)[number]["image"].save(place)
    return place.name


CASES = {"add_obj": 3, "add_att": 2, "replace_obj": 4, "replace_att": 2, "replace_rel": 3, "swap_obj": 2, "swap_att": 5}


@pytest.fixture
def sugarcrepe(tmp_path):
    """The seven json files with two to five items each, beside their images."""
    folder = tmp_path / "data/sugarcrepe"
    rng = np.random.default_rng(0)
    for subset, count in CASES.items():
        items = {}
        for number in range(count):
            name = save_picture(folder / f"val2017/{subset}{number}.jpg", int(rng.integers(20)))
            items[str(number * 3)] = {
                "filename": name,
                "caption": f"a red {subset}",
                "negative_caption": "a dog on mat",
            }
        (folder / f"{subset}.json").write_text(json.dumps(items))
    return folder


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


@pytest.fixture
def classes(tmp_path):
    """An imagefolder of two classes."""
    for number in range(8):
        save_picture(tmp_path / f"classes/test/{['red_cat', 'dog'][number % 2]}/{number}.png", number)
    return tmp_path / "classes"


# What it leaves behind


def test_run_leaves_results_every_item_s_scores_and_a_plot(clip_folder, capsys):
    results = run("--model", clip_folder, "--benchmark", SHAPES)
    name = Path(clip_folder).name
    words = ["--model", clip_folder, "--benchmark", SHAPES, "--output_dir", "out", "--num_workers", "0"]
    assert results["command"] == f"sdsclip evaluate {' '.join(words)}"
    assert results["versions"] == versions() and results["versions"]["torch"] == torch.__version__
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
    assert set(files()) == {"evaluation.json", "results.json", "scores.parquet", "scores.png"}
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


# Going on


def chunked(monkeypatch, kind, size, stop_after=None, error=None) -> list[int]:
    """Make the command's scorer work in chunks of ``size`` and fail after some; returns what each chunk held."""
    done: list[int] = []

    class Slow(kind):
        def score_chunks(self, items):
            for chunk in super().score_chunks(items):
                if stop_after is not None and len(done) == stop_after:
                    raise error
                done.append(len(chunk))
                yield chunk

    monkeypatch.setattr(evaluate_models, kind.__name__, partial(Slow, chunk_size=size))
    return done


def without_command(results: dict) -> dict:
    return {name: value for name, value in results.items() if name != "command"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("the disk is gone")], ids=["Ctrl-C", "OSError"])
def test_interrupted_evaluation_goes_on_and_ends_bit_by_bit_the_same(clip_folder, other_clip, monkeypatch, error):
    words = "--model", clip_folder, other_clip, "--benchmark", SHAPES, "--batch_size", 32
    with monkeypatch.context() as patch:
        assert chunked(patch, ClipScorer, 50) == []
        whole = run(*words, output="whole")
    with monkeypatch.context() as patch:
        done = chunked(patch, ClipScorer, 50, 8, error)
        with pytest.raises(SystemExit):
            run(*words)
        assert done == [50, 50, 50, 50, 50, 38, 50, 50]
    assert len(list(Path("out/parts").rglob("*.parquet"))) == 8
    assert not Path("out/results.json").exists() and not Path("out/scores.parquet").exists()
    with monkeypatch.context() as patch:
        done = chunked(patch, ClipScorer, 50)
        again = run(*words)
        assert done == [50, 50, 50, 38]
    assert without_command(again) == without_command(whole)
    assert Path("out/scores.parquet").read_bytes() == Path("whole/scores.parquet").read_bytes()
    assert set(files()) == {"evaluation.json", "results.json", "scores.parquet", "scores.png"}


def test_a_full_disk_ends_an_evaluation_and_damage_to_a_part_is_seen_when_it_goes_on(clip_folder, monkeypatch, caplog):
    words = "--model", clip_folder, "--benchmark", SHAPES
    with monkeypatch.context() as patch:
        chunked(patch, ClipScorer, 50)
        whole = run(*words, output="whole")
        too_small = Path("whole/scores.parquet").stat().st_size - 1
        for room, what in ((3_000, "part-000000000"), (too_small, "scores.parquet")):
            with files_up_to(room):
                told = error_of(*words)
            assert re.search(rf"{what} could not be written: File too large \(.* free in .*\)\. Make room", told)
    (part,) = Path("out/parts").rglob("part-000000050*")
    DAMAGE["one bit"](part)
    with monkeypatch.context() as patch:
        done = chunked(patch, ClipScorer, 50)
        assert without_command(run(*words)) == without_command(whole)
        assert done == [50, 50, 50, 50, 38] and f"{part} is not what was written: it is made anew" in caplog.text
    assert Path("out/scores.parquet").read_bytes() == Path("whole/scores.parquet").read_bytes()


def test_interrupted_teacher_goes_on_and_ends_bit_by_bit_the_same(teacher_folder, monkeypatch):
    few = load_benchmark(SHAPES)
    few.items = few.items[:10]
    monkeypatch.setattr(evaluate_models, "load_benchmark", lambda *_: few)
    words = "--teacher", teacher_folder, "--benchmark", SHAPES, "--num_draws", 2
    with monkeypatch.context() as patch:
        chunked(patch, DiffusionScorer, 4)
        whole = run(*words, output="whole")
    with monkeypatch.context() as patch:
        chunked(patch, DiffusionScorer, 4, 1, KeyboardInterrupt())
        with pytest.raises(SystemExit, match="interrupted; type the same command again"):
            run(*words)
    with monkeypatch.context() as patch:
        assert chunked(patch, DiffusionScorer, 4) is not None
        done = chunked(patch, DiffusionScorer, 4)
        assert without_command(run(*words)) == without_command(whole)
        assert done == [4, 2]
    assert Path("out/scores.parquet").read_bytes() == Path("whole/scores.parquet").read_bytes()


KILLED = """
import os, signal, sys
from functools import partial
from sdsclip_hf.common import chunks
from sdsclip_hf.commands import evaluate
from sdsclip_hf.evaluation import evaluate_models

write = chunks.pq.write_table
def killed(table, path):
    write(table, path)
    if path.name.startswith("part-000000100"):
        path.write_bytes(path.read_bytes()[:100])
        os.kill(os.getpid(), signal.SIGKILL)
chunks.pq.write_table = killed
evaluate_models.ClipScorer = partial(evaluate_models.ClipScorer, chunk_size=50)
evaluate.main(sys.argv[1:])
"""


def test_killed_evaluation_goes_on_behind_its_last_whole_part(clip_folder, monkeypatch):
    words = "--model", clip_folder, "--benchmark", SHAPES
    line = [sys.executable, "-c", KILLED, *words, "--output_dir", "out", "--num_workers", "0"]
    killed = subprocess.run(line, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    left = sorted(part.name for part in Path("out/parts").rglob("part-*"))
    assert [part.split("-")[1] for part in left[:2]] == ["000000000", "000000050"]
    assert len(left) == 3 and re.fullmatch(r"part-000000100\.\S+\.partial", left[2])
    with monkeypatch.context() as patch:
        done = chunked(patch, ClipScorer, 50)
        again = run(*words)
        assert done == [50, 50, 50, 38]
    with monkeypatch.context() as patch:
        chunked(patch, ClipScorer, 50)
        assert without_command(run(*words, output="whole")) == without_command(again)
    assert Path("out/scores.parquet").read_bytes() == Path("whole/scores.parquet").read_bytes()


def test_finished_evaluation_is_told_again_and_not_repeated(clip_folder, other_clip, monkeypatch, capsys):
    words = "--model", clip_folder, other_clip, "--benchmark", SHAPES, "retrieval:validation=shapes"
    results = run(*words)
    before, printed = files(), capsys.readouterr().out
    for name in ("score_chunks", "embed_images", "embed_captions"):
        monkeypatch.setattr(ClipScorer, name, lambda *_: pytest.fail("something was scored again"))
    assert run(*words) == results
    assert {name: content for name, content in files().items() if name != "scores.png"} == {
        name: content for name, content in before.items() if name != "scores.png"
    }
    told = capsys.readouterr().out
    assert told.rpartition("It took")[0] == printed.rpartition("It took")[0]


def test_parts_left_by_a_stop_after_the_results_do_no_harm(clip_folder, monkeypatch):
    words = "--model", clip_folder, "--benchmark", SHAPES
    remove = shutil.rmtree

    def stopped(folder, *options, **named):
        if Path(folder).name == "parts":
            raise KeyboardInterrupt
        remove(folder, *options, **named)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate_models.shutil, "rmtree", stopped)
        with pytest.raises(SystemExit, match="interrupted; type the same command again"):
            run(*words)
    results = read()
    assert run(*words) == results
    assert not Path("out/parts").exists()


# Refusals


@pytest.fixture
def begun(clip_folder, monkeypatch):
    """An evaluation that was stopped after its first chunk."""
    with monkeypatch.context() as patch:
        chunked(patch, ClipScorer, 50, 1, KeyboardInterrupt())
        with pytest.raises(SystemExit, match="interrupted; type the same command again"):
            run("--model", clip_folder, "--benchmark", SHAPES)
    return clip_folder


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    "change, named",
    [
        (["--dtype", "bfloat16"], "dtype is 'auto', not 'bfloat16'"),
        (["--seed", "3"], "seed is 0, not 3"),
        (["--num_draws", "3"], "num_draws is 10, not 3"),
        (["--image_dir", "there"], "image_dir is None, not 'there'"),
        (["--benchmark", "shapes:test"], "benchmark shapes:test is None, not "),
    ],
    ids=str,
)
def test_other_settings_are_refused_and_nothing_is_overwritten(begun, change, named, finished):
    words = "--model", begun, "--benchmark", SHAPES
    if finished:
        run(*words)
    before = files()
    message = error_of(*words, *change)
    assert message.startswith(f"error: out holds another evaluation: its {named}") and "--output_dir" in message
    assert files() == before


def test_fewer_benchmarks_are_refused(clip_folder):
    run("--model", clip_folder, "--benchmark", SHAPES, "retrieval:validation=shapes")
    message = error_of("--model", clip_folder, "--benchmark", SHAPES)
    assert "its benchmark retrieval:validation=shapes is {" in message and "--output_dir" in message


def test_changed_copy_of_a_benchmark_is_refused(clip_folder, sugarcrepe):
    words = "--model", clip_folder, "--benchmark", f"sugarcrepe={sugarcrepe}"
    run(*words)
    before = files()
    file = sugarcrepe / "swap_obj.json"
    file.write_text(file.read_text().replace("a dog on mat", "a cat on mat"))
    message = error_of(*words)
    assert f"its benchmark sugarcrepe={sugarcrepe} is" in message and "--output_dir" in message
    assert files() == before


def test_other_prompts_are_refused_also_if_they_come_from_a_file(clip_folder, classes, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a {}")
    words = "--model", clip_folder, "--benchmark", f"classification={classes}", "--templates", prompts
    run(*words)
    prompts.write_text("the {}")
    assert f"its benchmark classification={classes} is" in error_of(*words)


@pytest.mark.parametrize("finished", [False, True])
def test_changed_weights_are_refused(tmp_path, monkeypatch, finished):
    folder = save_clip(tmp_path / "mine", 1)
    words = "--model", folder, "--benchmark", SHAPES
    with monkeypatch.context() as patch:
        chunked(patch, ClipScorer, 50, None if finished else 1, KeyboardInterrupt())
        if finished:
            run(*words)
        else:
            with pytest.raises(SystemExit, match="interrupted; type the same command again"):
                run(*words)
    before = files()
    save_clip(tmp_path / "mine", 2)
    message = error_of(*words)
    assert f"the weights of {folder} are not those that out was begun with" in message and "--output_dir" in message
    assert files() == before


@pytest.mark.parametrize("kept", ["results.json", "scores.parquet", "scores.png", "parts/mine.txt"])
def test_folder_of_something_else_is_refused_and_kept(clip_folder, kept):
    Path("out", kept).parent.mkdir(parents=True)
    Path("out", kept).write_text('{"before": {}}')
    message = error_of("--model", clip_folder, "--benchmark", SHAPES)
    assert "out holds the results of another run" in message and "--output_dir" in message
    assert files() == {kept: b'{"before": {}}'}


@pytest.fixture
def no_model(monkeypatch):
    """Loading a model fails the test."""
    monkeypatch.setattr(evaluate_models, "load_dual_encoder", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setattr(DiffusionTeacher, "from_pretrained", lambda *_, **__: pytest.fail("a teacher was loaded"))


@pytest.mark.parametrize("ranked", ["classification", "retrieval:validation=shapes"])
def test_teacher_with_ranks_is_refused_before_anything_is_scored(teacher_folder, classes, no_model, ranked):
    spec = f"classification={classes}" if ranked == "classification" else ranked
    message = error_of("--model", "m", "--teacher", teacher_folder, "--benchmark", SHAPES, spec)
    assert f"{spec} compares every image with every caption" in message and "--model" in message
    assert not Path("out").exists()


def test_model_named_twice_is_refused(clip_folder, no_model):
    assert f"{clip_folder} name one twice" in error_of("--model", clip_folder, clip_folder, "--benchmark", SHAPES)


def test_unknown_benchmark_is_refused_with_the_choices(clip_folder, no_model):
    message = error_of("--model", clip_folder, "--benchmark", SHAPES, "winogrand")
    assert "unknown benchmark 'winogrand'; choose from winoground, aro_relation" in message
    assert not Path("out").exists()


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


def test_scores_that_are_nan_are_refused_with_their_item(tmp_path, classes):
    folder = save_clip(tmp_path / "broken", 1)
    model = CLIPModel.from_pretrained(folder)
    torch.nn.init.constant_(model.visual_projection.weight, float("nan"))
    model.save_pretrained(folder)
    assert f"{SHAPES}: the scores of item 0 hold NaN" in error_of("--model", folder, "--benchmark", SHAPES)
    spec = f"classification={classes}"
    assert f"the embedding of {spec}: item '0' holds NaN" in error_of(
        "--model", folder, "--benchmark", spec, output="o"
    )
    spec = "retrieval:validation=shapes"
    assert f"the embedding of {spec}: item '0' holds NaN" in error_of(
        "--model", folder, "--benchmark", spec, output="p"
    )


def test_nan_is_refused_as_soon_as_it_is_met_and_not_kept(clip_folder, monkeypatch):
    done = chunked(monkeypatch, ClipScorer, 50)
    score = ClipScorer.score_chunks

    def broken(self, items):
        for number, chunk in enumerate(score(self, items)):
            if number == 2:
                chunk[7] = chunk[7] * np.nan
            yield chunk

    monkeypatch.setattr(ClipScorer, "score_chunks", broken)
    assert f"{SHAPES}: the scores of item 107 hold NaN" in error_of("--model", clip_folder, "--benchmark", SHAPES)
    assert done == [50, 50, 50]
    assert len(list(Path("out/parts").rglob("*.parquet"))) == 2


def test_folder_of_a_run_that_failed_before_it_scored_anything_is_used_again(clip_folder, tmp_path):
    assert "could not load" in error_of("--model", "no/such-model", "--benchmark", SHAPES)
    assert Path("out/evaluation.json").exists()
    folder = save_clip(tmp_path / "broken", 1)
    model = CLIPModel.from_pretrained(folder)
    torch.nn.init.constant_(model.visual_projection.weight, float("nan"))
    model.save_pretrained(folder)
    assert "hold NaN" in error_of("--model", folder, "--benchmark", SHAPES)
    save_clip(tmp_path / "broken", 2)
    assert list(run("--model", folder, "--benchmark", SHAPES)["models"]) == ["broken"]
    assert "holds another evaluation: its model" in error_of("--model", clip_folder, "--benchmark", SHAPES)


def test_long_names_that_end_alike_have_folders_of_their_own():
    ending = "x" * 200
    slugs = {evaluate_models._slug(name) for name in (f"a{ending}", f"b{ending}", "a/b", "a_b", "a:b")}
    assert len(slugs) == 5 and all(len(slug) < 100 and "/" not in slug for slug in slugs)


def test_changed_pictures_are_refused(clip_folder, tmp_path):
    copy = aro_relation()
    source = write_json(tmp_path / "copy", copy)
    words = "--model", clip_folder, "--benchmark", f"aro_relation={source}"
    run(*words)
    path = next((source / "images").iterdir())
    Image.new("RGB", (90, 90), "red").save(path)
    with pytest.raises(SystemExit, match="holds another evaluation"):
        run(*words)


def test_changed_preprocessing_is_refused(clip_folder, tmp_path):
    shutil.copytree(clip_folder, tmp_path / "clip")
    words = "--model", tmp_path / "clip", "--benchmark", SHAPES
    run(*words)
    processor = CLIPProcessor.from_pretrained(tmp_path / "clip")
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    processor.save_pretrained(tmp_path / "clip")
    with pytest.raises(SystemExit, match=r"the weights .* are not those"):
        run(*words)


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
