"""What tests of `sdsclip score-captions` share; conftest.py makes a plugin of it."""

import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sdsclip_hf.commands.score_captions import main

QUICK = {"candidates": ["batch:2"], "num_draws": 5, "chunk_size": 7, "seed": 3}


@pytest.fixture(scope="session")
def numbered(pairs, tmp_path_factory):
    """A file of the pairs with their numbers."""
    path = tmp_path_factory.mktemp("data") / "pairs.parquet"
    pairs.add_column("number", list(range(24))).to_parquet(path)
    return str(path)


def run(*words) -> None:
    main(["--candidates", "batch:2", "--num_draws", "5", "--chunk_size", "7", *map(str, words)])


def refuse(capsys, *words) -> str:
    """What the command says of these words, in one line."""
    with pytest.raises(SystemExit) as stopped:
        run(*words)
    assert str(stopped.value).startswith("error: ") and "\n" not in str(stopped.value)
    return str(stopped.value)


def rows_of(folder) -> list[dict]:
    return pq.read_table(Path(folder) / "data" / "train-00000-of-00001.parquet").to_pylist()


def png(color) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 9), color).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def several() -> datasets.Dataset:
    """Eight pictures, the last of them twice, with captions and candidates."""
    rng = np.random.default_rng(2)
    rows = []
    for number in range(9):
        texts = [
            f"a red {word} on a blue mat {min(number, 7)}" for word in rng.permutation(["cat", "dog", "chair", "photo"])
        ]
        given = ["a chair", "A red chair on a blue dog!", f"a dog {number}", "a red chair on a blue dog", "a cat"]
        rows.append({"image": {"bytes": png((min(number, 7) * 30, 0, 0))}, "caption": texts, "given": given})
    features = {"image": datasets.Image(), "caption": datasets.List(datasets.Value("string"))}
    return datasets.Dataset.from_list(rows, features=datasets.Features(features | {"given": features["caption"]}))
