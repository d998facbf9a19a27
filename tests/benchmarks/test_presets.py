"""Published benchmarks: small copies as the sources have them, read by their presets and scored by the authors' rules."""

import json
import runpy
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from benchmark_copies import digest
from benchmarks_on_hub import found_by_clients
from hub_server import ACCEPTED, HubServer
from preset_copies import COPIES, PresetCopy, put_pictures, whatsup_rows

from sdsclip_hf.benchmarks import BENCHMARKS, HUB_IDS, Benchmark, Item, Options, load_benchmark, places, read_picture
from sdsclip_hf.benchmarks.presets import PRESETS
from sdsclip_hf.evaluation.outcomes import outcomes
from sdsclip_hf.evaluation.results import score_rows

pytestmark = pytest.mark.usefixtures("own_cache")
ROOT = Path(__file__).parents[2]
ON_HUB = [name for name, make in COPIES.items() if make().hub_id]


def found_items(benchmark) -> list[tuple]:
    return [
        (item.captions, item.tag, tuple(digest(np.asarray(read_picture(image))) for image in item.images))
        for item in benchmark.items
    ]


def write(name: str, folder) -> PresetCopy:
    copy = COPIES[name]()
    copy.write(folder)
    return copy


def pictures(copy: PresetCopy, folder: Path) -> Options:
    """Where the pictures are of a copy that has none."""
    if copy.bare:
        put_pictures(folder / "val2017")
    return Options(image_dir=str(folder / "val2017") if copy.bare else None)


def test_the_table_of_the_documents_is_that_of_the_presets():
    table = runpy.run_path(str(ROOT / "tools/presets_table.py"))["presets_table"]()
    assert f"\n{table}\n" in (ROOT / "docs/evaluating.md").read_text()
    assert all(f"`{name}`" in table for name in PRESETS)


def preset_of(name: str) -> str:
    return name.partition(",")[0]


def test_each_preset_has_a_copy_here():
    assert set(map(preset_of, COPIES)) == set(PRESETS) <= set(BENCHMARKS)


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_on_disk(name, tmp_path):
    copy = write(name, tmp_path / "copy")
    source = tmp_path / "copy" / ("data" if name == "vismin" else "")
    benchmark = load_benchmark(f"{preset_of(name)}={source}", pictures(copy, tmp_path))
    assert found_items(benchmark) == copy.items
    assert benchmark.kind == copy.kind and len({item.identifier for item in benchmark.items}) == len(copy.items)
    assert benchmark.source["published_items"] == copy.published == PRESETS[preset_of(name)].items
    assert (benchmark.source["items"], benchmark.source["missing_images"]) == (len(copy.items), 0)
    assert places(f"{preset_of(name)}={source}") == [str(source)]


@pytest.fixture(scope="module")
def online(tmp_path_factory):
    """(repository -> commit, preset -> what the clients found of it)."""
    root = tmp_path_factory.mktemp("presets") / "hub"
    for name in ON_HUB:
        write(name, root / "datasets" / COPIES[name]().hub_id)
    asked = [[name, ACCEPTED, pictures(COPIES[name](), root.parent).image_dir] for name in ON_HUB]
    with HubServer(root) as server:
        commits = {name: server.repository("datasets", HUB_IDS[name]).sha for name in ON_HUB}
        found = found_by_clients(server, asked)
    return commits, {name: found[tuple(one)] for name, one in zip(ON_HUB, asked, strict=True)}


@pytest.mark.parametrize("name", ON_HUB)
def test_a_copy_on_the_hub(name, online):
    commits, found = online
    copy, (source, items) = COPIES[name](), found[name]
    assert HUB_IDS[name] == copy.hub_id == places(name)[0]
    assert [(tuple(captions), tag, tuple(shown)) for _, captions, tag, _, shown in items] == copy.items
    assert (source["name"], source["revision"]) == (copy.hub_id, commits[name])


