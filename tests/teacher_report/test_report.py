"""Questions, answers and the whole report on tiny models, and what is refused."""

import json
import re
import shlex
from functools import partial

import datasets
import numpy as np
import pytest
from browsing import chromium

from sdsclip_hf.benchmarks import Benchmark, Item, load_benchmark
from sdsclip_hf.commands.score_captions import parse_scoring
from sdsclip_hf.commands.teacher_report import main
from sdsclip_hf.evaluation.scorers import ClipScorer
from sdsclip_hf.rankers.caption_ranker import FunctionRanker
from sdsclip_hf.scoring.arguments import ScoringArguments
from sdsclip_hf.scoring.caption_errors import CaptionErrors, visiting_order
from sdsclip_hf.students.dual_encoder import load_dual_encoder
from sdsclip_hf.teacher_report.answers import ask_ranker, ask_student, pairs_of
from sdsclip_hf.teacher_report.page import page
from sdsclip_hf.teacher_report.questions import benchmark_questions, dataset_questions
from sdsclip_hf.teacher_report.report import report_on
from sdsclip_hf.teacher_report.text import _of_kinds
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher

COLOURS = ("red", "blue")


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """Forty pictures of other pixels, captioned with words that can be swapped."""
    rng, rows = np.random.default_rng(0), []
    for number in range(40):
        first, second = COLOURS[:: 1 if number % 2 else -1]
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        rows.append({"image": pixels, "caption": f"a {first} cat on a {second} mat {'abcdefgh'[number % 8]}"})
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    path = tmp_path_factory.mktemp("captioned") / "pairs.parquet"
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    return str(path)


@pytest.fixture(scope="module")
def questions(captioned):
    dataset = datasets.Dataset.from_parquet(captioned)
    return dataset_questions(dataset, ScoringArguments(candidates=["swap:2", "batch:1"], max_samples=12))


@pytest.fixture(scope="module")
def teacher(teacher_folder):
    return DiffusionTeacher.from_pretrained(teacher_folder, load_vae=True)


def test_questions_of_a_dataset_are_its_rows_with_the_right_caption_first(questions, captioned):
    rows = datasets.Dataset.from_parquet(captioned)
    told = {np.asarray(row["image"]).tobytes(): row["caption"] for row in rows}
    assert len(questions) == 12 == len({one.group for one in questions})
    drawn = [np.asarray(one.item.images[0].read()).tobytes() for one in questions]
    assert drawn != list(told)[:12] and len(set(drawn)) == 12
    for pixels, one in zip(drawn, questions, strict=True):
        assert one.item.captions[0] == told[pixels] and told[pixels] not in one.item.captions[1:]
        assert len(one.item.captions) == 4 == 1 + len(one.kinds)
    assert {"attribute", "relation"} <= set(pairs_of(questions).kinds)


def test_questions_of_pairs_are_two_and_choices_of_pictures_are_left_out():
    benchmark = load_benchmark("shapes:validation")
    questions, left_out = benchmark_questions(benchmark, most=10)
    assert len(questions) == 20 and left_out == 0
    for first, second in zip(questions[::2], questions[1::2], strict=True):
        item = benchmark.items[first.group]
        assert first.group == second.group
        assert (first.item.images[0], second.item.images[0]) == item.images
        assert first.item.captions == item.captions == second.item.captions[::-1]
    image = benchmark.items[0].images[0]
    items = [Item("0", (image,), ("a cat", "a dog", "two cats"), "t"), Item("1", (image, image), ("a cat",))]
    (only,), left_out = benchmark_questions(Benchmark("mine", "choices", items, {}))
    assert only.kinds == ("object", "count") and left_out == 1
    with pytest.raises(ValueError, match=r"none of the 0 pictures has a wrong caption .* there are no pairs"):
        benchmark_questions(Benchmark("mine", "choices", items[1:], {}))
    with pytest.raises(ValueError, match="shapes_classes does not tell one right caption of a picture"):
        benchmark_questions(load_benchmark("shapes_classes"))


def test_a_teacher_s_gaps_are_its_scores(questions, teacher, clip_folder):
    answer = ask_ranker(CaptionErrors(teacher, num_draws=5, seed=3), questions)
    images = [one.item.images[0].read() for one in questions]
    captions = [one.item.captions for one in questions]
    errors = teacher.diffusion_score(images, captions, num_draws=5, seed=3).numpy()
    np.testing.assert_allclose(answer.gaps.mean(1), (errors[:, 1:] - errors[:, :1]).ravel(), atol=1e-6)
    (last,) = teacher.diffusion_score(images[:1], captions[:1], num_draws=1, seed=3, timestep_range=(0, 0)).numpy()
    np.testing.assert_allclose(answer.gaps[:3, visiting_order(5).index(0)], last[1:] - last[0], atol=1e-6)
    assert answer.calls == 12 * 4 * 5 and answer.speed > 0
    encoder = load_dual_encoder(clip_folder)
    student = ClipScorer(encoder.model, encoder.processor)
    found = ask_student(student, questions)
    texts, pictures = student.embed_captions(captions[0]), student.embed_images(images[:1])
    cosines = (texts @ pictures.T)[:, 0].numpy()
    np.testing.assert_allclose(found[:3], cosines[0] - cosines[1:], atol=1e-6)


def test_a_ranker_has_one_draw(questions):
    def likes_red_first(image, captions):
        return [float(text.startswith("a red cat on")) for text in captions]

    told = report_on(FunctionRanker(likes_red_first), questions)
    right = [
        likes_red_first(None, one.item.captions[:1]) > likes_red_first(None, [text])
        for one in questions for text in one.item.captions[1:]
    ]  # fmt: skip
    assert told["accuracy"][0]["teacher"]["value"] == pytest.approx(np.mean(right))
    assert told["accuracy"][0]["ties"] > 0 and told["calibration"]["by"] == "softmax"
    assert not {"draws", "timesteps", "weights"} & told.keys() and list(told["verdict"]) == ["kinds"]
    with pytest.raises(ValueError, match="all captions of each of the 12 pictures score alike"):
        report_on(FunctionRanker(lambda image, captions: [0.0] * len(captions)), questions)


