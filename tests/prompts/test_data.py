"""Labelled data: any source alike, picks that can be had again, halves of the classes, the labelled shapes."""

import json
import random
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from sdsclip_hf.prompts.data.attributes import check_attributes
from sdsclip_hf.prompts.data.few_shot import classes_of, few_shot
from sdsclip_hf.prompts.data.shapes import CLASSES, PAIRS, SHIFTS, load_labelled_shapes
from sdsclip_hf.prompts.data.sources import load_labelled
from sdsclip_hf.prompts.data.templates import TEMPLATES, template_of
from sdsclip_hf.shapes.scenes import COLORS

NAMES = ["tabby_cat", "dog", "ant", "bee", "cow"]
COUNTS = [6, 5, 4, 6, 2]


@pytest.fixture(scope="module")
def class_folders(tmp_path_factory):
    """A folder of class folders, whose pictures each have a colour of their own; and split_zhou_Tiny.json beside them."""
    folder = tmp_path_factory.mktemp("animals")
    rows = []
    for label, (name, count) in enumerate(zip(sorted(NAMES), COUNTS, strict=True)):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(count):
            path = f"{name}/{number}.png"
            Image.new("RGB", (8, 8), (label * 40, number * 30, 7)).save(folder / "images" / path)
            rows.append([path, label, name])
    (folder / "split_zhou_Tiny.json").write_text(json.dumps({"train": rows, "val": rows[:8], "test": rows[3:]}))
    return folder


def told(dataset):
    """Rows as (class, colour of the picture), in order."""
    names = dataset.features["label"].names
    return [(names[row["label"]], row["image"].convert("RGB").getpixel((0, 0))) for row in dataset]


def test_sources_of_the_same_pictures_give_the_same_rows(class_folders, tmp_path):
    """A folder of class folders, split_zhou_*.json, parquet with a ClassLabel, and one with texts under other names."""
    folders = load_labelled(str(class_folders / "images"))
    assert folders.features["label"].names == ["ant", "bee", "cow", "dog", "tabby cat"]
    assert folders.column_names == ["image", "label"] and Counter(folders["label"]) == dict(enumerate(COUNTS))
    zhou = load_labelled(str(class_folders))
    assert load_labelled(str(class_folders), "validation").num_rows == 8
    folders.to_parquet(tmp_path / "labels.parquet")
    words = [sorted(NAMES)[label] for label in folders["label"]]
    texts = folders.remove_columns("label").rename_column("image", "picture").add_column("kind", words)
    texts.add_column("how", ["red"] * len(words)).to_parquet(tmp_path / "texts.parquet")
    labels = load_labelled(str(tmp_path / "labels.parquet"))
    from_texts = load_labelled(str(tmp_path / "texts.parquet"), label_column="kind", attribute_column="how")
    assert from_texts.column_names == ["image", "label", "attribute"] and set(from_texts["attribute"]) == {"red"}
    for other in (zhou, labels, from_texts):
        assert other.features["label"] == folders.features["label"]
        assert sorted(told(other)) == sorted(told(folders))


def test_classes_can_be_renamed_and_absent_ones_dropped(class_folders):
    names = ["emmet", "bumblebee", "ox", "hound", "cat"]
    renamed = load_labelled(str(class_folders), "test", class_names=names)
    assert renamed.features["label"].names == names
    table = json.loads((class_folders / "split_zhou_Tiny.json").read_text())
    table["test"] = [row for row in table["test"] if row[2] in ("bee", "dog")]
    (class_folders / "two").mkdir(exist_ok=True)
    (class_folders / "two" / "split_zhou_Two.json").write_text(json.dumps(table))
    two = load_labelled(str(class_folders / "two"), "test", image_dir=str(class_folders / "images"), present_only=True)
    assert two.features["label"].names == ["bee", "dog"] and set(two["label"]) == {0, 1}
    assert Counter(name for name, _ in told(two)) == {"bee": 5, "dog": 6}