@pytest.mark.parametrize(
    ("name", "part", "published"),
    [
        ("valse, the authors' files", "foil_it", 943),
        ("whatsup", "B", 408),
        ("whatsup, the authors' files", "A", 412),
        ("spec", "count/text2image", 0),
        ("negbench_mcq", "voc", 0),
    ],
)
def test_a_part_of_a_preset(name, part, published, tmp_path):
    copy, preset = write(name, tmp_path), preset_of(name)
    benchmark = load_benchmark(f"{preset}:{part}={tmp_path}")
    whole = load_benchmark(f"{preset}={tmp_path}").items
    assert [item.identifier for item in benchmark.items] == [
        item.identifier for item in whole if item.identifier.startswith(f"{part}/")
    ]
    assert benchmark.source["published_items"] == published and 0 < len(benchmark.items) < len(copy.items)
    with pytest.raises(ValueError, match=rf"{preset}:no: unknown subset 'no'; choose from .*{part}"):
        load_benchmark(f"{preset}:no")


def test_presets_that_are_nowhere_by_default_ask_for_a_source():
    for name in set(PRESETS) - set(HUB_IDS):
        with pytest.raises(
            ValueError, match=f"{name} needs to know of what: give a dataset, as in {name}=FOLDER. .* files: http"
        ):
            load_benchmark(name)


def test_pictures_of_a_preset_in_a_tar_and_by_address(tmp_path):
    copy = write("eqben", tmp_path / "eqben")
    with tarfile.open(tmp_path / "subset_image.tar", "w") as archive:
        archive.add(tmp_path / "eqben/images", "image_subset")
    shutil.rmtree(tmp_path / "eqben/images")
    table = tmp_path / "eqben/eqben_subset_10percent_final.json"
    options = Options(image_dir=str(tmp_path / "subset_image.tar"))
    assert found_items(load_benchmark(f"eqben={table}", options)) == copy.items
    copy = write("cola", tmp_path / "cola")
    shutil.move(tmp_path / "cola/images", tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"images of 3 of 3 items are missing .*pass --fetch_images"):
        load_benchmark(f"cola={tmp_path / 'cola'}")
    options = Options(image_dir=str(tmp_path / "elsewhere"))
    assert found_items(load_benchmark(f"cola={tmp_path / 'cola'}", options)) == copy.items


def test_a_copy_of_other_columns_is_named(tmp_path):
    copy = COPIES["naturalbench_retrieval"]()
    copy.write(tmp_path / "copy")
    (tmp_path / "metadata.json").write_text(json.dumps([{"image_0": "a", "image_1": "b", "text_0": "c"}]))
    with pytest.raises(
        ValueError, match=r"has no column 'caption_0' or 'caption_1'; it has image_0, image_1, text_0\. Name"
    ):
        load_benchmark(f"naturalbench_retrieval={tmp_path / 'metadata.json'}")


def test_a_published_set_is_scored_as_it_is(tmp_path, caplog):
    write("eqben", tmp_path / "copy")
    table = tmp_path / "copy/eqben_subset_10percent_final.json"
    rows = json.loads(table.read_text())
    rows[1]["caption1"] = rows[1]["caption0"]
    table.write_text(json.dumps(rows))
    assert len(load_benchmark(f"eqben={table}").items) == 3
    assert "1 items of" in caplog.text and "have a candidate twice, a tie that is wrong" in caplog.text


# The authors' rules, as plain loops over random scores with ties


def random_scores(items, seed: int = 7) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 5, (len(item.captions), len(item.images))) / 4 for item in items]


def scored(name: str, folder, repeats: int = 60):
    """(items, answers, scores by subset and name) of a copy whose items are repeated."""
    copy = write(name, folder)
    source = folder / "data" if name == "vismin" else folder
    benchmark = load_benchmark(f"{preset_of(name)}={source}", pictures(copy, folder))
    benchmark.items = benchmark.items * repeats
    answers = random_scores(benchmark.items)
    rows = score_rows(outcomes(benchmark, answers))
    return benchmark.items, answers, {(row["subset"], row["score"]): row["value"] for row in rows}


OF_PAIRS = [name for name, make in COPIES.items() if make().kind.startswith("pairs")]