@pytest.fixture(scope="module")
def run(captioned, teacher_folder, tmp_path_factory):
    """The command on tiny models; gives its folder."""
    folder = tmp_path_factory.mktemp("reports")

    def report(name, *words, asked=("--teacher_name_or_path", teacher_folder, "--num_draws", "4")):
        main([*asked, "--dataset_name", captioned, *map(str, words), "--output_dir", str(folder / name)])
        return folder / name

    return report


def test_the_command_tells_in_100_columns_in_json_and_on_a_page(run, clip_folder, capsys, tmp_path):
    folder = run("whole", "--model", clip_folder, "--max_samples", 24)
    out = capsys.readouterr().out
    report = json.loads((folder / "teacher_report.json").read_text())
    assert max(map(len, out.splitlines()[:-1])) <= 100
    for words in ("24 pictures", "attribute", "Draws: ", "Timesteps: ", "Confidence: ", "40 pictures with", "Next: "):
        assert words in re.sub(r"\s+", " ", out), words
    assert report["cost"]["calls"] == 40 * (1 + 3 + 1) * report["cost"]["draws"]
    assert report["calls"] == (report["questions"] + report["pairs"]) * 4
    html = (folder / "teacher_report.html").read_text()
    assert html == page(report)
    assert "http" not in re.sub(r"data:image/png;base64,[\w+/=]+", "", html.replace("http-equiv", ""))
    with pytest.raises(SystemExit, match=r"error: there is .*teacher_report.json already. Pass --overwrite"):
        run("whole")


def test_a_ranker_s_report_has_nothing_of_draws(run, clip_folder, capsys):
    """The student itself as the ranker, by its logits: level with its own cosines on every kind."""
    words = ["--ranker_revision", "main", "--candidates", "swap:2", "--max_samples", 24, "--model", clip_folder]
    folder = run("ranker", *words, asked=["--ranker", f"dual_encoder={clip_folder}"])
    out = re.sub(r"\s+", " ", capsys.readouterr().out)
    text, html = ((folder / f"teacher_report.{kind}").read_text() for kind in ("json", "html"))
    assert not re.search(
        "draw|timestep|weight", (out + text + re.sub('base64,[^"]+|<style.*</style>', "", html, flags=re.S)).lower()
    )
    assert html.count("<img") == 2
    report = json.loads(text)
    assert report["teacher"]["kind"] == "dual_encoder" and report["teacher"]["revision"] == "main"
    for row in report["accuracy"]:
        (student,) = row["students"].values()
        assert 0 < row["teacher"]["value"] == student["value"] < 1 and student["difference_interval"] == [0, 0]
    assert report["cost"].keys() == {"pictures", "captions", "calls", "hours"} and report["cost"]["calls"] == 40 * 3
    assert "Confidence: " in out and "Cost: " in out
    scoring = parse_scoring(shlex.split(report["next"])[2:])
    assert scoring.ranker == f"dual_encoder={clip_folder}" and scoring.ranker_revision == "main"
    assert scoring.candidates == ["swap:2"] and scoring.max_samples is None and scoring.stop_confidence == 0.99


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--candidates", "swap:3", "--caption_column", "image"], "column"),
        (["--num_draws", 1], "num_draws is 1; it must be at least 2"),
        (["--ranker", "shapes/student"], "both --ranker shapes/student and --teacher_name_or_path .* leave the other out"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused(run, words, said):
    with pytest.raises(SystemExit, match=said):
        run("refused", *words)
    with pytest.raises(SystemExit, match="neither --teacher_name_or_path nor --ranker is given"):
        run("refused", asked=())


def test_the_page_is_whole_in_a_browser_and_names_stay_text(questions, teacher, tmp_path):
    told = report_on(CaptionErrors(teacher, num_draws=4), questions)
    told |= {"teacher": {"name": "<b>mine</b>"}, "source": {"name": "data"}, "students": [], "command": "sdsclip"}
    told |= {"versions": {"sdsclip_hf": "1"}, "cost": None, "next": None}
    (tmp_path / "page.html").write_text(page(told))
    with chromium(tmp_path / "chromium", needs=()) as browser:
        browser.get((tmp_path / "page.html").as_uri())
        run = partial(browser.execute_script)
        assert run("return [...document.images].map(one => one.naturalWidth > 300)") == [True] * 4
        assert run("return document.documentElement.scrollWidth <= innerWidth")
        assert browser.find_element("tag name", "h1").text.startswith("<b>mine</b> on 12 pictures")
        assert len(browser.find_elements("css selector", "#accuracy tbody tr")) == len(told["accuracy"])
        assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]


@pytest.mark.parametrize(("knows", "told"), [(0.45, True), (0.55, False)])
def test_of_what_the_student_knows_nothing_about_labels_tell_whether_it_can_learn_it(knows, told):
    student = {"value": 0.6, "interval": [knows, 0.75], "difference": 0.3, "difference_interval": [0.2, 0.4]}
    kind = {"by": "kind", "name": "relation", "verdict": "better", "student": "mine", "difference": 0.3}
    report = {"accuracy": [{"students": {"mine": student}}], "verdict": {"kinds": [kind]}, "students": ["mine"]}
    better, *further = _of_kinds(report)
    assert better.startswith("Relation: better than mine") and bool(further) == told
    assert not told or "--ranking_targets labels" in further[0]
