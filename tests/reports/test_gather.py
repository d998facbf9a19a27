"""From an evaluation's folder to a page's values: kinds, margins, words, pictures, samples, and what cannot be read."""

import base64
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from evaluations import read, run, write_evaluation
from PIL import Image

from sdsclip_hf.benchmarks import Benchmark, Item, load_benchmark
from sdsclip_hf.commands import report
from sdsclip_hf.reports.gather import Pictures, fair_shares, gather
from sdsclip_hf.reports.page import page
from sdsclip_hf.reports.verdicts import form_of, judge
from sdsclip_hf.reports.words import gain_and_lose

NASTY = '</script><script>alert("x")</script><!--<b>&amp;\u2028'


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def picture(color: str) -> Image.Image:
    return Image.new("RGB", (40, 30), color)


def choices(name: str, captions: list[tuple[str, ...]], tags: list[str] | None = None, **source) -> Benchmark:
    items = [
        Item(f"i{n}", (picture("red" if n % 2 else "blue"),), texts, tags[n] if tags else "")
        for n, texts in enumerate(captions)
    ]
    return Benchmark(name, "sugarcrepe", items, {"items": len(items)} | source)


def scored(*margins: float) -> list[np.ndarray]:
    """Answers of a true and a false caption by how much the true one is ahead; eighths are exact in float32."""
    return [np.array([[0.5 + margin], [0.5]], dtype=np.float32) for margin in margins]


CAPTIONS = [
    ("a cat on a mat", "a mat on a cat"),
    ("a dog", "a god"),
    ("a cat", "a tac"),
    ("a bird", "a drib"),
    ("x", "y"),
]


@pytest.fixture
def five(tmp_path) -> tuple[Path, dict[str, Benchmark]]:
    """Five items: won, lost, both wrong, both right, and a tie of the second model."""
    benchmark = choices("sugarcrepe", CAPTIONS, ["swap", "swap", "add", "add", "add"])
    answers = {"base": scored(-0.25, 0.125, -0.125, 0.25, 0.125), "tuned": scored(0.5, -0.125, -0.25, 0.125, 0.0)}
    return write_evaluation(tmp_path / "scores", [(benchmark, answers)]), {"sugarcrepe": benchmark}


def only(content: dict) -> dict:
    (benchmark,) = content["benchmarks"]
    return benchmark


def test_margins_and_ties_are_those_of_plain_loops():
    rng = np.random.default_rng(0)
    pairs = [rng.integers(0, 4, (2, 2)) / 4 for _ in range(300)]
    found = judge(pairs, form_of("winoground", pairs, True))
    for answer, right, tied, margin in zip(pairs, *found, strict=True):
        against = [answer[0, 0] - answer[1, 0], answer[1, 1] - answer[0, 1]]
        against += [answer[0, 0] - answer[0, 1], answer[1, 1] - answer[1, 0]]
        assert right == all(one > 0 for one in against) == (margin > 0)
        assert tied == any(one == 0 for one in against) and margin == min(against)
    several = [rng.integers(0, 5, (int(rng.integers(2, 6)), 1)) / 4 for _ in range(300)]
    found = judge(several, form_of("aro_order", several, True))
    for answer, right, tied, margin in zip(several, *found, strict=True):
        ahead = answer[0, 0] - max(answer[1:, 0])
        assert (right, tied, margin) == (ahead > 0, ahead == 0, ahead)
    of_pictures = [answer.T for answer in several]
    for one, other in zip(judge(of_pictures, form_of("choices", of_pictures, True)), found, strict=True):
        assert np.array_equal(one, other)
    triplets = [rng.integers(0, 5, (3, int(rng.choice([1, 4])))) / 4 for _ in range(300)]
    found = judge(triplets, form_of("sugarcrepe_pp", triplets, True))
    for answer, right, tied, margin in zip(triplets, *found, strict=True):
        ahead = [answer[0, 0] - answer[2, 0], answer[1, 0] - answer[2, 0]]
        assert (right, tied, margin) == (min(ahead) > 0, 0 in ahead, min(ahead))


