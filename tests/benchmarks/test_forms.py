"""Pairs and choices of anybody's columns: the same items from every source, and what is said of rows that are none."""

import csv
import json
import shutil
import tarfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from benchmark_copies import digest, picture, pixels
from datasets import Features, List, Value

from sdsclip_hf.benchmarks import Options, load_benchmark, picture_key, places, read_picture
from sdsclip_hf.evaluation.outcomes import outcomes
from sdsclip_hf.evaluation.results import score_rows

pytestmark = pytest.mark.usefixtures("own_cache")
FILES = {f"pics/{number}.png": picture(number) for number in range(8)}
SHOWN = [digest(pixels(content)) for content in FILES.values()]
KINDS = ["colour", "count", "colour", "colour"]
ROWS = [
    {
        "key": f"k{n}",
        "left": f"a dog {n}",
        "right": f"a cat {n}",
        "kind": KINDS[n],
        "a": f"pics/{2 * n}.png",
        "b": f"pics/{2 * n + 1}.png",
    }
    for n in range(4)
]
PAIRS = "?captions=left,right&images=a,b&tag=kind&id=key"
EXPECTED = [
    (row["key"], (row["left"], row["right"]), row["kind"], SHOWN[2 * n : 2 * n + 2]) for n, row in enumerate(ROWS)
]


def told(spec: str, options: Options | None = None) -> list:
    items = load_benchmark(spec, options).items
    return [
        (item.identifier, item.captions, item.tag, [digest(np.asarray(read_picture(one))) for one in item.images])
        for item in items
    ]


def write_pictures(folder: Path) -> None:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def as_text(rows: list[dict], kind: str) -> str:
    if kind == "json":
        return json.dumps(rows)
    if kind in ("jsonl", "python"):
        return "\n".join(map(json.dumps if kind == "jsonl" else repr, rows))
    lines = ["\t".join(rows[0]) if kind == "tsv" else ",".join(rows[0])]
    return "\n".join([*lines, *(("\t" if kind == "tsv" else ",").join(map(str, row.values())) for row in rows)])


def write_table(folder: Path, rows: list[dict], kind: str = "json") -> str:
    write_pictures(folder)
    path = folder / f"mine.{kind if kind != 'python' else 'jsonl'}"
    path.write_text(as_text(rows, kind))
    return str(path)


def write_archive(folder: Path, kind: str) -> str:
    """All in a folder of a zip or a tar, as a download is."""
    write_table(folder / "set", ROWS)
    names = sorted(path for path in (folder / "set").rglob("*") if path.is_file())
    if kind == "zip":
        with zipfile.ZipFile(folder / "set.zip", "w") as archive:
            for name in names:
                archive.write(name, name.relative_to(folder))
    else:
        with tarfile.open(folder / "set.tar", "w") as archive:
            for name in names:
                archive.add(name, name.relative_to(folder))
    return str(folder / f"set.{kind}")


def as_dataset(rows: list[dict], images: dict[str, object], **kinds) -> datasets.Dataset:
    stored = [row | {column: stored_images(row[column], kind) for column, kind in images.items()} for row in rows]
    features = {key: kinds.get(key) or images.get(key) or Value("string") for key in rows[0]}
    return datasets.Dataset.from_list(stored, features=Features(features))


def stored_images(names, kind):
    if isinstance(kind, List):
        return [{"bytes": FILES[name], "path": None} for name in names]
    return {"bytes": FILES[names], "path": None}


def write_dataset(folder: Path, form: str) -> str:
    dataset = as_dataset(ROWS, {"a": datasets.Image(), "b": datasets.Image()})
    if form == "saved":
        dataset.save_to_disk(folder / "saved")
        return str(folder / "saved")
    folder.mkdir(parents=True, exist_ok=True)
    dataset.to_parquet(folder / "some.parquet")
    return str(folder / "some.parquet")