@pytest.mark.parametrize("name", OF_PAIRS)
def test_pairs_by_the_authors_rules(name, tmp_path):
    """BiVLC: I2T and T2I of two comparisons each, and both; MMVP-VLM and COLA: each caption picks its image."""
    items, answers, found = scored(name, tmp_path)
    picked, retrieved, both = [], [], []
    for answer in answers:
        c0i0, c0i1, c1i0, c1i1 = answer.flat
        picked.append(c0i0 > c0i1 and c1i1 > c1i0)
        retrieved.append(c0i0 > c1i0 and c1i1 > c0i1)
        both.append(picked[-1] and retrieved[-1])
    image = "image accuracy" if name in ("mmvp_vlm", "cola") else "image"
    assert PRESETS[name].headline == ("image accuracy" if name in ("mmvp_vlm", "cola") else "group")
    for score, right in ((image, picked), ("text", retrieved), ("group", both)):
        assert found["all", score] == pytest.approx(np.mean(right))
        tags = {item.tag for item in items}
        by_tag = {
            tag: np.mean([one for one, item in zip(right, items, strict=True) if item.tag == tag]) for tag in tags
        }
        if len(tags) > 1:
            assert {tag: found[tag, score] for tag in tags} == pytest.approx(by_tag)
            assert found["all", f"macro {score}"] == pytest.approx(np.mean(list(by_tag.values())))


OF_CHOICES = [name for name, make in COPIES.items() if make().kind in ("choices", "whatsup")]


@pytest.mark.parametrize("name", OF_CHOICES)
def test_choices_by_the_authors_rules(name, tmp_path):
    """The true one scores above all others; a tie, which an argmax may count right, is wrong."""
    items, answers, found = scored(name, tmp_path)
    right = [all(answer.flat[0] > other for other in answer.flat[1:]) for answer in answers]
    ways = {"image to text": [], "text to image": []}
    for place, item in enumerate(items):
        ways["image to text" if len(item.images) == 1 else "text to image"].append(place)
    for way, places_ in ways.items():
        if not places_:
            continue
        subset = "all" if not all(ways.values()) else way
        by_tag = {}
        for place in places_:
            by_tag.setdefault(items[place].tag, []).append(right[place])
        assert found[subset, "micro accuracy"] == pytest.approx(np.mean([right[place] for place in places_]))
        assert found[subset, "macro accuracy"] == pytest.approx(np.mean([np.mean(one) for one in by_tag.values()]))
        for tag, one in by_tag.items():
            assert found[tag if subset == "all" else f"{tag}, {way}", "accuracy"] == pytest.approx(np.mean(one))
    by_label = {}
    for item, one in zip(items, right, strict=True):
        for label, value in item.labels:
            by_label.setdefault(f"{label} {value}", []).append(one)
    assert {label: found[label, "accuracy"] for label in by_label} == pytest.approx(
        {label: np.mean(one) for label, one in by_label.items()}
    )
    assert bool(by_label) == (preset_of(name) in ("valse", "negbench_mcq"))


def test_whatsup_s_pairs_and_sets_as_the_authors_count_them(tmp_path):
    """Their loop goes by the names of the files: the two things, and the preposition between them."""
    files = {part: [row["file"] for row in rows] for part, rows in whatsup_rows().items()}
    write("whatsup", tmp_path)
    items = load_benchmark(f"whatsup={tmp_path}").items
    for seed in range(20):
        rng = np.random.default_rng(seed)
        correct = rng.random(12) < 0.8
        answers = [np.array([[1.0 if one else 0.0], [0.5], [0.2], [0.1]]) for one in correct]
        found = {
            (row["subset"], row["score"]): row["value"]
            for row in score_rows(outcomes(Benchmark("whatsup", "whatsup", items, {}), answers))
        }
        of_part = {"A": correct[:8], "B": correct[8:]}
        for part, names in files.items():
            verdicts = {}
            for name, one in zip(names, of_part[part], strict=True):
                words = name.removesuffix(".jpeg").split("_")
                verdicts.setdefault((words[0], words[-1]), {})[words[1]] = bool(one)
            third, fourth = ("on", "under") if part == "A" else ("in-front", "behind")
            pairs = sum((v["left"] and v["right"]) + (v[third] and v[fourth]) for v in verdicts.values())
            assert found[part, "pair accuracy"] == pytest.approx(pairs / (len(names) / 2))
            assert found[part, "set accuracy"] == sum(sum(v.values()) == 4 for v in verdicts.values()) / (
                len(names) / 4
            )
            assert found[part, "accuracy"] == np.mean(of_part[part])