def test_the_first_place_is_right_and_ties_count_against_it():
    retrieval = [np.array([[0, 0], [9, 9]]), np.array([[2, 0], [0, 0]]), np.array([[3, 1], [0, 0]])]
    assert (
        form_of("retrieval", retrieval, True) == "retrieval" and form_of("classification", retrieval, False) == "class"
    )
    right, tied, margin = judge(retrieval, "retrieval")
    assert right.tolist() == [True, False, False] and tied.tolist() == [False, True, False]
    assert margin.tolist() == [0, -2, -3]


def test_each_item_is_of_its_kind_with_its_scores(five):
    folder, benchmarks = five
    content, pictures = gather(folder, benchmarks=benchmarks)
    one = only(content)
    assert [model["run"] for model in content["models"]] == ["base", "tuned"]
    assert [item["kind"] for item in one["items"]] == ["won", "lost", "both wrong", "both right", "lost"]
    assert one["kinds"] == {"won": 1, "lost": 2, "both wrong": 1, "both right": 1} and one["ties"] == 1
    first, *_, last = one["items"]
    assert first["margins"] == [-0.25, 0.5] and first["answers"] == [[0.25, 0.5], [1.0, 0.5]]
    assert first["captions"] == list(CAPTIONS[0]) and [one["tags"][tag] for tag in first["tags"]] == ["swap"]
    assert last["tied"] == [False, True]
    row = next(row for row in one["scores"] if row["score"] == "micro accuracy")
    assert [run["value"] for run in row["runs"]] == [0.6, 0.4] and [run["ties"] for run in row["runs"]] == [0, 1]
    assert row["difference"]["value"] == pytest.approx(-0.2) and row["difference"]["only_first"] == 2
    assert len(pictures) == 5 and [item["pictures"] for item in one["items"]] != [[None]] * 5
    shown = Image.open(io.BytesIO(base64.b64decode(pictures[first["pictures"][0]].partition(",")[2])))
    assert shown.size == (40, 30) and shown.convert("RGB").getpixel((20, 15)) == (0, 0, 255)


def test_of_one_model_items_are_right_or_wrong_and_of_more_one_is_chosen(tmp_path):
    benchmark = choices("sugarcrepe", CAPTIONS)
    runs = {"base": scored(1, 1, -1, -1, 1), "other": scored(1, 1, 1, 1, 1), "third": scored(-1, -1, -1, -1, -1)}
    alone = write_evaluation(tmp_path / "alone", [(benchmark, {"base": runs["base"]})])
    one = only(gather(alone, benchmarks={"sugarcrepe": benchmark})[0])
    assert one["kinds"] == {"right": 3, "wrong": 2} and one["scores"][0]["difference"] is None
    folder = write_evaluation(tmp_path / "three", [(benchmark, runs)])
    content = gather(folder, benchmarks={"sugarcrepe": benchmark})[0]
    assert only(content)["kinds"] == {"lost": 3, "both wrong": 2} and content["others"] == ["other"]
    assert only(gather(folder, "other", Pictures(none=True))[0])["kinds"] == {"both right": 3, "won": 2}


def test_words_are_ordered_by_what_they_gain():
    texts = [["a Cat on"]] * 20 + [["a dog on"]] * 20 + [["a rare on"]] * 5 + [["a thing"]] * 4
    first, second = np.zeros(49, bool), np.zeros(49, bool)
    second[:20] = True
    first[20:30] = True
    second[40:45] = True
    found = gain_and_lose(texts, first, second)
    gain, lose = ([row["word"] for row in found[end]] for end in ("gain", "lose"))
    assert gain == ["cat", "rare"] and lose == ["dog", "on"]  # "a" is in all, "thing" in too few
    cat, dog = found["gain"][0], found["lose"][0]
    assert (cat["n"], cat["won"], cat["lost"], cat["value"]) == (20, 20, 0, 1.0)
    assert (dog["won"], dog["lost"], dog["value"]) == (0, 10, -0.5) and dog["interval"][0] < -0.5 < dog["interval"][1]


