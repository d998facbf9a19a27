"""Streams: shared by processes and workers, shuffled anew each epoch, and gone on with where they stopped."""

from itertools import islice

import datasets
import pytest
from image_captions import (
    EVERYTHING,
    ROWS,
    content,
    drawn,
    many_captions,
    picture,
    table,
    write_parquet_file,
    write_parquet_folder,
    write_webdataset,
)
from pictures import encoded
from torch.utils.data import DataLoader

from sdsclip_hf.data.captioned_images import ImageCaptionDataset
from sdsclip_hf.data.images import BadImages, read_image
from sdsclip_hf.data.loading import load_image_captions
from sdsclip_hf.data.streams import PASSED_OVER, EndlessStream, StreamingImageCaptionDataset, as_training_data

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_stream_of_unknown_columns_works_and_tells_them_in_errors():
    def rows():
        for number in range(ROWS):
            yield {"number": number, "image": picture(number), "caption": f"caption {number}"}

    source = datasets.IterableDataset.from_generator(rows)
    assert source.column_names is None
    assert content(as_training_data(source)) == EVERYTHING
    with pytest.raises(ValueError, match="'text' not found; the dataset has 'number', 'image', 'caption'"):
        as_training_data(source, caption_column="text")


def test_a_mapped_webdataset_stream_works(tmp_path):
    stream = load_image_captions(write_webdataset(tmp_path / "source"), streaming=True)
    mapped = stream.map(lambda row: {"image": row["png"], "caption": row["txt"]}, remove_columns=["png", "txt"])
    assert mapped.column_names is None
    assert content(as_training_data(mapped)) == EVERYTHING


@pytest.mark.parametrize("write", [write_parquet_folder, write_parquet_file, write_webdataset])
@pytest.mark.parametrize("count", [None, 5])
def test_workers_of_a_stream_share_the_rows_without_repeating_any(write, count, tmp_path):
    source = load_image_captions(write(tmp_path / "source"), streaming=True, max_samples=count)
    columns = {"image_column": "png", "caption_column": "txt"} if write is write_webdataset else {}
    loader = DataLoader(as_training_data(source, **columns), batch_size=2, num_workers=2, collate_fn=list)
    captions = [example["caption"] for batch in loader for example in batch]
    assert len(captions) == len(set(captions)) == (count or ROWS)


def test_the_epoch_reorders_a_shuffled_stream_and_tells_its_order():
    stream = table().to_iterable_dataset().shuffle(seed=1, buffer_size=ROWS)
    dataset = as_training_data(stream)
    orders = [drawn(dataset, epoch) for epoch in (0, 1, 2, 1)]
    assert orders[1] == orders[3]
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == [caption for _, caption in EVERYTHING] for order in orders)


@pytest.fixture
def decoded(monkeypatch):
    """How many pictures were decoded, as a list of one number."""
    count = [0]

    def read(cell):
        count[0] += 1
        return read_image(cell)

    monkeypatch.setattr("sdsclip_hf.data.captioned_images.read_image", read)
    return count


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("shards", [6, 3, 1])  # for two processes: whole shards in the first case, else rows
@pytest.mark.parametrize("write", [None, write_parquet_folder])
def test_processes_share_a_stream_each_pass_and_decode_their_own_rows_alone(
    write, shards, shuffled, tmp_path, decoded, monkeypatch
):
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # seconds after each pass over parquet
    stream = table().to_iterable_dataset(num_shards=shards)
    if write is not None:
        stream = load_image_captions(write(tmp_path / "source"), streaming=True)
    if shuffled:
        stream = stream.shuffle(seed=3, buffer_size=4)
    orders = []
    for epoch in (0, 1):
        shares = [as_training_data(stream).share(rank, 2) for rank in (0, 1)]
        for share in shares:
            share.set_epoch(epoch)
        decoded[0] = 0
        rows = [content(share) for share in shares]
        assert sorted(rows[0] + rows[1]) == EVERYTHING
        assert {len(of_one) for of_one in rows} == {ROWS // 2}
        assert decoded[0] == ROWS
        orders.append([example["caption"] for example in shares[0]])
    assert not shuffled or orders[0] != orders[1]


def test_a_row_of_a_share_draws_the_caption_that_it_draws_in_the_whole_stream():
    whole = drawn(as_training_data(many_captions(12).to_iterable_dataset()), 1)
    shares = [drawn(as_training_data(many_captions(12).to_iterable_dataset()).share(rank, 5), 1) for rank in range(5)]
    assert [shares[number % 5][number // 5] for number in range(12)] == whole


def test_a_stream_that_was_split_by_node_stays_as_it_is():
    half = datasets.distributed.split_dataset_by_node(table().to_iterable_dataset(), 1, 2)
    assert content(as_training_data(half).share(0, 2)) == EVERYTHING[1::2]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("passed", [0, 1, 3, 8])
def test_a_stream_that_goes_on_gives_the_same_batches_as_one_that_never_stopped(workers, passed, decoded):
    def batches(passed_over: int) -> list[list[dict]]:
        source = many_captions(10).to_iterable_dataset(num_shards=2).shuffle(seed=1, buffer_size=4)
        stream = EndlessStream(as_training_data(source), 2, passed_over)
        return list(islice(DataLoader(stream, batch_size=2, num_workers=workers, collate_fn=list), 11))

    whole = batches(0)
    decoded[0] = 0
    later = batches(passed)
    assert later[:passed] == [[PASSED_OVER] * 2] * passed
    assert [[row["caption"] for row in batch] for batch in later[passed:]] == [
        [row["caption"] for row in batch] for batch in whole[passed:]
    ]
    assert workers or decoded[0] == 2 * (11 - passed)


def test_bad_images_do_not_move_the_place_where_a_stream_goes_on(tmp_path):
    cells = [encoded(picture(1)) if number % 4 else b"words" for number in range(16)]
    source = datasets.Dataset.from_dict({"image": cells, "caption": [f"caption {n}" for n in range(16)]})

    def captions(passed_over: int) -> list[str | None]:
        dataset = as_training_data(source.to_iterable_dataset(), bad_images=BadImages(4, tmp_path / "bad.txt"))
        return [row.get("caption") for row in islice(EndlessStream(dataset, 3, passed_over), 15)]

    assert captions(2) == [None] * 6 + captions(0)[6:]


def test_kinds_of_training_data_follow_the_source():
    assert isinstance(as_training_data(table()), ImageCaptionDataset)
    assert isinstance(as_training_data(table().to_iterable_dataset()), StreamingImageCaptionDataset)
