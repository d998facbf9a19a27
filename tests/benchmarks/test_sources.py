"""Every benchmark from every kind of source: the same items; and what is said where a source falls short."""

from pathlib import Path

import benchmark_copies
import datasets
import pyarrow.parquet as pq
import pytest
from benchmark_copies import COPIES, Copy, Expected, sugarcrepe, told, winoground
from benchmarks_on_hub import found_by_clients, listed
from conftest import hub_env
from hub_server import ACCEPTED, STRANGER, HubServer
from PIL import Image

from sdsclip_hf.benchmarks import ImageCell, ImageFile, Options, load_benchmark

pytestmark = pytest.mark.usefixtures("own_cache")
COMMON_FORMS = ("parquet", "file", "disk", "splits_to_disk", "imagefolder", "csv_imagefolder", "zip")
JSON_FORMS = ("json", "json_and_its_data", "json_file")
FORMS = [(make, form) for make in COPIES for form in (COMMON_FORMS + JSON_FORMS if make().json_name else COMMON_FORMS)]
PUBLISHED = {
    "winoground": 400,
    "aro_relation": 23_937,
    "aro_attribution": 28_748,
    "aro_coco_order": 25_010,
    "aro_flickr30k_order": 5_000,
    "sugarcrepe:swap_obj": 245,
}


def name_of(value) -> str | None:
    return getattr(value, "__name__", None)


def write(form: str, folder: Path, copy: Copy) -> Path:
    return getattr(benchmark_copies, f"write_{form}")(folder, copy)


def by_authors(copy: Copy, form: str) -> list[Expected]:
    """SugarCrepe's json names its items by keys, where the other forms have numbers."""
    if not (form in JSON_FORMS and isinstance(copy.json_rows, dict)):
        return copy.expected
    subset = copy.json_name.removesuffix(".json")
    named = zip(copy.expected, copy.json_rows, strict=True)
    return [one._replace(identifier=f"{subset}/{key}") for one, key in named]


@pytest.mark.parametrize(("make", "form"), FORMS, ids=name_of)
def test_every_form_gives_the_same_items(make, form, tmp_path):
    copy = make()
    source = write(form, tmp_path / "copy", copy)
    benchmark = load_benchmark(f"{copy.spec}={source}")
    assert told(benchmark) == by_authors(copy, form)
    read = source if form != "json" else source / copy.json_name
    read = read if form != "json_and_its_data" else source / "data" / copy.json_name
    assert benchmark.source == {
        "name": str(read),
        "revision": None,
        "split": None if form in JSON_FORMS else benchmark.source["split"],
        "items": len(copy.rows),
        "published_items": PUBLISHED[copy.spec],
        "missing_images": 0,
    }
    of_files = form in JSON_FORMS
    assert all(
        isinstance(image, ImageFile if of_files else ImageCell) for item in benchmark.items for image in item.images
    )


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """(the copies, sha by repository, what was found online, what with nothing listening, the clients' cache)."""
    root = tmp_path_factory.mktemp("benchmarks") / "hub"
    repositories = root / "datasets"
    copies = [make() for make in COPIES]
    for copy in copies:
        benchmark_copies.write_parquet(repositories / copy.hub_id / "data", copy)
        benchmark_copies.write_parquet(repositories / mirror(copy) / "data", copy, "train", shards=1)
    for folder in ("facebook/winoground", "org/labelled"):
        (repositories / folder).mkdir(exist_ok=True, parents=True)
        (repositories / folder / ".gated").touch()
    benchmark_copies.write_imagefolder(repositories / "org/pictures", copies[0])
    benchmark_copies.write_zip(repositories / "org/zip", copies[0])
    with HubServer(root) as server:
        commits = {name: server.repository("datasets", name).sha for name in (copies[0].hub_id, *map(mirror, copies))}
        sha = commits["org/winoground"]
        asked = [
            ["winoground"],
            ["winoground", STRANGER],
            ["winoground", "hf_wrong"],
            ["winoground", ACCEPTED],
            ["classification=org/labelled"],
        ]
        asked += [[copy.spec] for copy in copies[1:]]
        asked += [[f"{copy.spec}={mirror(copy)}"] for copy in copies]
        asked += [[f"winoground=org/winoground@{revision}"] for revision in ("main", sha, "v9", "0" * 40)]
        asked += [
            ["sugarcrepe:swap_obj=org/sugarcrepe"],
            ["winoground=org/pictures"],
            ["winoground=org/nothing"],
            ["winoground=org/zip"],
        ]
        asked += [["winoground:train=org/winoground"], ["winoground:dev=org/winoground"], ["sugarcrepe"]]
        online = found_by_clients(server, asked)
    known = ["winoground=org/winoground", f"winoground=org/winoground@{sha}", "winoground=org/zip"]
    again = [[spec] for spec in (*known, f"winoground=org/winoground@{'1' * 40}", "aro_relation=org/a")]
    return copies, commits, online, found_by_clients(server, again), Path(hub_env(server)["HF_HOME"], "datasets")


