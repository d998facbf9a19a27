"""What benchmarks are asked for by, where their data lies, and what each makes of its columns."""

from importlib.metadata import version
from pathlib import Path

import benchmark_copies
import datasets
import numpy as np
import pytest
from benchmark_copies import (
    COPIES,
    Copy,
    aro_coco_order,
    aro_relation,
    digest,
    noise,
    picture,
    replace,
    sugarcrepe,
    told,
    winoground,
)
from datasets import ClassLabel, List, Value

from sdsclip_hf.benchmarks import Options, expand, load_benchmark, picture_key, read_picture
from sdsclip_hf.benchmarks.sugarcrepe import SUBSETS

pytestmark = pytest.mark.usefixtures("own_cache")
ARO = ["aro_relation", "aro_attribution", "aro_coco_order", "aro_flickr30k_order"]


def test_unknown_names_and_parts(tmp_path):
    for spec in ("winogrand", "winogrand:test=x", "=x", "", "aro_relations"):
        with pytest.raises(
            ValueError, match=r"unknown benchmark '.*'; choose from winoground, aro_relation, .*, aro\."
        ):
            load_benchmark(spec)
        with pytest.raises(ValueError, match="unknown benchmark"):
            expand([spec], str(tmp_path))
    with pytest.raises(ValueError, match=r"sugarcrepe:swap: unknown subset 'swap'; choose from add_obj, .*swap_att"):
        load_benchmark("sugarcrepe:swap")


def test_groups_are_expanded():
    assert expand(["winoground", "aro", "sugarcrepe:swap_obj"]) == ["winoground", *ARO, "sugarcrepe:swap_obj"]
    assert expand(["aro=data/aro"]) == [f"{name}=data/aro" for name in ARO]
    assert expand(["aro:test=data:x/aro=1"]) == [f"{name}:test=data:x/aro=1" for name in ARO]


def test_data_folder_serves_what_names_no_source(tmp_path, monkeypatch):
    for name in ("winoground", "aro_relation", "sugarcrepe"):
        (tmp_path / name).mkdir()
    data = str(tmp_path)
    asked = ["winoground", "winoground=org/name@main", "sugarcrepe:swap_obj", "shapes:test", "retrieval:test"]
    assert expand(asked, data) == [
        f"winoground={data}/winoground",
        "winoground=org/name@main",
        f"sugarcrepe:swap_obj={data}/sugarcrepe",
        "shapes:test",
        f"retrieval:test={data}",
    ]
    assert expand(["aro"], data) == [f"aro_relation={data}/aro_relation", *(f"{name}={data}" for name in ARO[1:])]
    assert expand(["aro=x"], data) == [f"{name}=x" for name in ARO]
    assert expand(asked, None) == asked
    monkeypatch.setenv("HOME", data)
    assert expand(["winoground"], "~") == [f"winoground={data}/winoground"]


def test_data_folder_of_all_that_is_aro(tmp_path):
    """The layout that the authors' tool downloads: all json files in one folder, with one folder of images."""
    copies = [make() for make in COPIES if make.__name__ in ARO]
    for copy in copies:
        benchmark_copies.write_json(tmp_path, copy)
    specs = expand(["aro"], str(tmp_path))
    assert [told(load_benchmark(spec)) for spec in specs] == [copy.expected for copy in copies]


@pytest.mark.parametrize(
    ("make", "column"), [(aro_relation, "relation_name"), (benchmark_copies.aro_attribution, "attributes")]
)
def test_copy_that_does_not_tell_its_tags(make, column, tmp_path):
    """The items are there without tags, and there is no mean over them."""
    copy = make()
    source = benchmark_copies.write_file(tmp_path / "copy", copy.without(column))
    assert told(load_benchmark(f"{copy.spec}={source}")) == [one._replace(tag="") for one in copy.expected]


def test_winoground_without_its_tags(tmp_path):
    copy = winoground()
    tags = ("tag", "secondary_tag", "num_main_preds", "collapsed_tag")
    source = benchmark_copies.write_file(tmp_path / "copy", copy.without(*tags))
    assert told(load_benchmark(f"winoground={source}")) == [one._replace(tag="", labels=()) for one in copy.expected]