def test_pictures_that_a_licence_keeps_stay_out_unless_asked_for(tmp_path):
    items = [Item("0", (picture("red"), picture("blue")), ("a b", "b a"), "Object")]
    benchmark = Benchmark("winoground", "winoground", items, {})
    answers = {"base": [np.eye(2, dtype=np.float32)]}
    folder = write_evaluation(tmp_path / "scores", [(benchmark, answers)])
    benchmarks = {"winoground": benchmark}
    content, pictures = gather(folder, benchmarks=benchmarks)
    assert not pictures and "licence forbids" in only(content)["notes"][0]
    assert len(gather(folder, pictures=Pictures(all=True), benchmarks=benchmarks)[1]) == 2
    content, pictures = gather(folder, pictures=Pictures(none=True), benchmarks=benchmarks)
    assert not pictures and "as asked for" in only(content)["notes"][0]


def test_a_sample_says_so_and_small_benchmarks_stay_whole(tmp_path):
    assert fair_shares([10, 1000, 300], 400) == [10, 195, 195] and fair_shares([3, 4], 100) == [3, 4]
    small = choices("sugarcrepe:swap_obj", CAPTIONS)
    large = choices("sugarcrepe:swap_att", CAPTIONS * 20)
    answered = [(one, {"base": scored(*[0.5] * len(one.items))}) for one in (small, large)]
    folder = write_evaluation(tmp_path / "scores", answered)
    content, _ = gather(folder, pictures=Pictures(none=True), most_items=25)
    first, second = content["benchmarks"]
    assert len(first["items"]) == 5 and "random sample" not in " ".join(first["notes"])
    assert len(second["items"]) == 20 and "20 of 100 items are in this page, a random sample" in second["notes"][0]
    assert second["total"] == 100 and second["kinds"] == {"right": 100}


def test_pictures_beyond_the_room_are_left_out_and_counted(five, monkeypatch):
    folder, benchmarks = five
    monkeypatch.setattr("sdsclip_hf.reports.gather.MOST_PICTURES", 1)
    content, pictures = gather(folder, benchmarks=benchmarks)
    assert len(pictures) == 1 and "4 of 5 items stand without their pictures" in only(content)["notes"][0]
    shown = next(item for item in only(content)["items"] if item["pictures"] != [None])
    assert shown["kind"] == "lost"


def test_sources_are_read_again_as_they_were_and_told_where_they_cannot_be(clip_folder, sugarcrepe, tmp_path):
    (sugarcrepe / "val2017").rename(tmp_path / "elsewhere")
    spec = f"sugarcrepe={sugarcrepe}"
    run("--model", clip_folder, "--benchmark", spec, "--image_dir", tmp_path / "elsewhere")
    content, pictures = gather(Path("out"))
    items = only(content)["items"]
    assert len(items) == 21 and not only(content)["notes"] and all(None not in item["pictures"] for item in items)
    assert 0 < len(pictures) <= 21
    file = sugarcrepe / "swap_obj.json"
    changed = json.loads(file.read_text())
    changed["0"]["caption"] = "another caption"
    file.write_text(json.dumps(changed))
    (tmp_path / "elsewhere/swap_att2.jpg").write_bytes(b"no picture")
    content, _ = gather(Path("out"))
    without = [item["id"] for item in only(content)["items"] if None in item["pictures"]]
    assert without == ["swap_obj/0", "swap_att/6"] and "2 of 21 items" in only(content)["notes"][0]
    assert "swap_att2.jpg could not be read" in only(content)["notes"][1]
    shutil.rmtree(tmp_path / "elsewhere")
    content, pictures = gather(Path("out"))
    assert not pictures and "captions stand alone" in only(content)["notes"][0]


def test_older_results_that_do_not_tell_how_they_were_read_are_shown(clip_folder):
    run("--model", clip_folder, "--benchmark", "shapes_classes:validation=shape")
    results = read()
    assert results.pop("reading")["templates"] == ["a photo of a {}."]
    Path("out/results.json").write_text(json.dumps(results))
    content, pictures = gather(Path("out"))
    assert only(content)["form"] == "class" and len(pictures) == 192
    assert len(only(content)["items"]) == len(load_benchmark("shapes_classes:validation=shape").items)


