"""The Hub on loopback, read by the real clients: datasets, huggingface_hub, transformers and evaluate."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import datasets
import pytest
from conftest import hub_env, make_clip, make_processor
from hub_server import ACCEPTED, STRANGER, HubServer

CARD = """---
configs:
- config_name: default
  data_files:
  - split: test
    path: data/test-*
dataset_info:
  features:
  - name: image
    dtype: image
  - name: caption
    dtype: string
  splits:
  - name: test
    num_bytes: {num_bytes}
    num_examples: {num_examples}
---
# Pairs
"""

METRIC = """import datasets
import evaluate

from .helper import equal


class SomeMetric(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"share": equal(predictions, references) / len(references)}
"""

HELPER = """def equal(predictions, references):
    return sum(one == other for one, other in zip(predictions, references))
"""

COMMON = """
import json, os, sys, time
from pathlib import Path

time.sleep = lambda seconds: None  # the clients' waits between attempts, 23 seconds where nothing listens
import datasets

sha = sys.argv[1]
found = {}

def told(function, *arguments, **options):
    try:
        return function(*arguments, **options)
    except Exception as error:
        return [f"{type(error).__module__}.{type(error).__name__}", str(error)]

def commit(dataset):
    return Path(dataset.cache_files[0]["filename"]).parent.name if isinstance(dataset, datasets.Dataset) else dataset

def load(name, **options):
    return told(datasets.load_dataset, name, split="test", **options)
"""

ONLINE = """
pairs = load("org/pairs")
found["pairs"] = [len(pairs), pairs[0]["image"].size, pairs["caption"][:]]
found["commits"] = [commit(load("org/pairs", revision=revision)) for revision in (None, "main", sha)]
found["derived"] = [commit(pairs.select([2, 0])), commit(pairs.map(lambda row: {"n": 1}))]
found["builder"] = datasets.load_dataset_builder("org/pairs").hash
found["revision"] = load("org/pairs", revision="v9")
stream = load("org/pairs", streaming=True)
found["stream"] = [row["caption"] for row in stream]
found["stream_files"] = stream._ex_iterable.kwargs["files"]
pictures = load("org/pictures")
found["pictures"] = [pictures[0]["image"].size, pictures["caption"][:]]
found["unknown"] = load("org/nothing")
found["gated"] = load("org/gated")
found["private"] = load("org/private")
os.environ["HF_TOKEN"] = "hf_stranger"
found["stranger"] = load("org/gated")
os.environ["HF_TOKEN"] = "hf_wrong"
found["wrong_token"] = load("org/gated")
os.environ["HF_TOKEN"] = "hf_accepted"
found["accepted"] = [len(load("org/gated")), len(load("org/private"))]
del os.environ["HF_TOKEN"]

from huggingface_hub import HfApi, HfFileSystem, snapshot_download

api = HfApi()
info = api.dataset_info("org/gated", files_metadata=True)
found["info"] = [info.sha, info.gated, info.private, {file.rfilename: file.size for file in info.siblings}]
tree = api.list_repo_tree("org/pairs", repo_type="dataset", recursive=True, expand=True)
found["tree"] = [[entry.path, entry.last_commit.oid] for entry in tree]
found["data"] = [entry.path for entry in api.list_repo_tree("org/pairs", "data", repo_type="dataset")]
found["paths"] = [entry.path for entry in api.get_paths_info("org/pairs", ["data", "none"], repo_type="dataset")]
found["snapshot"] = sorted(os.listdir(snapshot_download("org/some_metric", repo_type="space")))
found["part"] = HfFileSystem().cat_file("datasets/org/pairs/README.md", start=4, end=11).decode()
found["whoami"] = [api.whoami(token="hf_accepted")["name"], told(api.whoami, token="hf_wrong")[1]]

import evaluate
from transformers import CLIPModel, CLIPProcessor

found["metric"] = evaluate.load("org/some_metric").compute(predictions=[1, 2], references=[1, 3])
found["no_metric"] = told(evaluate.load, "org/no_metric")[0]
model, processor = CLIPModel.from_pretrained("org/clip"), CLIPProcessor.from_pretrained("org/clip")
found["clip"] = [model.num_parameters(), processor.tokenizer("a photo")["input_ids"]]
found["no_clip"] = told(CLIPModel.from_pretrained, "org/nothing")
"""

CACHED = """
found["commits"] = [commit(load("org/pairs")), commit(load("org/pairs", revision=sha))]
found["builder"] = datasets.load_dataset_builder("org/pairs").hash
found["fresh"] = load("org/other")
"""


def run(code: str, sha: str, env: dict[str, str]) -> dict:
    """What `code` found, in a process of its own."""
    code = f"{COMMON}{code}\nPath({(path := Path(env['HF_HOME'], 'found.json'))!r:.0}".replace("Path(", "", 0)
    return {}