def write_imagefolder(folder: Path) -> str:
    write_pictures(folder)
    lines = [{key: row[key] for key in ("key", "left", "right", "kind")} for row in ROWS]
    named = [line | {"a_file_name": row["a"], "b_file_name": row["b"]} for line, row in zip(lines, ROWS, strict=True)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, named)))
    return str(folder)


WRITERS = {
    **{kind: partial(write_table, rows=ROWS, kind=kind) for kind in ("json", "jsonl", "python", "csv", "tsv")},
    **{form: partial(write_dataset, form=form) for form in ("saved", "parquet")},
    "imagefolder": write_imagefolder,
}


@pytest.mark.parametrize("form", WRITERS)
def test_pairs_of_every_source(form, tmp_path):
    source = WRITERS[form](tmp_path / "copy")
    assert told(f"pairs={source}{PAIRS}") == EXPECTED
    benchmark = load_benchmark(f"pairs={source}{PAIRS}&items=5")
    assert (benchmark.kind, benchmark.source["items"], benchmark.source["published_items"]) == ("pairs", 4, 5)
    assert places(f"pairs={source}{PAIRS}") == [source]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_pairs_of_an_archive_and_pictures_in_one(kind, tmp_path):
    """The whole set in an archive; the table beside an archive of the pictures; and the archive named."""
    archive = write_archive(tmp_path / "made", kind)
    assert told(f"pairs={archive}{PAIRS}&table=mine.json") == EXPECTED
    assert told(f"pairs={tmp_path / 'made'}{PAIRS}&table=set/mine.json") == EXPECTED
    for elsewhere in ("", "alone/"):
        table = tmp_path / f"beside/{elsewhere}mine.json"
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text(json.dumps(ROWS))
    (tmp_path / f"beside/pictures.{kind}").write_bytes(Path(archive).read_bytes())
    assert told(f"pairs={tmp_path / 'beside/mine.json'}{PAIRS}") == EXPECTED
    spec = f"pairs={tmp_path / 'beside/alone/mine.json'}{PAIRS}"
    assert told(f"{spec}&image_dir={archive}") == told(spec, Options(image_dir=archive)) == EXPECTED
    assert told(f"pairs={write_dataset_of_names(tmp_path)}{PAIRS}", Options(image_dir=archive)) == EXPECTED


def write_dataset_of_names(folder: Path) -> str:
    """A dataset that names its pictures, and has none."""
    as_dataset(ROWS, {}).to_parquet(folder / "names.parquet")
    return str(folder / "names.parquet")


def test_a_yaml_file_says_the_same(tmp_path):
    source = write_table(tmp_path / "copy", ROWS)
    text = f"source: {source}\ncaptions: [left, right]\nimages: [a, b]\ntag: kind\nid: key\n"
    (tmp_path / "mine.yaml").write_text(text)
    assert told(f"pairs={tmp_path / 'mine.yaml'}") == EXPECTED
    assert places(f"pairs={tmp_path / 'mine.yaml'}") == [source]


LISTED = [
    {"pair": [row["left"], row["right"]], "more": {"pics": [row["a"], row["b"]], "kind": row["kind"]}, "id": row["key"]}
    for row in ROWS
]


def test_lists_paths_and_templates(tmp_path):
    source = write_table(tmp_path / "copy", LISTED)
    assert told(f"pairs={source}?captions=pair&images=more.pics&tag=more.kind&id=id") == EXPECTED
    turned = [(name, captions[::-1], kind, shown[::-1]) for name, captions, kind, shown in EXPECTED]
    assert told(f"pairs={source}?captions=pair.1,pair.0&images=more.pics.1,more.pics.0&tag=more.kind&id=id") == turned
    said = [(name, tuple(f"a photo of {one}." for one in captions), *rest) for name, captions, *rest in EXPECTED]
    assert told(f"pairs={source}?captions=a photo of {{pair}}.&images=more.pics&tag=more.kind&id=id") == said
    numbered = [row | {"number": n} for n, row in enumerate(ROWS)]
    source = write_table(tmp_path / "numbered", numbered)
    spec = f"choices={source}?captions=left,right&images=pics/{{number}}.png&tag={{kind}} {{key}}&tag_pattern=k.&id=key"
    assert told(spec) == [(f"k{n}", (f"a dog {n}", f"a cat {n}"), f"k{n}", [SHOWN[n]]) for n in range(4)]


