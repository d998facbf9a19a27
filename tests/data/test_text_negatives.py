"""Wrong captions of another dataset beside the pictures of the same ids."""

import json
import re
import shutil

import datasets
import pytest
from PIL import Image

from sdsclip_hf.commands.join_negatives import main
from sdsclip_hf.common.writing import own_name, remove
from sdsclip_hf.data.loading import load_image_captions
from sdsclip_hf.data.text_negatives import join_negatives

PICTURES = datasets.Dataset.from_dict(
    {
        "file": ["COCO_train2014_000000000042.jpg", "x_7.jpg", "x_8.jpg"],
        "caption": [["a cat", "The cat sits."], ["a dog"], ["a"]],
    }
)
WRONG = datasets.Dataset.from_dict(
    {"image_id": [42, 7, 42, 42, 99], "negative_caption": ["a dog", "two dogs", "the cat sits", "A dog!", "a hat"]}
)  # fmt: skip
BY = {"image_id_column": "file", "id_pattern": r"[0-9]+(?=\.jpg)|^[0-9]+$"}


@pytest.mark.parametrize("listed", [False, True])
def test_each_picture_has_the_wrong_captions_of_its_id(listed):
    wrong = WRONG
    if listed:
        wrong = datasets.Dataset.from_dict(
            {"image_id": [42, 7], "negative_caption": [["a dog", "the cat sits", "A dog!"], ["two dogs"]]}
        )
    found = join_negatives(PICTURES, wrong, **BY)
    assert found["negative_captions"][:] == [["a dog"], ["two dogs"], []]
    assert found.remove_columns("negative_captions")[:] == PICTURES[:]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            BY | {"negative_caption_column": "foil"},
            "negative caption column 'foil' not found; the dataset of negatives has 'image_id', 'neg.*_caption_column",
        ),
        ({}, "id column 'image_id' not found; the dataset of pictures has 'file', 'caption'. Pass --image_id_column."),
        (BY | {"id_pattern": "[a-z]{9}"}, r"does not fit the id_pattern '\[a-z\]\{9\}'"),
        ({"image_id_column": "file"}, "no picture has the id of a wrong caption: .* like 'COCO_.*jpg', .* like '42'"),
    ],
)  # fmt: skip
def test_what_cannot_be_joined_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        join_negatives(PICTURES, WRONG, **options)


def test_the_command_writes_a_dataset_that_stands_alone(tmp_path, capsys):
    source, out = tmp_path / "pictures", tmp_path / "joined"
    source.mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8), (100 * number, 0, 0)).save(source / f"{number}.png")
    with (source / "metadata.jsonl").open("w") as lines:
        for number, row in enumerate(PICTURES):
            print(json.dumps({"file_name": f"{number}.png", "file": row["file"], "text": row["caption"]}), file=lines)
    many = [
        f"{word} hats" for word in ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]
    ]
    wrong = datasets.concatenate_datasets(
        [WRONG, datasets.Dataset.from_dict({"image_id": [7] * 10, "negative_caption": many})]
    )
    wrong.to_parquet(tmp_path / "wrong.parquet")
    words = ["--dataset_name", source, "--negatives_dataset_name", tmp_path / "wrong.parquet", "--output_dir", out]
    words += ["--image_id_column", "file", "--caption_column", "text", "--id_pattern", BY["id_pattern"]]
    left = own_name(out / "new")  # of a process that was killed
    remove(left)
    left.mkdir(parents=True)
    main([*map(str, words)])
    printed = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "3 pictures are in" in printed and "captions: 0: 1, 1: 1, 10 or more: 1" in printed
    shutil.rmtree(source)
    found = load_image_captions(str(out))
    assert found["negative_captions"][:] == [["a dog"], ["two dogs", *many], []]
    assert [image.getpixel((0, 0))[0] for image in found["image"]] == [0, 100, 200]
    with pytest.raises(SystemExit, match="joined holds something already; give --output_dir a new folder"):
        main([*map(str, words)])