def test_picks_do_not_depend_on_order_or_state_or_on_other_classes():
    """Of pictures in memory by their content; the shots of a seed are nested, those of another seed differ."""
    data = load_labelled_shapes("train", per_class=20)
    picked = few_shot(data, 4, seed=1)
    assert Counter(picked["label"]) == dict.fromkeys(range(10), 4) and picked["label"][:] == sorted(picked["label"])
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    assert pictures(few_shot(data.shuffle(seed=3), 4, seed=1)) == pictures(picked)
    assert set(pictures(picked)) < set(pictures(few_shot(data, 8, seed=1)))
    others = len(set(pictures(few_shot(data, 4, seed=2))) - set(pictures(picked)))
    assert 16 < others <= 40  # of 40 picks 32 differ on average
    before, after = few_shot(classes_of(data, "new"), 4, seed=1), classes_of(picked, "new")
    assert pictures(before) == pictures(after) and before["label"][:] == after["label"][:]


def pictures(dataset):
    return [row["image"].tobytes() for row in dataset]


def test_picks_are_saved_and_had_again(tmp_path, class_folders, caplog):
    """By the names of their files, from a table as from folders; a file of other picks is refused."""
    file = tmp_path / "picks" / "seed1.json"
    folders = load_labelled(str(class_folders / "images"))
    picked = few_shot(folders, 4, 1, picks=file)
    assert "1 of 5 classes have fewer than 4 pictures" in caplog.text and "'tabby cat' (2)" in caplog.text
    content = json.loads(file.read_text())
    assert len(picked) == 4 * 4 + 2
    content["pictures"]["ant"] = ["5.png", "0.png"]
    file.write_text(json.dumps(content))
    again = told(few_shot(load_labelled(str(class_folders)), 4, 1, picks=file))
    assert again[:2] == [("ant", (0, 150, 7)), ("ant", (0, 0, 7))] and again[2:] == told(picked)[4:]
    with pytest.raises(ValueError, match="holds picks of 4 shots by seed 1 of 5 classes, not of 4 shots by seed 2"):
        few_shot(folders, 4, 2, picks=file)
    content["pictures"]["bee"][1] = "elsewhere.png"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"names the picture 'elsewhere\.png' of the class 'bee'"):
        few_shot(folders, 4, 1, picks=file)


def test_halves_are_those_of_the_published_code(class_folders):
    """ceil(n / 2) base classes by label, the rest new and labelled from 0: Dassl's subsample_classes."""
    data = load_labelled(str(class_folders))
    base, new = classes_of(data, "base"), classes_of(data, "new")
    assert base.features["label"].names == ["ant", "bee", "cow"] and new.features["label"].names == ["dog", "tabby cat"]
    assert set(new["label"]) == {0, 1} and classes_of(data, "all") is data
    assert told(base) + told(new) == told(data)


def test_the_labelled_shapes_are_balanced_and_their_own():
    """Ten pairs in two rings; equal colours; as drawn before; splits and domains without a picture in common."""
    data = load_labelled_shapes("validation", "shifted", per_class=15)
    assert len(set(map(frozenset, PAIRS))) == 10 and data.features["label"].names == list(CLASSES)
    for half in (PAIRS[:5], PAIRS[5:]):
        assert set(Counter(shape for pair in half for shape in pair).values()) == {2}
    for label in range(10):
        rows = data.select(range(15 * label, 15 * label + 15))
        assert set(rows["label"]) == {label} and Counter(rows["attribute"]) == dict.fromkeys(COLORS, 3)
    assert pictures(data) == pictures(load_labelled_shapes("validation", "shifted", per_class=15))
    drawn = [load_labelled_shapes(*what, per_class=3) for what in (("train",), ("test",), ("test", "lines"))]
    assert len({one for part in drawn for one in pictures(part)}) == 90
    assert {one["image"].size for one in drawn[2]} == {(32, 32)}