def test_rows_that_are_lists_and_neighbouring_rows(tmp_path):
    as_lists = [[row["a"], row["left"], row["b"], row["right"]] for row in ROWS]
    source = write_table(tmp_path / "lists", as_lists)
    expected = [(str(n), captions, "", shown) for n, (_, captions, _, shown) in enumerate(EXPECTED)]
    assert told(f"pairs={source}?captions=1,3&images=0,2") == expected
    halves = [
        {"text": row[text], "file": row[image]} for row in ROWS for text, image in (("left", "a"), ("right", "b"))
    ]
    source = write_table(tmp_path / "halves", halves, "csv")
    found = told(f"pairs={source}?captions=text&images=file&merged=2")
    assert [one[1:] for one in found] == [one[1:] for one in expected]
    source = write_table(tmp_path / "odd", halves[1:], "csv")
    with pytest.raises(ValueError, match=r"has 7 rows, of which 2 make an item; complete the copy"):
        load_benchmark(f"pairs={source}?captions=text&images=file&merged=2")


CHOICES = [
    {"options": [f"x {n}", f"y {n}", f"z {n}"], "label": n % 3, "true": f"{'xyz'[n % 3]} {n}", "image": f"pics/{n}.png"}
    for n in range(4)
]
CHOSEN = [("x 0", "y 0", "z 0"), ("y 1", "x 1", "z 1"), ("z 2", "x 2", "y 2"), ("x 3", "y 3", "z 3")]


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet", "csv"])
@pytest.mark.parametrize("answer", ["label", "true"])
def test_the_answer_is_a_number_or_a_caption(kind, answer, tmp_path):
    if kind == "parquet":
        kinds = {"options": List(Value("string")), "label": Value("int32")}
        as_dataset(CHOICES, {"image": datasets.Image()}, **kinds).to_parquet(tmp_path / "some.parquet")
        source = tmp_path / "some.parquet"
    elif kind == "csv":
        write_pictures(tmp_path)
        source = tmp_path / "mine.csv"
        with open(source, "w", newline="") as file:
            writer = csv.DictWriter(file, CHOICES[0])
            writer.writeheader()
            writer.writerows(CHOICES)
    else:
        source = write_table(tmp_path / "copy", CHOICES, kind)
    benchmark = load_benchmark(f"choices={source}?captions=options&images=image&answer={answer}")
    assert [item.captions for item in benchmark.items] == CHOSEN and benchmark.kind == "choices"
    found = [digest(np.asarray(read_picture(item.images[0]))) for item in benchmark.items]
    assert found == SHOWN[:4]


@pytest.mark.parametrize("stored", [True, False])
def test_one_caption_and_several_images(stored, tmp_path):
    rows = [{"text": f"x {n}", "pics": [f"pics/{n + k}.png" for k in range(3)], "label": str(n % 3)} for n in range(3)]
    if stored:
        as_dataset(rows, {"pics": List(datasets.Image())}).save_to_disk(tmp_path / "copy")
    source = tmp_path / "copy" if stored else write_table(tmp_path / "copy", rows)
    found = told(f"choices={source}?captions=text&images=pics&answer=label")
    assert [shown for *_, shown in found] == [
        [SHOWN[k] for k in places] for places in ((0, 1, 2), (2, 1, 3), (4, 2, 3))
    ]
    items = load_benchmark(f"choices={source}?captions=text&images=pics").items
    assert len({picture_key(image) for item in items for image in item.images}) == 5  # equal ones are known as such


def test_items_of_less_than_a_number_are_left_out(tmp_path):
    rows = [row | {"votes": {"caption": n}} for n, row in enumerate(ROWS)]
    source = write_table(tmp_path / "copy", rows)
    assert told(f"pairs={source}{PAIRS}&at_least=votes.caption,2") == EXPECTED[2:]


