"""Rows of pictures and captions: their columns, the caption that each epoch draws, pictures kept in memory."""

from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from conftest import make_processor
from image_captions import (
    EVERYTHING,
    FEATURES,
    ROWS,
    Untyped,
    content,
    drawn,
    many_captions,
    picture,
    table,
    write_paths_with_bad_ones,
)
from pictures import encoded
from PIL import Image
from torch.utils.data import DataLoader

from sdsclip_hf.data import captioned_images
from sdsclip_hf.data.captioned_images import ImageCaptionDataset
from sdsclip_hf.data.collator import ImageCaptionCollator
from sdsclip_hf.data.images import BadImages, read_image
from sdsclip_hf.data.loading import load_image_captions
from sdsclip_hf.data.scores import CandidateScores
from sdsclip_hf.data.streams import as_training_data
from sdsclip_hf.scoring.caption_items import CaptionedRows

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_dataset_with_an_output_format_is_read_like_any_other():
    for kind in ("numpy", "torch"):
        assert content(as_training_data(table().with_format(kind))) == EVERYTHING
        dataset = as_training_data(many_captions().with_format(kind))
        assert drawn(dataset, 1) == drawn(as_training_data(many_captions()), 1)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("columns", "missing", "option"),
    [
        ({"image_column": "picture"}, "picture", "--image_column"),
        ({"caption_column": "txt"}, "txt", "--caption_column"),
    ],
)
def test_an_unknown_column_is_an_error_that_tells_the_columns_there_are(columns, missing, option, streaming):
    source = table().to_iterable_dataset() if streaming else table()
    with pytest.raises(ValueError, match=rf"'{missing}' not found; the dataset has 'image', 'caption'. Pass {option}"):
        as_training_data(source, **columns)


def test_a_folder_of_images_without_captions_is_an_error_that_tells_the_columns_there_are(tmp_path):
    picture(1).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match="caption column 'caption' not found; the dataset has 'image'"):
        as_training_data(load_image_captions(str(tmp_path)))


def test_a_column_that_holds_no_images_is_an_error_that_names_the_option():
    source = datasets.Dataset.from_dict({"image": [3, 4], "caption": ["a", "b"]})
    with pytest.raises(TypeError, match=r"3 is no image, but a int.*--image_column"):
        as_training_data(source)[0]


@pytest.mark.parametrize("streaming", [False, True])
def test_the_drawn_captions_are_told_by_seed_and_epoch_alone(streaming):
    source = many_captions().to_iterable_dataset() if streaming else many_captions()
    first, again, other_seed = (as_training_data(source, seed=seed) for seed in (5, 5, 6))
    later = drawn(first, 3)
    assert drawn(again, 3) == later == drawn(first, 3)
    assert drawn(first, 4) != later
    assert drawn(other_seed, 3) != later


def test_the_drawn_caption_does_not_depend_on_the_order_of_reading():
    dataset = as_training_data(many_captions())
    in_order = drawn(dataset, 2)
    assert [dataset[number]["caption"] for number in reversed(range(20))] == in_order[::-1]


@pytest.mark.parametrize("streaming", [False, True])
def test_every_caption_of_a_row_is_drawn_equally_often(streaming):
    source = many_captions(10)
    dataset = as_training_data(source.to_iterable_dataset() if streaming else source)
    counts = Counter(caption for epoch in range(90) for caption in drawn(dataset, epoch))
    assert set(counts) == {f"{row} {c}" for row in range(10) for c in range(3)}
    for c in range(3):  # 900 draws: 300 expected, standard deviation 14
        assert 240 < sum(count for caption, count in counts.items() if caption.endswith(f" {c}")) < 360


def test_rows_and_epochs_draw_independently():
    dataset = as_training_data(many_captions(60))
    first, second = ([caption[-1] for caption in drawn(dataset, epoch)] for epoch in (0, 1))
    for one, other in ((first, second), (first[1:], second[:-1]), (first[1:], first[:-1]), (first, first[::-1])):
        alike = sum(a == b for a, b in zip(one, other, strict=True))
        assert 8 < alike < 34  # of about 60: 20 expected, standard deviation 3.7


def test_the_data_loader_of_accelerate_tells_the_epoch():
    dataset = as_training_data(many_captions())
    loader = prepare_data_loader(DataLoader(dataset, batch_size=4, collate_fn=list), put_on_device=False)
    loader.set_epoch(7)
    assert [example["caption"] for batch in loader for example in batch] == drawn(as_training_data(many_captions()), 7)