def mirror(copy: Copy) -> str:
    return f"org/{copy.spec.replace(':', '_')}"


def test_hub_ids_known_by_the_benchmark(session):
    copies, commits, online, _, _ = session
    for copy in copies:
        asked = (copy.spec, ACCEPTED) if copy.spec == "winoground" else (copy.spec,)
        source, items = online[asked]
        assert items == listed(copy.expected)
        assert (source["name"], source["published_items"]) == (copy.hub_id, PUBLISHED[copy.spec])
        assert (source["items"], source["missing_images"]) == (len(copy.rows), 0)
    assert online["winoground", ACCEPTED][0]["revision"] == commits["facebook/winoground"]


def test_named_hub_ids_and_revisions(session):
    copies, commits, online, _, _ = session
    for copy in copies:
        source, items = online[(f"{copy.spec}={mirror(copy)}",)]
        assert items == listed(copy.expected)
        assert (source["name"], source["revision"]) == (mirror(copy), commits[mirror(copy)])
    sha = commits["org/winoground"]
    plain = online[("winoground=org/winoground",)]
    for spec in (
        "winoground=org/winoground@main",
        f"winoground=org/winoground@{sha}",
        "winoground:train=org/winoground",
    ):
        assert online[(spec,)] == plain
    assert online[("sugarcrepe:swap_obj=org/sugarcrepe",)] == online[("sugarcrepe:swap_obj=org/sugarcrepe_swap_obj",)]
    for spec in ("winoground=org/pictures", "winoground=org/zip"):
        assert online[(spec,)][1] == listed(copies[0].expected)


def test_gated_datasets(session):
    _, _, online, _, _ = session
    for asked in (("winoground",), ("winoground", STRANGER), ("classification=org/labelled",)):
        kind, message = online[asked]
        name = "org/labelled" if "=" in asked[0] else "facebook/winoground"
        assert kind == "OSError"
        for part in (
            f"accept its licence at https://huggingface.co/datasets/{name},",
            "`hf auth login` or set HF_TOKEN",
            "give --data a copy on disk",
        ):
            assert part in message


def test_hub_ids_and_revisions_that_are_not_there(session):
    _, _, online, _, _ = session
    for spec in ("winoground=org/nothing", "sugarcrepe"):
        kind, message = online[(spec,)]
        assert kind == "OSError" and "give --data a local folder; with one, check the id" in message
    assert "log in with `hf auth login`" in online["winoground", "hf_wrong"][1]
    assert "401 Unauthorized" in online["winoground", "hf_wrong"][1]
    assert "'HuggingFaceM4/SugarCrepe_add_obj'" in online[("sugarcrepe",)][1]  # the first of its seven is not there
    for revision in ("v9", "0" * 40):
        kind, message = online[(f"winoground=org/winoground@{revision}",)]
        assert kind == "OSError" and f"Revision '{revision}' doesn't exist for dataset 'org/winoground'" in message
    kind, message = online[("winoground:dev=org/winoground",)]
    assert kind == "ValueError" and "split 'dev' of the dataset 'org/winoground'" in message and "['train']" in message


def test_without_the_hub(session, monkeypatch):
    """What was loaded before is had from the cache, by its commit; this process is offline, that of ``dead`` is not."""
    _, commits, online, dead, cache = session
    sha = commits["org/winoground"]
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    for spec in ("winoground=org/winoground", f"winoground=org/winoground@{sha}", "winoground=org/zip"):
        benchmark = load_benchmark(spec)
        before = online[(spec.split("@")[0],)]
        assert [benchmark.source, listed(told(benchmark))] == dead[(spec,)] == before
    fresh, other = "aro_relation=org/a", f"winoground=org/winoground@{'1' * 40}"
    for spec, said in ((fresh, "Without a network connection, give --data a local folder"), (other, f"cache is {sha}")):
        kind, message = dead[(spec,)]
        assert kind == "OSError" and said in message
        with pytest.raises(OSError, match=said):
            load_benchmark(spec)