class Tags(HTMLParser):
    """The tags of a page, and the content of its scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.scripts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        if self.tags[-1:] == ["script"] and data.strip():
            self.scripts.append(data)


def test_no_text_of_an_evaluation_becomes_markup(tmp_path):
    benchmark = choices(f"sugarcrepe:{NASTY}", [(NASTY, "{{ script }}")] * 6, [NASTY] * 6)
    plain = choices("sugarcrepe:swap_obj", [("a", "b")] * 6)
    folders = [
        write_evaluation(tmp_path / str(n), [(one, {run: scored(*[0.5] * 6), "b": scored(*[0.5] * 6)})])
        for n, (one, run) in enumerate([(benchmark, NASTY), (plain, "a")])
    ]
    texts = [page(*gather(folder, pictures=Pictures(none=True))) for folder in folders]
    nasty, usual = map(Tags, texts)
    assert nasty.tags == usual.tags and texts[0].isascii() == texts[1].isascii()
    content = json.loads(nasty.scripts[0])
    assert only(content)["items"][0]["captions"] == [NASTY, "{{ script }}"] and content["models"][0]["run"] == NASTY


def error_of(*words) -> str:
    with pytest.raises(SystemExit) as stop:
        report.main(list(map(str, words)))
    return str(stop.value.code)


def test_the_command_writes_one_file_and_keeps_what_is_there(five, capsys):
    folder, _ = five
    report.main([str(folder), "--no_images"])
    written = folder / "report.html"
    assert f"{written} (0.0 MB) opens in any browser." in capsys.readouterr().out
    written.write_text("mine")
    assert error_of(folder) == f"error: there is {written} already. Pass --overwrite, or give another --output."
    assert written.read_text() == "mine"
    report.main([str(folder), "--no_images", "--overwrite"])
    assert written.read_text().startswith("<!doctype html>")
    report.main([str(folder), "--no_images", "--output", str(folder / "new/page.html")])
    assert (folder / "new/page.html").read_bytes() == written.read_bytes()


def test_the_page_goes_beside_the_card_of_the_model_that_was_evaluated(five):
    folder, _ = five
    model = Path("models/tuned")
    model.mkdir(parents=True)
    other = Path("other")
    other.mkdir()
    assert "--card models/tuned has no README.md" in error_of(folder, "--card", model)
    for place in (model, other):
        (place / "README.md").write_text("# A model\n\n## Scores\n\nNone.\n")
    assert "--card other is not models/tuned, which was evaluated" in error_of(folder, "--card", other)
    assert "leave --output and --all_images out" in error_of(folder, "--card", model, "--all_images")
    assert not list(Path().glob("**/report.html"))
    report.main([str(folder), "--card", str(model)])
    assert (model / "report.html").is_file() and "](report.html)" in (model / "README.md").read_text()
    assert f"there is {model / 'report.html'} already" in error_of(folder, "--card", model)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize(
    ("damage", "words", "message"),
    [
        (shutil.rmtree, (), "there is no folder"),
        (lambda folder: (folder / "results.json").unlink(), (), "has no results.json. Give the --output_dir of a finished"),
        (lambda folder: ((folder / "parts").mkdir(), (folder / "results.json").unlink()), (), "was interrupted"),
        (lambda folder: cut(folder / "results.json"), (), "results.json is not what was written"),
        (lambda folder: (folder / "results.json").write_text('{"before": {}}'), (), "results.json is not of an evaluation"),
        (lambda folder: (folder / "scores.parquet").unlink(), (), "has no scores.parquet"),
        (lambda folder: cut(folder / "scores.parquet"), (), "scores.parquet is not what was written"),
        (lambda folder: None, ("--model", "else"), "--model else is no run that base can be compared with"),
        (lambda folder: None, ("--max_items", "0"), "--max_items is 0; it must be at least 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_named(five, damage, words, message):
    folder, _ = five
    damage(folder)
    assert message in error_of(folder, *words)
    assert not (folder / "report.html").exists()


def test_runs_of_other_items_are_refused(five):
    folder, _ = five
    results = json.loads((folder / "results.json").read_text())
    results["models"]["third"] = results["models"]["base"]
    (folder / "results.json").write_text(json.dumps(results))
    assert "does not hold the same items of sugarcrepe for each model" in error_of(folder)
