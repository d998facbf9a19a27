"""Unreadable images: passed over, named once in a file by all who meet them, and limited in number."""

import multiprocessing
from pathlib import Path

import datasets
import pytest
from image_captions import BAD, ROWS, content, drawn, picture, write_imagefolder, write_paths_with_bad_ones
from pictures import encoded
from torch.utils.data import DataLoader

from sdsclip_hf.data.images import BadImageError, BadImages
from sdsclip_hf.data.loading import load_image_captions
from sdsclip_hf.data.streams import as_training_data

pytestmark = pytest.mark.usefixtures("own_cache")


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_an_unreadable_image_is_replaced_by_the_next_readable_one(tmp_path):
    dataset = as_training_data(write_paths_with_bad_ones(tmp_path), bad_images=BadImages(4, tmp_path / "bad.txt"))
    assert [example["caption"][-1] for example in dataset] == list("02255577")


def test_a_stream_passes_over_unreadable_images(tmp_path):
    source = write_paths_with_bad_ones(tmp_path).to_iterable_dataset()
    dataset = as_training_data(source, bad_images=BadImages(4, tmp_path / "bad.txt"))
    assert [example["caption"][-1] for example in dataset] == list("0257")


@pytest.mark.parametrize("streaming", [False, True])
def test_each_bad_image_is_named_once_over_epochs_and_runs(streaming, tmp_path):
    source, file = write_paths_with_bad_ones(tmp_path), tmp_path / "run" / "bad_images.txt"
    for _ in range(2):
        dataset = as_training_data(source.to_iterable_dataset() if streaming else source, bad_images=BadImages(4, file))
        for epoch in range(2):
            assert drawn(dataset, epoch)
    lines = lines_of(file)
    assert sorted(line.split("\t")[0] for line in lines) == sorted(str(tmp_path / name) for name in BAD.values())
    assert all(line.split("\t")[1] for line in lines)


def test_one_bad_image_more_than_the_limit_is_an_error_that_names_it_and_the_option(tmp_path):
    file = tmp_path / "bad_images.txt"
    dataset = as_training_data(write_paths_with_bad_ones(tmp_path), bad_images=BadImages(3, file))
    assert [dataset[number]["caption"][-1] for number in range(5)] == list("02255")
    with pytest.raises(BadImageError, match=r"4 images or .*missing\.png.*bad_images\.txt.*--max_bad_images \(now 3\)"):
        dataset[6]
    assert len(lines_of(file)) == 4


def test_without_a_limit_the_first_bad_image_is_an_error_that_names_it(tmp_path):
    with pytest.raises(BadImageError, match=r"1 image or caption could .*truncated\.jpg.*--max_bad_images \(now 0\)"):
        as_training_data(write_paths_with_bad_ones(tmp_path))[1]
    with pytest.raises(ValueError, match="path is missing"):
        BadImages(3)


def test_a_dataset_of_bad_images_alone_is_an_error_however_many_may_be_skipped(tmp_path):
    source = datasets.Dataset.from_dict({"image": [b"words", b"words"], "caption": ["a", "b"]})
    with pytest.raises(BadImageError, match="none of the 2 rows has a readable image"):
        as_training_data(source, bad_images=BadImages(10, tmp_path / "bad.txt"))[0]


def test_workers_name_each_bad_image_once(tmp_path):
    cells = [encoded(picture(1)), *(b"words" for _ in range(30))]
    source = datasets.Dataset.from_dict({"image": cells, "caption": ["a"] * len(cells)})
    bad_images = BadImages(30, tmp_path / "bad.txt")  # every row leads both workers past all bad ones
    loader = DataLoader(as_training_data(source, bad_images=bad_images), 1, num_workers=2, collate_fn=list)
    for _ in range(2):
        assert len([example for batch in loader for example in batch]) == 31
    assert sorted(bad_images.names()) == sorted(f"row {number}" for number in range(1, 31))


def test_processes_that_meet_the_same_bad_images_at_once_name_each_once(tmp_path):
    bad_images = BadImages(100, tmp_path / "bad.txt")
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)

    def meet_all():
        start.wait()
        for number in range(100):
            bad_images.record(f"{number}.png", OSError("broken"))

    processes = [context.Process(target=meet_all) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(bad_images.names()) == sorted(f"{number}.png" for number in range(100))


def test_the_error_of_a_worker_arrives_as_it_is(tmp_path):
    dataset = as_training_data(write_paths_with_bad_ones(tmp_path), bad_images=BadImages(2, tmp_path / "bad.txt"))
    batches = iter(DataLoader(dataset, batch_size=1, num_workers=2, collate_fn=list))
    with pytest.raises(BadImageError, match=r"--max_bad_images \(now 2\)"):
        list(batches)
    batches._shutdown_workers()  # left to the garbage collector, it waits ten seconds for them


def test_the_unreadable_images_of_prepared_formats_are_named_too(tmp_path):
    folder = Path(write_imagefolder(tmp_path / "pairs", "metadata.csv"))
    (folder / "train" / "2.png").write_bytes(b"words")
    bad_images = BadImages(1, tmp_path / "bad.txt")
    assert len(content(as_training_data(load_image_captions(str(folder)), bad_images=bad_images))) == ROWS
    assert bad_images.names() == [str(folder / "train" / "2.png")]


@pytest.mark.parametrize("streaming", [False, True])
def test_equal_names_inside_a_dataset_are_told_apart(streaming, tmp_path):
    cells = [{"bytes": b"words", "path": "1.png"}, {"bytes": b"words", "path": "1.png"}, {"bytes": None, "path": None}]
    cells.append({"bytes": encoded(picture(1)), "path": "1.png"})
    source = datasets.Dataset.from_dict({"image": cells, "caption": ["a cat", "a dog", "a mat", "a chair"]})
    bad_images = BadImages(3, tmp_path / "bad.txt")
    dataset = as_training_data(source.to_iterable_dataset() if streaming else source, bad_images=bad_images)
    assert {example["caption"] for example in dataset} == {"a chair"}
    assert len(bad_images.names()) == 3 and sum("(1.png)" in name for name in bad_images.names()) == 2


def test_a_bad_image_of_a_shuffled_stream_is_named_once_over_epochs_and_workers(tmp_path):
    cells = [encoded(picture(1)) if number % 4 else b"words" for number in range(16)]
    source = datasets.Dataset.from_dict({"image": cells, "caption": [f"caption {n}" for n in range(16)]})
    bad_images = BadImages(4, tmp_path / "bad.txt")
    stream = source.to_iterable_dataset(num_shards=4).shuffle(seed=0, buffer_size=16)
    dataset = as_training_data(stream, bad_images=bad_images)
    loader = DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=list)
    for epoch in range(3):
        dataset.set_epoch(epoch)
        assert len([example for batch in loader for example in batch]) == 12
    assert len(bad_images.names()) == 4


def test_a_name_with_line_breaks_and_tabs_stays_one_line_and_one_image(tmp_path):
    bad_images = BadImages(5, tmp_path / "bad.txt")
    for _ in range(2):
        bad_images.record("two\nlines\tand a\u2028tab.png", OSError("no\n\tpicture"))
    assert lines_of(tmp_path / "bad.txt") == ["two lines and a tab.png\tno picture"]