def test_box_and_labels(tmp_path):
    rows = [row | {"x": 3, "y": 2, "w": 11, "h": 9, "level": n % 2} for n, row in enumerate(ROWS)]
    source = write_table(tmp_path / "copy", rows)
    items = load_benchmark(f"choices={source}?captions=left,right&images=a&box=x,y,w,h&labels=level").items
    expected = [digest(pixels(FILES[row["a"]], (3, 2, 11, 9))) for row in ROWS]
    assert [digest(np.asarray(read_picture(item.images[0]))) for item in items] == expected
    assert [item.labels for item in items] == [(("level", str(n % 2)),) for n in range(4)]
    source = write_table(tmp_path / "flat", [row | {"w": 0} for row in rows])
    with pytest.raises(ValueError, match="item 0 has a box of 0 x 9 pixels; mend the copy"):
        load_benchmark(f"choices={source}?captions=left,right&images=a&box=x,y,w,h")


@pytest.fixture
def web(tmp_path):
    """The pictures on the web: their address, and what was asked for."""
    write_pictures(tmp_path / "web")
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "web")))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", asked=asked)
    server.shutdown()
    server.server_close()


def test_pictures_by_address_are_fetched_when_asked_for_and_kept(tmp_path, web, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "downloads")
    rows = [row | {key: f"{web.url}/{row[key]}" for key in "ab"} for row in ROWS]
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    spec = f"pairs={tmp_path / 'mine.json'}{PAIRS}"
    with pytest.raises(ValueError, match=r"images of 4 of 4 items are missing .*pass --fetch_images"):
        load_benchmark(spec)
    assert not web.asked
    assert told(spec, Options(fetch_images=True)) == EXPECTED
    count = len(web.asked)
    assert count == 8 and told(spec, Options(fetch_images=True)) == EXPECTED and len(web.asked) == count
    assert told(spec, Options(image_dir=str(tmp_path / "web/pics"))) == EXPECTED  # those that are here need no fetching
    named = write_dataset_of_names(tmp_path)
    assert told(f"pairs={named}{PAIRS}&url={web.url}/{{}}", Options(fetch_images=True)) == EXPECTED
    (tmp_path / "web/mine.json").write_text(json.dumps(rows))
    assert told(f"pairs={web.url}/mine.json{PAIRS}", Options(fetch_images=True)) == EXPECTED
    rows[0]["a"] = f"{web.url}/nothing.png"
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    with pytest.raises(OSError, match=r"the image http.*nothing.png could not be read \(.*could not be fetched"):
        told(spec, Options(fetch_images=True))


OF_CHOICES = "?captions=options&images=image&answer=label"