@pytest.mark.parametrize("options", ["one caption", ["the true one"], [], {"a": "b"}])
def test_order_needs_a_choice(options, tmp_path):
    copy = aro_coco_order()
    copy.json_rows[1]["caption_options"] = options
    source = benchmark_copies.write_json(tmp_path / "copy", copy)
    with pytest.raises(ValueError, match="item 1: caption_options must list the true caption and its perturbations"):
        load_benchmark(f"aro_coco_order={source}")


@pytest.mark.parametrize("form", ["json", "json_and_its_data", "folders", "named_folders", "files"])
def test_all_of_sugarcrepe(form, tmp_path):
    copies = [sugarcrepe(subset) for subset in SUBSETS]
    for copy in copies:
        subset = copy.spec.removeprefix("sugarcrepe:")
        if form.startswith("json"):
            getattr(benchmark_copies, f"write_{form}")(tmp_path / "copy", copy)
        elif form == "files":
            (tmp_path / "copy").mkdir(exist_ok=True)
            copy.dataset().to_parquet(tmp_path / "copy" / f"{subset}.parquet")
        else:
            prefix = "SugarCrepe_" if form == "named_folders" else ""
            benchmark_copies.write_parquet(tmp_path / "copy" / f"{prefix}{subset}", copy)
    expected = [one for copy in copies for one in copy.expected]
    benchmark = load_benchmark(f"sugarcrepe={tmp_path / 'copy'}")
    found = told(benchmark)
    if form.startswith("json"):
        assert [one.identifier for one in found[3:6]] == ["add_att/0", "add_att/2", "add_att/17"]
        expected = [one._replace(identifier=two.identifier) for one, two in zip(expected, found, strict=True)]
    assert found == expected
    counts = {"items": 21, "published_items": 7511, "missing_images": 0}
    assert {key: benchmark.source[key] for key in counts} == counts
    assert benchmark.source["revision"] is None and benchmark.source["name"].count(", ") == 6
    assert told(load_benchmark(f"sugarcrepe:swap_att={tmp_path / 'copy'}")) == found[18:]


def test_one_subset_is_not_taken_for_all(tmp_path):
    for write in (benchmark_copies.write_file, benchmark_copies.write_json_file, benchmark_copies.write_parquet):
        source = write(tmp_path / write.__name__, sugarcrepe())
        with pytest.raises(ValueError, match="holds one subset; say which, as in sugarcrepe:swap_obj="):
            load_benchmark(f"sugarcrepe={source}")


def test_sugarcrepe_with_columns_of_captions(tmp_path):
    copy = sugarcrepe()
    texts = [{"caption": one.captions[0], "negative_caption": one.captions[1]} for one in copy.expected]
    rows = [{"images": row["image"], **text} for row, text in zip(copy.rows, texts, strict=True)]
    features = {"images": datasets.Image(), "caption": Value("string"), "negative_caption": Value("string")}
    source = benchmark_copies.write_parquet(tmp_path / "copy", replace(copy, rows=rows, features=features))
    assert told(load_benchmark(f"sugarcrepe:swap_obj={source}")) == copy.expected


@pytest.mark.parametrize("tested", [["a dog", "a dog"], ["x", "y", "z"], []])
def test_sugarcrepe_row_without_one_false_caption(tested, tmp_path):
    copy = sugarcrepe()
    copy.rows[1]["tested_labels"] = tested
    copy.features["true_label"] = Value("string")
    copy.rows[1]["true_label"] = "a dog"
    source = benchmark_copies.write_parquet(tmp_path / "copy", copy)
    with pytest.raises(ValueError, match="item 1: tested_labels must hold true_label and one other caption"):
        load_benchmark(f"sugarcrepe:swap_obj={source}")


def save(folder: Path, rows: list[dict], **features) -> Path:
    """Rows of "image" (a file's bytes) and more, as one parquet file."""
    copy = Copy("", "", {"image": datasets.Image()} | features, rows, [])
    return benchmark_copies.write_file(folder, copy)


NAMES = ["fire_truck", "cat", "sea lion"]


