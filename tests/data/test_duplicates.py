"""What counts as the same caption or picture, and the numbers that tell it in a batch."""

import pytest
import torch
from captions import ALIKE, DIFFERENT
from conftest import make_processor

from sdsclip_hf.data.captioned_images import ImageCaptionDataset
from sdsclip_hf.data.collator import ImageCaptionCollator
from sdsclip_hf.data.duplicates import caption_key, picture_keys, plain_words


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_every_mark_and_sign_makes_another_caption(one, other):
    assert plain_words(one) != plain_words(other)
    assert caption_key(one) != caption_key(other)


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_case_pauses_and_forms_of_the_same_letters_make_none(one, other):
    assert plain_words(one) == plain_words(other)
    assert caption_key(one) == caption_key(other) > 0


def test_a_picture_is_known_by_all_its_pixels():
    pixels = torch.randn(3, 3, 5, 4)
    pixels[2] = pixels[0]
    one, other, again = picture_keys(pixels).tolist()
    assert one == again != other and min(one, other) > 0
    assert picture_keys(pixels.flip(0)).tolist() == [again, other, one]  # whatever else is in the batch
    pixels[2, 2, 4, 3] += 1e-3
    assert picture_keys(pixels)[2] != one


def test_a_batch_tells_which_of_its_pictures_and_captions_are_equal(several_captions):
    rows = [several_captions[number] for number in (0, 1, 0)]
    rows[1]["caption"] = [rows[0]["caption"][2].upper() + ".", "a dog"]  # another picture, one caption the same
    data = ImageCaptionDataset(several_captions.from_list(rows, features=several_captions.features))
    collate = ImageCaptionCollator(make_processor())
    batch = collate([data[number] for number in range(3)])
    assert batch["picture_keys"][0] == batch["picture_keys"][2] != batch["picture_keys"][1]
    assert batch["caption_keys"].shape == (3, 3)
    for number, keys in enumerate(batch["caption_keys"].tolist()):
        assert keys[0] == caption_key(data[number]["caption"])
        assert set(keys) - {0} == {caption_key(text) for text in rows[number]["caption"]}
    assert batch["caption_keys"][1, 2] == 0  # it has two captions
    assert "picture_keys" not in ImageCaptionCollator(make_processor(), with_keys=False)([data[0], data[1]])


def test_captions_that_the_text_tower_cuts_to_the_same_tokens_are_the_same(pairs):
    long = "red dog " * 20
    collate = ImageCaptionCollator(make_processor())
    texts = long + "cat", long + "tree", "blue " + long
    keys = collate([{"image": pairs[0]["image"], "caption": text} for text in texts])["caption_keys"][:, 0].tolist()
    assert keys[0] == keys[1] != keys[2]