@pytest.mark.parametrize(
    ("spec", "change", "message"),
    [
        (
            "pairs{}?captions=left,rigth&images=a,b",
            {},
            "has no column 'rigth'; it has key, left, right, kind, a, b. Name",
        ),
        ("pairs{}?captions=left,right&images=a,{{c}}.png", {}, "has no column 'c'; it has key,"),
        (
            "pairs{}?caption=left,right",
            {},
            "unknown key 'caption' in the column map; choose from captions, images, answer",
        ),
        ("pairs{}?captions", {}, r"'captions' is no key with a value; write captions=COLUMN,COLUMN&images=COLUMN"),
        ("pairs{}?captions=left,right&images=a,b&merged=two", {}, "merged is 'two'; it must be a whole number"),
        ("pairs{}?captions=left,right&images=a&box=a,b", {}, "box is 'a,b'; it must tell left, top, width and height"),
        ("pairs{}?captions=left&images=a,b", {}, "item 0 of .* has 1 captions and 2 images; pairs have two and two"),
        (
            "pairs{}?captions=left,right&images=a",
            {},
            "item 0 of .* has 2 captions and 1 images; pairs have two and two",
        ),
        (
            "pairs{}?captions=left,right&images=a,b",
            {"right": "a dog 2"},
            "item 2 of .* has the caption 'a dog 2' twice",
        ),
        (
            "pairs{}?captions=left,right&images=a,b",
            {"b": "pics/4.png"},
            "item 2 of .* has an image twice, a tie that no",
        ),
        (
            "pairs{}?captions=left,right&images=a,b",
            {"b": "pics/9.png"},
            "images of 1 of 4 items are missing .*of item 2",
        ),
        (
            "pairs{}?captions=left,right&images=a,b&tag=kind",
            {"kind": None},
            "item 2 of .* has no 'kind'; it has key, left",
        ),
        (
            "pairs{}?captions=left,right&images=a,b",
            {"left": 5},
            "item 2 has 5 for a caption; a caption must be a string",
        ),
        (
            "choices{}?captions=left&images=a",
            {},
            "item 0 of .* has 1 captions and 1 images; a choice has one image and",
        ),
        ("choices{}?captions=left,right&images=a,b", {}, "item 0 of .* has 2 captions and 2 images; a choice has one"),
        (
            "choices{}?captions=left,right&images=a",
            {"right": "a dog 2"},
            "item 2 of .* has the caption 'a dog 2' twice",
        ),
        (
            "choices{}?captions=left,right&images=a&answer=kind",
            {},
            "item 0 of .* has the answer 'colour', and 2 candidates",
        ),
        (
            "choices{}" + OF_CHOICES,
            {"label": 3},
            "item 2 of .* answer 3, and 3 candidates; it must be a number from 0 to 2",
        ),
        (
            "choices{}" + OF_CHOICES + "&at_least=key,two",
            {},
            "at_least is 'key,two'; it must tell a column and a number",
        ),
        (
            "choices{}" + OF_CHOICES + "&at_least=image,2",
            {},
            "item 0 of .* has 'pics.* in image, which must be a number",
        ),
        ("choices{}" + OF_CHOICES, {"label": -1}, "item 2 of .* has the answer -1, and 3 candidates"),
        ("choices{}" + OF_CHOICES, {"options": ["x 2"]}, "item 2 of .* has 1 captions and 1 images; a choice has"),
    ],
)
def test_what_is_no_item_is_named(spec, change, message, tmp_path):
    rows = [dict(row) for row in (CHOICES if OF_CHOICES in spec else ROWS)]
    rows[2] |= change
    source = write_table(tmp_path / "copy", rows)
    with pytest.raises(ValueError, match=message):
        load_benchmark(spec.format(f"={source}"))


def test_sources_that_are_none(tmp_path):
    for name in ("pairs", "choices"):
        with pytest.raises(
            ValueError, match=rf"{name} needs to know of what: give a dataset, as in {name}=FOLDER\?capt"
        ):
            load_benchmark(name)
    (tmp_path / "empty.yaml").write_text("captions")
    with pytest.raises(ValueError, match=r"empty.yaml holds no keys; it must tell source, captions and images"):
        load_benchmark(f"pairs={tmp_path / 'empty.yaml'}")
    with pytest.raises(ValueError, match=r"no.yaml could not be read \(.*; give a yaml file"):
        load_benchmark(f"pairs={tmp_path / 'no.yaml'}")
    source = write_table(tmp_path / "copy", ROWS)
    (tmp_path / "copy/mine.csv").write_text("a\n")
    for broken, message in (("mine.csv", "holds no items"), ("mine.tsv", "there is no file .*mine.tsv; give --data")):
        with pytest.raises((ValueError, OSError), match=message):
            load_benchmark(f"pairs={Path(source).parent / broken}")