@pytest.mark.parametrize("column", ["label", "fine_label"])
def test_classification_by_a_column_that_knows_its_classes(column, tmp_path):
    """All of them are candidates, those too that no image is of."""
    rows = [{"image": picture(number), column: label} for number, label in enumerate([2, 0, 0])]
    source = save(tmp_path / "data", rows, **{column: ClassLabel(names=NAMES)})
    options = Options(templates=("a photo of a {}.", "{}, or the like of {}"))
    benchmark = load_benchmark(f"classification:train={source}", options)
    assert benchmark.kind == "classification"
    assert [item.tag for item in benchmark.items] == ["sea lion", "fire_truck", "fire_truck"]
    assert all(item.captions == () for item in benchmark.items)
    assert [digest(np.asarray(read_picture(item.images[0]))) for item in benchmark.items] == [
        digest(noise(number)) for number in range(3)
    ]
    assert benchmark.classes == {
        "fire_truck": ("a photo of a fire truck.", "fire truck, or the like of fire truck"),
        "cat": ("a photo of a cat.", "cat, or the like of cat"),
        "sea lion": ("a photo of a sea lion.", "sea lion, or the like of sea lion"),
    }


def test_classification_by_strings_and_numbers(tmp_path):
    rows = [{"image": picture(k), "label": label, "kind": k % 2} for k, label in enumerate(["zebra", "ant", "zebra"])]
    source = save(tmp_path / "data", rows, label=Value("string"), kind=Value("int64"))
    benchmark = load_benchmark(f"classification={source}")
    assert [item.tag for item in benchmark.items] == ["zebra", "ant", "zebra"]
    assert benchmark.classes == {"ant": ("a photo of a ant.",), "zebra": ("a photo of a zebra.",)}
    with pytest.raises(ValueError, match=r"column 'kind' .* holds numbers and no names"):
        load_benchmark(f"classification={source}", Options(label_column="kind"))


LABELLED = [("train", "dog", 0), ("train", "cat", 4), ("test", "cat", 1), ("test", "dog", 2), ("test", "hot_dog", 3)]


def test_classification_by_folders(tmp_path):
    for split, label, number in LABELLED:
        (tmp_path / "data" / split / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / split / label / f"{number}.png").write_bytes(picture(number))
    benchmark = load_benchmark(f"classification={tmp_path / 'data'}")
    found = {item.tag: digest(np.asarray(read_picture(item.images[0]))) for item in benchmark.items}
    assert found == {"cat": digest(noise(1)), "dog": digest(noise(2)), "hot_dog": digest(noise(3))}
    assert benchmark.classes["hot_dog"] == ("a photo of a hot dog.",)
    assert [item.tag for item in load_benchmark(f"classification:train={tmp_path / 'data'}").items] == ["cat", "dog"]


@pytest.mark.parametrize("label", [None, -1])
def test_image_of_no_class(label, tmp_path):
    """-1 is how test sets hold their labels back; it is not the last class."""
    rows = [{"image": picture(0), "label": 1}, {"image": picture(1), "label": label}]
    source = save(tmp_path / "data", rows, label=ClassLabel(names=NAMES))
    with pytest.raises(ValueError, match=r"item 1 of .* has no 'label'"):
        load_benchmark(f"classification={source}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            Options(image_column="image", label_column="klass"),
            r"has no label column 'klass'; it has image, other, caption\. Pass --label_column",
        ),
        (Options(image_column="image"), r"has no label column 'label'; it has image, other, caption"),
        (Options(), r"has the image columns image, other; its columns are .*Pass --image_column"),
        (Options(image_column="caption"), r"has the image columns image, other"),
        (Options(image_column="image", label_column="caption", templates=("a", "b {}")), r"template 'a' has no \{\}"),
        (Options(image_column="image", label_column="caption", templates=()), r"no prompt template; --templates takes"),
    ],
)
def test_classification_columns_and_templates(options, message, tmp_path):
    rows = [{"image": picture(0), "other": picture(1), "caption": "a"}]
    source = save(tmp_path / "data", rows, other=datasets.Image(), caption=Value("string"))
    with pytest.raises(ValueError, match=message):
        load_benchmark(f"classification={source}", options)


