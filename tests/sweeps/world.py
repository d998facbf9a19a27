"""What trials start from, made once for a process: small models, data, scores, and a run with checkpoints."""

import tempfile
from functools import cache
from pathlib import Path

import conftest
import datasets
import numpy as np
import torch

from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer
from sdsclip_hf.data.images import picture_digest


@cache
def _root() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="sweeps-")


def root() -> Path:
    return Path(_root().name)


@cache
def clip() -> str:
    torch.manual_seed(1)
    conftest.make_clip().save_pretrained(root() / "clip")
    conftest.make_processor().save_pretrained(root() / "clip")
    return str(root() / "clip")


@cache
def teacher() -> str:
    torch.manual_seed(2)
    conftest.make_pipeline().save_pretrained(root() / "teacher")
    return str(root() / "teacher")


@cache
def pairs() -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    data = datasets.Dataset.from_list(conftest.make_rows(24), features=features)
    data.save_to_disk(root() / "pairs")
    data.to_parquet(root() / "shards" / "part-0.parquet")
    return data


@cache
def scores() -> str:
    rng, items, data = np.random.default_rng(0), [], pairs()
    for number, row in enumerate(data):
        texts = [data[(number + offset) % 24]["caption"] for offset in rng.permutation(3)]
        errors = [[float(rng.uniform(0, 0.1)) + 0.2 * (text != row["caption"]) for _ in range(3)] for text in texts]
        items.append((picture_digest(row["image"]), row["caption"], texts, errors))
    return str(conftest.make_scores(root() / "scores", items))


@cache
def run() -> Path:
    """A run with a checkpoint after its steps 2 and 4."""
    folder = root() / "run"
    settings = {"per_device_train_batch_size": 4, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    settings |= {"lambda_sds": 0.0, "use_cpu": True, "disable_tqdm": True, "trainable": "full", "report_to": "none"}
    SDSCLIPTrainer(clip(), SDSCLIPConfig(output_dir=str(folder), **settings), train_dataset=pairs()).train()
    return folder