def test_archives_that_cannot_be_read_one_by_one(tmp_path):
    source = write_table(tmp_path / "copy", ROWS)
    with tarfile.open(tmp_path / "pics.tar", "w:gz") as archive:
        archive.add(tmp_path / "copy/pics", "pics")
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        for folder in "xy":
            archive.write(tmp_path / "copy/pics/0.png", f"{folder}/pics/0.png")
    shutil.rmtree(tmp_path / "copy/pics")
    with pytest.raises(
        OSError, match=r"pics.tar is no zip and no plain tar .*\(\.tar\.gz\), unpack it and give the folder"
    ):
        load_benchmark(f"pairs={source}{PAIRS}&image_dir={tmp_path / 'pics.tar'}")
    with pytest.raises(ValueError, match=r"pics/0.png is the end of several names in .*: x/pics/0.png, y/pics/0.png"):
        load_benchmark(f"pairs={source}{PAIRS}&image_dir={tmp_path / 'twice.zip'}")


# Scores: plain loops over random tables with ties


def random_answers(shapes: list[tuple[int, int]]) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, 4, shape) / 4 for shape in shapes]


def found_scores(benchmark, answers) -> dict[tuple[str, str], tuple]:
    rows = score_rows(outcomes(benchmark, answers))
    return {(row["subset"], row["score"]): (pytest.approx(row["value"]), row["n"]) for row in rows}


def test_pairs_are_scored_by_winoground_s_rule(tmp_path):
    benchmark = load_benchmark(f"pairs={write_table(tmp_path / 'copy', ROWS)}{PAIRS}")
    benchmark.items = [benchmark.items[n % 4] for n in range(200)]
    answers = random_answers([(2, 2)] * 200)
    right = {"text": [], "image": [], "group": []}
    for (c0i0, c0i1), (c1i0, c1i1) in answers:
        text, image = c0i0 > c1i0 and c1i1 > c0i1, c0i0 > c0i1 and c1i1 > c1i0
        for part, value in (("text", text), ("image", image), ("group", text and image)):
            right[part].append(value)
    found = found_scores(benchmark, answers)
    kinds = {kind: [n for n in range(200) if KINDS[n % 4] == kind] for kind in ("colour", "count")}
    for part, of_all in right.items():
        assert found["all", part] == (np.mean(of_all), 200) and 0 < np.mean(of_all) < 1
        by_kind = [np.mean([of_all[n] for n in places]) for places in kinds.values()]
        assert [found[kind, part][0] for kind in kinds] == by_kind
        assert found["all", f"macro {part}"] == (np.mean(by_kind), 200)


def test_choices_are_right_where_the_true_one_is_above_all_others(tmp_path):
    rows = [
        {"text": ["x", "y", "z"][: 3 if n % 2 else 2], "pics": ["pics/0.png"], "kind": KINDS[n], "level": n % 2}
        for n in range(4)
    ]
    rows += [{"text": ["x"], "pics": ["pics/0.png", "pics/1.png"], "kind": KINDS[n], "level": 0} for n in range(4)]
    spec = f"choices={write_table(tmp_path / 'copy', rows)}?captions=text&images=pics"
    whole, plain = load_benchmark(f"{spec}&tag=kind&labels=level"), load_benchmark(spec)
    for benchmark in (whole, plain):
        benchmark.items = [benchmark.items[n % 8] for n in range(400)]
    answers = random_answers([(len(item.captions), len(item.images)) for item in whole.items])
    right = [all(answer.flat[0] > other for other in answer.flat[1:]) for answer in answers]
    found = found_scores(whole, answers)
    for way, ours in (("image to text", range(4)), ("text to image", range(4, 8))):
        places = [n for n in range(400) if n % 8 in ours]
        by_kind = {
            kind: np.mean([right[n] for n in places if whole.items[n].tag == kind]) for kind in ("colour", "count")
        }
        assert found[way, "micro accuracy"] == (np.mean([right[n] for n in places]), 200)
        assert found[way, "macro accuracy"] == (np.mean(list(by_kind.values())), 200)
        for kind, value in by_kind.items():
            assert found[f"{kind}, {way}", "accuracy"][0] == value
        assert found_scores(plain, answers)[way, "accuracy"] == (np.mean([right[n] for n in places]), 200)
    odd = [n for n in range(400) if n % 8 in (1, 3)]
    assert found["level 1, image to text", "accuracy"] == (np.mean([right[n] for n in odd]), 100)