@pytest.mark.parametrize("name", ["classification", "retrieval"])
def test_any_dataset_must_be_named_and_have_images(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name}:test needs to know of what: give a dataset, .*{name}:test=FOLDER"):
        load_benchmark(f"{name}:test")
    datasets.Dataset.from_dict({"label": ["a"], "caption": ["b"]}).save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match=r"has no image column; its columns are label, caption\. Pass --image_column"):
        load_benchmark(f"{name}={tmp_path / 'data'}")


def test_retrieval_merges_the_rows_of_an_image(tmp_path):
    captions = [(0, "a"), (1, "b"), (0, "c"), (0, "a"), (2, "b")]
    rows = [{"image": picture(number), "caption": caption} for number, caption in captions]
    source = save(tmp_path / "data", rows, caption=Value("string"))
    benchmark = load_benchmark(f"retrieval={source}")
    assert benchmark.kind == "retrieval"
    assert [item.captions for item in benchmark.items] == [("a", "c"), ("b",), ("b",)]
    assert [item.identifier for item in benchmark.items] == ["0", "1", "4"]
    shown = [digest(np.asarray(read_picture(item.images[0]))) for item in benchmark.items]
    assert shown == [digest(noise(number)) for number in range(3)]
    assert benchmark.source["items"] == 3


def test_retrieval_with_several_captions_a_row(tmp_path):
    rows = [{"image": picture(0), "text": ["a", "b"]}, {"image": picture(1), "text": ["c"]}]
    rows.append({"image": picture(0), "text": ["b", "d"]})
    source = save(tmp_path / "data", rows, text=List(Value("string")))
    benchmark = load_benchmark(f"retrieval={source}", Options(caption_column="text"))
    assert [item.captions for item in benchmark.items] == [("a", "b", "d"), ("c",)]
    with pytest.raises(
        ValueError, match=r"has no caption column 'caption'; it has image, text\. Pass --caption_column"
    ):
        load_benchmark(f"retrieval={source}")


@pytest.mark.parametrize(
    ("kind", "cell", "message"),
    [
        (List(Value("string")), [], "item 1 of .* has no caption"),
        (List(Value("string")), ["b", None], "item 1 has None for a caption; a caption must be a string"),
        (Value("string"), None, "item 1 of .* has no 'caption'"),
        (Value("int64"), 5, "item 0 has 5 for a caption; a caption must be a string"),
    ],
)
def test_retrieval_captions_that_are_none(kind, cell, message, tmp_path):
    good = {List: ["a"], Value: "a"}[type(kind)] if cell != 5 else 5
    rows = [{"image": picture(0), "caption": good}, {"image": picture(1), "caption": cell}]
    source = save(tmp_path / "data", rows, caption=kind)
    with pytest.raises(ValueError, match=message):
        load_benchmark(f"retrieval={source}")


def test_missing_images_of_retrieval_and_classification(tmp_path):
    rows = [{"image": content, "caption": "a"} for content in (picture(0), None, picture(0), None)]
    source = save(tmp_path / "data", rows, caption=Value("string"))
    for name in ("retrieval", "classification"):
        options = {"label_column": "caption"}
        with pytest.raises(ValueError, match=r"images of 2 of 4 items are missing .*the first of item 1\."):
            load_benchmark(f"{name}={source}", Options(**options))
        counts = load_benchmark(f"{name}={source}", Options(allow_missing=True, **options)).source
        assert counts["missing_images"] == 2
        assert counts["items"] == (1 if name == "retrieval" else 2)


def test_the_shapes_world():
    benchmark = load_benchmark("shapes:validation")
    assert benchmark.kind == "winoground"
    assert benchmark.source["name"] == "sdsclip_hf.shapes"
    assert benchmark.source["revision"] == version("sdsclip_hf")
    assert benchmark.source["items"] == len(benchmark.items) == benchmark.source["published_items"]
    for item in benchmark.items[:20]:
        assert sorted(item.captions[0].split()) == sorted(item.captions[1].split())
        assert len(item.images) == 2 and picture_key(item.images[0]) != picture_key(item.images[1])
    with pytest.raises(ValueError, match=r"^shapes=org/name: the shapes pairs are made by the package"):
        load_benchmark("shapes=org/name")
    with pytest.raises(ValueError, match="'dev'"):
        load_benchmark("shapes:dev")
    retrieval = load_benchmark("retrieval:validation=shapes")
    assert all(item.captions for item in retrieval.items)