def test_splits_are_looked_for_in_order(tmp_path):
    copy = winoground()
    for number, split in enumerate(("validation", "train", "test")):
        part = benchmark_copies.replace(copy, rows=copy.rows[number:][:1])
        benchmark_copies.write_parquet(tmp_path / "copy", part, split, shards=1)
        assert told(load_benchmark(f"winoground={tmp_path / 'copy'}")) == copy.expected[number:][:1]
    assert told(load_benchmark(f"winoground:validation={tmp_path / 'copy'}")) == copy.expected[:1]
    with pytest.raises(ValueError, match=r"split 'dev' of the dataset .*'validation'"):
        load_benchmark(f"winoground:dev={tmp_path / 'copy'}")


def test_json_is_the_test_split(tmp_path):
    copy = benchmark_copies.aro_relation()
    source = benchmark_copies.write_json_file(tmp_path / "copy", copy)
    assert told(load_benchmark(f"aro_relation:test={source}")) == copy.expected
    with pytest.raises(ValueError, match=r"visual_genome_relation.json has no split 'train'"):
        load_benchmark(f"aro_relation:train={source}")


def lose_last_image(source: Path) -> None:
    folder = source.parent if source.is_file() else source
    sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png"))[-1].unlink()


@pytest.mark.parametrize(
    ("make", "form"),
    [(make, form) for make, form in FORMS if form in ("imagefolder", "csv_imagefolder", "json", "json_file")],
    ids=name_of,
)
def test_missing_files(make, form, tmp_path):
    copy = make()
    source = write(form, tmp_path / "copy", copy)
    lose_last_image(source)
    *kept, lost = by_authors(copy, form)
    name = lost.identifier.removeprefix("swap_obj/")
    message = rf"images of 1 of {len(copy.rows)} items are missing in .*the first of item \S*{name}\. .*--allow_missing"
    with pytest.raises(ValueError, match=message):
        load_benchmark(f"{copy.spec}={source}")
    benchmark = load_benchmark(f"{copy.spec}={source}", Options(allow_missing=True))
    assert told(benchmark) == kept
    assert (benchmark.source["items"], benchmark.source["missing_images"]) == (len(kept), 1)


@pytest.mark.parametrize("make", COPIES, ids=name_of)
def test_missing_cells(make, tmp_path):
    """Null, or a name without the bytes and the file that it names."""
    copy = make()
    column = copy.image_columns[-1]
    copy.rows[0][column] = None
    copy.rows[1][column] = {"bytes": None, "path": "nowhere.png"}
    source = tmp_path / "some.parquet"
    pq.write_table(copy.dataset().data.table, source)  # to_parquet would look for the file
    first = copy.expected[0].identifier
    message = rf"images of 2 of {len(copy.rows)} items are missing .* the first of item {first}\. .*--allow_missing"
    with pytest.raises(ValueError, match=message):
        load_benchmark(f"{copy.spec}={source}")
    if len(copy.rows) == 2:
        with pytest.raises(ValueError, match=r"no item is left of .*; all of its images are missing"):
            load_benchmark(f"{copy.spec}={source}", Options(allow_missing=True))
        return
    benchmark = load_benchmark(f"{copy.spec}={source}", Options(allow_missing=True))
    assert told(benchmark) == copy.expected[2:]
    assert (benchmark.source["items"], benchmark.source["missing_images"]) == (len(copy.rows) - 2, 2)