def covered(dataset):
    """The share of each picture that is not of its background, and whether that is a colour."""
    found = []
    for row in dataset:
        corner = row["image"].getpixel((0, 0))
        far = np.abs(np.asarray(row["image"]).astype(int) - corner).sum(-1) > 60
        found.append((far.mean(), max(corner) > min(corner)))
    return np.array(found).T


@pytest.mark.parametrize("shift", SHIFTS)
def test_shifted_domains_differ_in_what_they_are_named_after(shift):
    """Told by the pixels: the background has a colour, things are smaller or larger, or hollow."""
    share, colored = covered(load_labelled_shapes("train", shift, per_class=5))
    usual, grey = covered(load_labelled_shapes("train", per_class=5))
    assert not grey.any() and colored.all() == colored.any() == (shift == "background")
    if shift == "size":
        assert share.min() < 0.7 * usual.min() and share.max() > 1.1 * usual.max()
    if shift == "lines":
        assert share.mean() < 0.95 * usual.mean()


def test_templates_have_one_place_each():
    assert len(TEMPLATES) == 16 and template_of("dtd") == "{} texture." and template_of("my {}") == "my {}"
    assert all(template_of(name).count("{}") == 1 for name in TEMPLATES)
    with pytest.raises(ValueError, match=r"the prompt template 'a photo' has 0 places"):
        template_of("a photo")


BAD = {
    "column": ({"label_column": "kind"}, "has no label column 'kind'"),
    "attributes": ({"attribute_column": "how"}, "has no attribute column 'how'; its columns are image, label"),
    "names": ({"class_names": ["a"]}, "1 class names are given for the 5 classes"),
    "double": ({"class_names": ["a_b", "a b", "c", "d", "e"]}, "the class name 'a b' stands twice"),
    "empty": ({"class_names": ["a", " ", "c", "d", "e"]}, "class 1 has the name ''"),
    "split": ({"split": "dev"}, r"split_zhou_Tiny\.json has no split 'dev'; choose from train, val, test"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_sources_are_refused(class_folders, case):
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        load_labelled(str(class_folders), **options)


def test_what_the_data_lack_is_named(class_folders, tmp_path):
    data = load_labelled_shapes("train", per_class=1)
    with_gaps = data.remove_columns("attribute").add_column("attribute", ["red", "", None, *["blue"] * 7])
    with pytest.raises(ValueError, match=r"2 of 10 rows of mine have no attribute: 1, 2\. "):
        check_attributes(with_gaps, "mine")
    path = tmp_path / "one.parquet"
    data.select([0]).cast_column("label", datasets.ClassLabel(names=["only"])).to_parquet(path)
    with pytest.raises(ValueError, match=r"there is 1 class \(only\), and nothing to tell it from"):
        load_labelled(str(path))
    unknown = data.remove_columns("label").add_column("label", ["a", None, "b", *["c"] * 7])
    unknown.to_parquet(tmp_path / "unknown.parquet")
    with pytest.raises(ValueError, match=r"1 of 10 rows of .* have no label, the first of them row 1"):
        load_labelled(str(tmp_path / "unknown.parquet"))
    with pytest.raises(ValueError, match="shots is 0"):
        few_shot(data, 0, 1)
    with pytest.raises(ValueError, match=r"9 of 10 classes have no picture in this split, the first 'square and"):
        few_shot(data.select([0]), 1, 1)
    with pytest.raises(ValueError, match="there are no classes 'novel'"):
        classes_of(data, "novel")
    with pytest.raises(ValueError, match="3 classes do not make two halves"):
        classes_of(three(data), "base")
    with pytest.raises(ValueError, match="unknown domain 'dark'"):
        load_labelled("shapes/dark")


def three(data):
    return data.select([0, 1, 2]).cast_column("label", datasets.ClassLabel(names=["a", "b", "c"]))
