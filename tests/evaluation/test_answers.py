"""Answers on disk: parts that come back as they were, in order, and one file of all."""

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from sdsclip_hf.benchmarks.items import Benchmark, Item
from sdsclip_hf.evaluation.answers import Answers, merge


@pytest.fixture
def benchmark():
    items = [Item(f"i{n}", (), (f"a {n}", "b")[: 1 + n % 2], f"tag {n % 3}") for n in range(12)]
    return Benchmark("mine:test", "sugarcrepe", items, {})


@pytest.fixture
def scores(benchmark):
    rng = np.random.default_rng(0)
    return [rng.random((len(item.captions), 1)).astype(np.float32) for item in benchmark.items]


def test_nothing_is_read_before_anything_is_written(tmp_path, benchmark):
    answers = Answers(tmp_path / "none", "clip", benchmark)
    assert answers.read() == [] and list(answers.tables()) == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("sizes", [(12,), (5, 5, 2), (1,) * 12], ids=str)
def test_scores_come_back_bit_by_bit_and_in_order(tmp_path, benchmark, scores, sizes):
    answers, start = Answers(tmp_path, "clip", benchmark), 0
    for size in sizes:
        answers.append(start, scores[start : start + size])
        start += size
    found = Answers(tmp_path, "clip", benchmark).read()
    assert len(found) == 12 and len(list(answers.tables())) == len(sizes)
    for one, other in zip(scores, found, strict=True):
        assert other.dtype == np.float32
        np.testing.assert_array_equal(one, other)


def test_ranks_come_back_as_whole_numbers(tmp_path, benchmark):
    ranks = [np.array([[n, 2**40], [0, 1]]) for n in range(4)] + [np.array([7, 3])]
    answers = Answers(tmp_path, "clip", benchmark)
    answers.append(0, ranks)
    found = answers.read()
    assert all(np.issubdtype(one.dtype, np.integer) for one in found)
    assert [one.tolist() for one in found[:4]] == [one.tolist() for one in ranks[:4]]
    assert found[4].squeeze().tolist() == [7, 3]


def test_a_half_written_part_and_one_beyond_a_gap_are_not_read(tmp_path, benchmark, scores):
    answers = Answers(tmp_path, "clip", benchmark)
    answers.append(0, scores[:3])
    answers.append(6, scores[6:9])
    (tmp_path / "part-000000003.here-1.partial").write_bytes(b"PAR1 half of it")
    assert len(answers.read()) == 3
    answers.append(3, scores[3:5])  # in other parts than before
    answers.append(5, scores[5:])
    assert len(answers.read()) == sum(map(len, answers.tables())) == 12


def test_merged_file_tells_model_benchmark_item_tag_and_captions(tmp_path, benchmark, scores):
    answers = Answers(tmp_path / "parts", "clip", benchmark)
    for start in range(0, 12, 5):
        answers.append(start, scores[start : start + 5])
    merge(answers.tables(), tmp_path / "scores.parquet")
    rows = datasets.Dataset.from_parquet(str(tmp_path / "scores.parquet"), cache_dir=str(tmp_path / "cache"))
    assert rows["item"] == [item.identifier for item in benchmark.items]
    assert rows["tag"] == [item.tag for item in benchmark.items]
    assert rows["captions"] == [list(item.captions) for item in benchmark.items]
    assert set(rows["model"]) == {"clip"} and set(rows["benchmark"]) == {"mine:test"}
    for row, expected in zip(rows, scores, strict=True):
        np.testing.assert_array_equal(np.array(row["scores"], np.float32), expected)
        assert row["ranks"] is None


def test_merging_is_done_at_once_or_not_at_all(tmp_path, benchmark, scores):
    answers = Answers(tmp_path / "parts", "clip", benchmark)
    answers.append(0, scores)

    def broken():
        yield from answers.tables()
        raise OSError("damaged")

    with pytest.raises(OSError, match="damaged"):
        merge(broken(), tmp_path / "scores.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]
    merge(answers.tables(), tmp_path / "scores.parquet")
    assert pq.read_metadata(tmp_path / "scores.parquet").num_rows == 12