def test_sugarcrepe_pp_by_read_clip_s_loop(tmp_path):
    """ITT from the scores with the image, TOT from those of the captions; each by subset and as their mean."""
    items, _, _ = scored("sugarcrepe_pp", tmp_path)
    rng = np.random.default_rng(3)
    answers = [rng.integers(0, 5, (3, 4)) / 4 for _ in items]
    benchmark = Benchmark("sugarcrepe_pp", "sugarcrepe_pp", items, {})
    found = {(row["subset"], row["score"]): row for row in score_rows(outcomes(benchmark, answers))}
    right = {"ITT": {}, "TOT": {}}
    ties = {"ITT": 0, "TOT": 0}
    for item, answer in zip(items, answers, strict=True):
        i0_c0, i0_c1, i0_c2 = answer[:, 0]
        c0_c1, c0_c2, c1_c2 = answer[0, 2], answer[0, 3], answer[1, 3]
        right["ITT"].setdefault(item.tag, []).append(i0_c0 > i0_c2 and i0_c1 > i0_c2)
        right["TOT"].setdefault(item.tag, []).append(c0_c1 > c0_c2 and c0_c1 > c1_c2)
        ties["ITT"] += i0_c2 in (i0_c0, i0_c1)
        ties["TOT"] += c0_c1 in (c0_c2, c1_c2)
    for score, by_tag in right.items():
        assert len(by_tag) == 5 and found["all", f"macro {score}"]["ties"] == ties[score]
        means = [np.mean(one) for one in by_tag.values()]
        assert found["all", f"macro {score}"]["value"] == pytest.approx(np.mean(means))
        assert [found[tag, score]["value"] for tag in by_tag] == pytest.approx(means)
    alone = score_rows(outcomes(benchmark, [answer[:, :1] for answer in answers]))
    assert {row["score"] for row in alone} == {"macro ITT", "micro ITT", "ITT"}  # of a scorer without embeddings


BOTH, TEXT, IMAGE, NEITHER = [[2, 1], [0, 3]], [[2, 3], [1, 4]], [[2, 1], [3, 4]], [[1, 2], [2, 1]]


@pytest.mark.parametrize(
    ("name", "counts", "published"),
    [  # the published per cents of text, image and group score; counts of items that are right in both, in one, in none
        ("bivlc", (1439, 785, 98, 611), {"text": 75.83, "image": 52.40, "group": 49.06}),  # CLIP ViT-B/32
        ("bivlc", (1788, 639, 86, 420), {"text": 82.75, "image": 63.89, "group": 60.96}),  # tuned on COCO
        ("bivlc", (1686, 607, 138, 502), {"text": 78.18, "image": 62.19, "group": 57.48}),  # on TROHN-Text
        ("bivlc", (2031, 566, 76, 260), {"text": 88.54, "image": 71.84, "group": 69.25}),  # on TROHN-Img
        ("mmvp_vlm", (10, 31, 16, 78), {"image accuracy": 19.3}),  # CLIP ViT-L/14; its group score is 7.4
        ("mmvp_vlm", (10, 31, 16, 78), {"group": 7.4}),
    ],
)
def test_published_scores_of_as_many_items(name, counts, published):
    matrices = [
        np.array(one) for one, count in zip((BOTH, TEXT, IMAGE, NEITHER), counts, strict=True) for _ in range(count)
    ]
    assert len(matrices) == PRESETS[name].items
    items = [Item(str(n), (), ("", "")) for n in range(len(matrices))]
    rows = score_rows(outcomes(Benchmark(name, COPIES[name]().kind, items, {}), matrices))
    found = {row["score"]: row["value"] for row in rows}
    digits = 2 if name == "bivlc" else 1
    assert {score: round(100 * found[score], digits) for score in published} == published
