"""Wrong captions of another dataset beside the pictures of the same ids."""

import datasets
import pytest

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
BY = {"picture_id": "file", "id_pattern": r"[0-9]+(?=\.jpg)|^[0-9]+$"}


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
        (BY | {"negative_column": "foil"}, "the column 'foil' is not there to join by; the dataset has 'image_id', 'neg"),
        (BY | {"id_pattern": "[a-z]{9}"}, r"does not fit the id_pattern '\[a-z\]\{9\}'"),
        ({"picture_id": "file"}, "no picture has the id of a wrong caption: .* like 'COCO_.*jpg', wrong captions like '42'"),
    ],
)  # fmt: skip
def test_what_cannot_be_joined_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        join_negatives(PICTURES, WRONG, **options)
