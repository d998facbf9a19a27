"""Chunks come back as they were written, or not at all."""

import pyarrow as pa
import pytest
from damage import DAMAGE

from sdsclip_hf.common.chunks import Chunks


@pytest.fixture
def tables():
    return [pa.table({"n": [number, number + 1], "text": ["a", "b" * number]}) for number in range(3)]


@pytest.fixture
def chunks(tmp_path, tables):
    made = Chunks(tmp_path / "parts", "chunk")
    for number, table in enumerate(tables):
        made.write(number, table)
    return made


def test_tables_come_back_in_the_order_that_is_asked_for(chunks, tables):
    assert chunks.numbers() == {0, 1, 2}
    assert chunks.read([2, 0]) == [tables[2], tables[0]]
    assert chunks.read([1], columns=["text"]) == [tables[1].select(["text"])]
    assert Chunks(chunks.folder, "item").numbers() == set()


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_one_is_told_and_made_anew(chunks, tables, kind, caplog):
    path = chunks.paths()[1]
    DAMAGE[kind](path)
    with pytest.raises(
        OSError, match=r"chunk-000000001\S* is missing or is not what was written\. Type the same command"
    ):
        chunks.read(range(3))
    assert chunks.numbers() == {0, 2} and not path.exists()
    assert (f"{path} is not what was written" in caplog.text) == (kind != "missing")
    chunks.write(1, tables[1])
    assert chunks.read(range(3)) == tables


def test_no_bit_of_a_file_can_change_unseen(chunks):
    path = chunks.paths()[0]
    content = path.read_bytes()
    for place in range(0, len(content), 5):
        path.write_bytes(content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :])
        with pytest.raises(OSError, match="not what was written"):
            chunks.read([0])


def test_one_that_is_written_again_takes_the_place_of_the_earlier_one(chunks, tables):
    chunks.write(1, tables[2])
    assert chunks.read(range(3)) == [tables[0], tables[2], tables[2]]
    chunks.drop(1)
    assert chunks.numbers() == {0} and len(chunks.paths()) == 1


def test_a_file_of_another_name_is_none_of_them(chunks, tables):
    (chunks.folder / "chunk-000000007.parquet").write_bytes(chunks.paths()[0].read_bytes())
    assert chunks.numbers() == {0, 1, 2}