@pytest.mark.parametrize("streaming", [False, True])
def test_workers_that_live_on_draw_anew_each_epoch(streaming):
    source = many_captions(12)
    dataset = as_training_data(source.to_iterable_dataset(num_shards=1) if streaming else source)
    workers = 1 if streaming else 2
    loader = DataLoader(dataset, batch_size=2, collate_fn=list, num_workers=workers, persistent_workers=True)
    for epoch in (0, 1, 5):
        dataset.set_epoch(epoch)
        got = [example["caption"] for batch in loader for example in batch]
        assert got == drawn(as_training_data(many_captions(12)), epoch)


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        (["fine", None], "None"),
        ([4.5, 7.0], "4.5"),
        ([["fine"], ["fine", None]], r"\['fine', None\]"),
        ([["fine"], []], r"\[\]"),
        ([[1, 2], [3]], r"\[1, 2\]"),
        ([{"en": "a cat"}, {"en": "a dog"}], "'en'"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_captions_that_are_no_strings_are_an_error_that_names_row_column_and_option(cells, told, streaming):
    rows = {"image": [encoded(picture(1))] * 2, "words": cells}
    source = datasets.Dataset.from_dict(rows)
    dataset = as_training_data(source.to_iterable_dataset() if streaming else source, caption_column="words")
    bad_row = 1 if cells[0] in ("fine", ["fine"]) else 0
    row = "row captioned .*, checksum [0-9a-f]{8}" if streaming else f"row {bad_row}"  # no file tells its place
    with pytest.raises(ValueError, match=rf"^{row}: column 'words' holds .*{told}.*--caption_column"):
        list(dataset)


@pytest.mark.parametrize("cell", [None, 3, [], ["a dog", None], {"a": 1}], ids=repr)
def test_odd_captions_are_told_alike_wherever_all_of_them_are_read(cell, scores_folder):
    scores = CandidateScores.load(scores_folder)
    rows = Untyped({"image": picture(0), "caption": caption} for caption in (scores.caption(0), cell))
    told = r"row 1: column 'caption' holds .*; a caption must be a string or a list of strings.*--caption_column"
    with pytest.raises(ValueError, match=told):
        ImageCaptionDataset(rows)[1]
    with pytest.raises(ValueError, match=told):
        ImageCaptionDataset(rows).captions()
    with pytest.raises(ValueError, match=told):
        ImageCaptionDataset(rows, scores=scores).check_scores()
    with pytest.raises(ValueError, match=told):
        CaptionedRows(rows).captions  # noqa: B018


def test_indices_beyond_the_end_are_errors_so_that_plain_iteration_ends():
    dataset = as_training_data(table())
    assert len(list(dataset)) == len(dataset) == ROWS
    assert dataset[-1]["caption"] == "caption 5"
    with pytest.raises(IndexError):
        dataset[ROWS]


def test_pictures_kept_in_memory_give_the_same_batches_and_are_read_once(monkeypatch):
    processor, reads = make_processor(), []
    monkeypatch.setattr(captioned_images, "read_image", lambda cell: reads.append(1) or read_image(cell))
    source = datasets.Dataset.from_list(
        [{"image": Image.fromarray(np.random.default_rng(row).integers(0, 256, (20 + row, 30, 3), np.uint8)), "caption": "a"}
         for row in range(4)],
        features=FEATURES,
    )  # fmt: skip
    collate = ImageCaptionCollator(processor)
    plain = collate([as_training_data(source)[row] for row in (3, 0, 0)])["pixel_values"]
    reads.clear()
    for _ in range(2):  # a later dataset of the same rows finds them, too
        kept = as_training_data(source, image_processor=processor.image_processor)
        assert torch.equal(collate([kept[row] for row in (3, 0, 0)])["pixel_values"], plain)
    assert len(reads) == 2
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]  # another preprocessing shares nothing
    other = as_training_data(source, image_processor=processor.image_processor)
    assert not torch.equal(collate([other[3]])["pixel_values"], plain[:1])
    turned = as_training_data(source.select([3, 2, 1, 0]), image_processor=make_processor().image_processor)
    assert torch.equal(collate([turned[0]])["pixel_values"], plain[:1])


def test_an_unreadable_image_is_replaced_where_pictures_are_kept(tmp_path):
    source = write_paths_with_bad_ones(tmp_path)
    options = [{}, {"image_processor": make_processor().image_processor}]
    plain, kept = (
        as_training_data(source, bad_images=BadImages(4, tmp_path / "bad.txt"), **given) for given in options
    )
    captions = [[dataset[row]["caption"] for _ in range(2) for row in range(len(dataset))] for dataset in (plain, kept)]
    assert captions[0] == captions[1]