def test_images_of_json_elsewhere(tmp_path):
    copy = benchmark_copies.aro_relation()
    benchmark_copies.write_json(tmp_path / "copy", copy)
    source = tmp_path / "alone" / "here"
    source.mkdir(parents=True)
    (tmp_path / "copy" / copy.json_name).rename(source / copy.json_name)
    spec = f"aro_relation={source}"
    with pytest.raises(ValueError, match=r"images of 4 of 4 items .*--image_dir"):
        load_benchmark(spec)
    with pytest.raises(ValueError, match=r"no item is left"):
        load_benchmark(spec, Options(allow_missing=True))
    for folder in ("copy", "copy/images"):
        assert told(load_benchmark(spec, Options(image_dir=str(tmp_path / folder)))) == copy.expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", r"visual_genome_relation.json is not valid json \("),
        ("", "is not valid json"),
        ("\xff", "is not valid json"),
        ("[]", "holds no items; it must be a list of objects, or an object of them by id"),
        ("3", "holds no items"),
        ("null", "holds no items"),
        ("[{}, 5]", "item 1 is no object; it must be a list of objects"),
        ('{"info": [], "data": {}}', "item info is no object"),
    ],
)
def test_broken_json(content, message, tmp_path):
    (tmp_path / "visual_genome_relation.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        load_benchmark(f"aro_relation={tmp_path}")


@pytest.mark.parametrize("key", ["image_path", "bbox_x", "bbox_h", "true_caption", "false_caption"])
@pytest.mark.parametrize("how", ["absent", "null"])
def test_missing_key_of_json(key, how, tmp_path):
    copy = benchmark_copies.aro_relation()
    copy.json_rows[2] = {name: value for name, value in copy.json_rows[2].items() if name != key}
    if how == "null":
        copy.json_rows[2][key] = None
    source = benchmark_copies.write_json(tmp_path / "copy", copy)
    with pytest.raises(ValueError, match=rf"item 2 of .*relation.json has no '{key}'; it has .*image_id"):
        load_benchmark(f"aro_relation={source}")


@pytest.mark.parametrize(
    ("make", "cells"),
    [
        (benchmark_copies.aro_relation, {"bbox_w": "9"}),
        (benchmark_copies.aro_relation, {"bbox": {"x": 1, "y": 2, "w": 3}}),
        (benchmark_copies.aro_relation, {"bbox": {"x": 1, "y": 2, "w": 3, "h": None}}),
        (benchmark_copies.aro_attribution, {"attributes": [1, 2]}),
        (benchmark_copies.aro_attribution, {"attributes": 5}),
    ],
)
def test_cells_of_another_kind(make, cells, tmp_path):
    copy = make()
    copy.json_rows[1] |= cells
    source = benchmark_copies.write_json(tmp_path / "copy", copy)
    with pytest.raises(ValueError, match=r"item 1 is not what the benchmark's are \(.*Error\(.*\)\); mend the copy"):
        load_benchmark(f"{copy.spec}={source}")


@pytest.mark.parametrize("caption", [5, ["a"], {"a": "b"}, 0])
def test_caption_that_is_no_string(caption, tmp_path):
    copy = benchmark_copies.sugarcrepe()
    copy.json_rows["2"]["negative_caption"] = caption
    source = benchmark_copies.write_json(tmp_path / "sugarcrepe", copy)
    with pytest.raises(ValueError, match=r"item 2 has .* for a caption; a caption must be a string"):
        load_benchmark(f"sugarcrepe:swap_obj={source}")
    copy = benchmark_copies.aro_coco_order()
    for options in (["right", caption], ["right", None]):
        copy.json_rows[1]["caption_options"] = options
        source = benchmark_copies.write_json(tmp_path / "order", copy)
        with pytest.raises(ValueError, match=r"item 1 has .* for a caption; a caption must be a string"):
            load_benchmark(f"aro_coco_order={source}")


@pytest.mark.parametrize(
    ("make", "column", "message"),
    [
        (winoground, "caption_1", "item 3 of .* has no 'caption_1'; it has id, caption_0"),
        (winoground, "image_1", "has no image column 'image_1'; it has id, image_0, caption_0"),
        (benchmark_copies.aro_relation, "false_caption", "item 0 of .* has no 'false_caption'; it has true_caption"),
        (benchmark_copies.aro_relation, "image", "has no image column 'image_path' or 'image'; it has true_caption"),
        (benchmark_copies.aro_coco_order, "hard_text_3", "item 0 of .* has no 'hard_text_3'"),
        (benchmark_copies.aro_coco_order, "images", "has no image column 'image' or 'images' or 'image_path'"),
        (sugarcrepe, "true_label", "item 0 of .* has no 'true_label'"),
        (sugarcrepe, "tested_labels", "item 0 of .* has no 'caption'; it has true_label"),
        (
            sugarcrepe,
            "image",
            "has no image column 'filename' or 'image' or 'images'; it has tested_labels, true_label",
        ),
    ],
    ids=name_of,
)
def test_absent_columns(make, column, message, tmp_path):
    copy = make().without(column)
    source = benchmark_copies.write_file(tmp_path / "copy", copy)
    with pytest.raises(ValueError, match=message):
        load_benchmark(f"{copy.spec}={source}")


def test_absent_sources(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "pictures" / "some.png")
    with pytest.raises(OSError, match="the folder exists, but what is in it could not be loaded"):
        load_benchmark(f"winoground={tmp_path / 'empty'}")
    with pytest.raises(ValueError, match=r"item 0 of .* has no 'true_caption'; it has nothing but images"):
        load_benchmark(f"aro_relation={tmp_path / 'pictures'}")  # neither json nor metadata
    for spec in ("aro_relation", "sugarcrepe:add_obj"):
        with pytest.raises(OSError, match=r"there is no file .*typo.json; give --data the json file or the folder"):
            load_benchmark(f"{spec}={tmp_path / 'typo.json'}")
    with pytest.raises(OSError, match=r"'winoground_here'.* give --data a local folder"):
        load_benchmark("winoground=winoground_here")
