"""The Hub on loopback, read and written by the real clients: datasets, huggingface_hub, transformers and evaluate."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from conftest import hub_env, make_clip, make_processor
from hub_client import ask
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

WRITING = """
os.environ["HF_TOKEN"] = "hf_writer"
pushed = []
for step in range(2):
    model.logit_scale.data.fill_(step)
    pushed.append(model.push_to_hub("org/pushed", private=True, commit_message=f"step {step}").oid)
revisions = (*pushed, None)
scales = [CLIPModel.from_pretrained("org/pushed", revision=revision).logit_scale.item() for revision in revisions]
found["pushed_clip"] = [pushed, scales]
rows = datasets.Dataset.from_dict({"n": [1, 2, 3]})
found["pushed_rows"] = []
for part in (rows, rows.select([2, 0])):
    part.push_to_hub("org/rows", split="test")
    loaded = load("org/rows")
    found["pushed_rows"].append([commit(loaded), loaded["n"][:]])
found["exists"] = api.create_repo("org/pushed", token="hf_reader", exist_ok=True).repo_id
del os.environ["HF_TOKEN"]
"""

CACHED = """
found["commits"] = [commit(load("org/pairs")), commit(load("org/pairs", revision=sha))]
found["builder"] = datasets.load_dataset_builder("org/pairs").hash
found["fresh"] = load("org/other")
"""


def start(code: str, server: HubServer, sha: str, **settings: str) -> subprocess.Popen:
    command = [sys.executable, "-c", f"{COMMON}{code}\nprint(json.dumps(found))", sha]
    return subprocess.Popen(command, env=hub_env(server, **settings), stdout=subprocess.PIPE, text=True)


def found_by(process: subprocess.Popen) -> dict:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return json.loads(output.splitlines()[-1])


def write_pairs(folder: Path, pairs: datasets.Dataset) -> None:
    """A repository as `Dataset.push_to_hub` makes it: two shards and the card."""
    (folder / "data").mkdir(parents=True)
    for number in range(2):
        shard = pairs.shard(2, number, contiguous=True)
        shard.to_parquet(folder / "data" / f"test-{number:05}-of-00002.parquet")
    (folder / "README.md").write_text(CARD.format(num_bytes=pairs.data.nbytes, num_examples=len(pairs)))


def write_pictures(folder: Path, pairs: datasets.Dataset) -> None:
    """A repository of picture files, captioned in metadata.jsonl."""
    (folder / "test").mkdir(parents=True)
    for number, row in enumerate(pairs):
        row["image"].save(folder / "test" / f"{number}.png")
    lines = [json.dumps({"file_name": f"{number}.png", "caption": row["caption"]}) for number, row in enumerate(pairs)]
    (folder / "test" / "metadata.jsonl").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def few(pairs):
    return pairs.select(range(6))


@pytest.fixture(scope="module")
def session(tmp_path_factory, few):
    """(server, sha, what the clients found online, with nothing listening, and offline)."""
    root = tmp_path_factory.mktemp("session") / "hub"
    for name in ("pairs", "gated", "private"):
        write_pairs(root / "datasets" / "org" / name, few)
    (root / "datasets" / "org" / "gated" / ".gated").touch()
    (root / "datasets" / "org" / "private" / ".private").touch()
    write_pictures(root / "datasets" / "org" / "pictures", few)
    make_clip().save_pretrained(root / "models" / "org" / "clip")
    make_processor().save_pretrained(root / "models" / "org" / "clip")
    metric = root / "spaces" / "org" / "some_metric"
    metric.mkdir(parents=True)
    (metric / "some_metric.py").write_text(METRIC)
    (metric / "helper.py").write_text(HELPER)
    with HubServer(root) as server:
        sha = server.repository("datasets", "org/pairs").sha
        online = found_by(start(ONLINE + WRITING, server, sha))
    dead, offline = start(CACHED, server, sha), start(CACHED, server, sha, HF_HUB_OFFLINE="1")
    return server, sha, online, found_by(dead), found_by(offline)


@pytest.mark.slow
def test_datasets_are_read(session, few):
    _, sha, online, _, _ = session
    assert online["pairs"] == [6, [24, 20], few["caption"][:]]
    assert online["pictures"] == [[24, 20], few["caption"][:]]
    assert online["stream"] == few["caption"][:]
    shards = [f"data/test-{number:05}-of-00002.parquet" for number in range(2)]
    assert online["stream_files"] == [f"hf://datasets/org/pairs@{sha}/{shard}" for shard in shards]


@pytest.mark.slow
def test_loaded_datasets_tell_their_commit(session):
    """The folder of their cache files is named by it, wherever they come from."""
    _, sha, online, dead, offline = session
    assert online["commits"] == [sha] * 3
    assert online["derived"] == [sha] * 2
    assert dead["commits"] == offline["commits"] == [sha] * 2
    assert online["builder"] == dead["builder"] == offline["builder"] == sha


@pytest.mark.slow
def test_datasets_out_of_reach(session):
    _, _, online, dead, offline = session
    not_found = "datasets.exceptions.DatasetNotFoundError"
    gated = "Dataset 'org/gated' is a gated dataset on the Hub."
    page = "https://huggingface.co/datasets/org/gated"
    assert online["gated"] == [not_found, f"{gated} You must be authenticated to access it."]
    assert online["stranger"] == [not_found, f"{gated} Visit the dataset page at {page} to ask for access."]
    assert online["accepted"] == [6, 6]
    for name in ("private", "unknown"):
        assert online[name][0] == not_found
        assert "doesn't exist on the Hub or cannot be accessed" in online[name][1]
    assert online["revision"] == [not_found, "Revision 'v9' doesn't exist for dataset 'org/pairs' on the Hub."]
    assert online["wrong_token"][0] == "huggingface_hub.errors.HfHubHTTPError"
    assert "Invalid credentials in Authorization header" in online["wrong_token"][1]
    for found in (dead, offline):
        assert found["fresh"][0] == "builtins.ConnectionError"
        assert "Couldn't reach 'org/other' on the Hub" in found["fresh"][1]


@pytest.mark.slow
def test_the_api(session):
    server, sha, online, _, _ = session
    files = server.repository("datasets", "org/gated").sizes
    assert online["info"] == [sha, "auto", False, files]
    names = ["data", "README.md", "data/test-00000-of-00002.parquet", "data/test-00001-of-00002.parquet"]
    assert online["tree"] == [[name, sha] for name in names]
    assert online["data"] == names[2:]
    assert online["paths"] == ["data"]
    assert online["snapshot"] == ["helper.py", "some_metric.py"]
    assert online["part"] == CARD[4:11]
    assert online["whoami"] == ["accepted", "Invalid user token."]


@pytest.mark.slow
def test_models_and_metrics_are_read(session):
    server, _, online, _, _ = session
    assert online["clip"] == [make_clip().num_parameters(), make_processor().tokenizer("a photo")["input_ids"]]
    assert online["no_clip"][0] == "builtins.OSError"
    assert "is not a valid model identifier" in online["no_clip"][1]
    assert online["metric"] == {"share": 0.5}
    assert online["no_metric"] == "builtins.FileNotFoundError"
    assert ("GET", "/spaces/org/some_metric/resolve/main/helper.py") in server.requests


@pytest.mark.slow
def test_models_and_datasets_are_pushed(session):
    server, _, online, _, _ = session
    shas, scales = online["pushed_clip"]
    assert scales == [0, 1, 1]
    told = [(one.sha, one.title) for one in server.history("models", "org/pushed")]
    assert told[:2] == [(shas[1], "step 1"), (shas[0], "step 0")]
    assert server.repository("models", "org/pushed").private
    assert online["exists"] == "org/pushed"  # the reader's 403 is no obstacle where there is nothing to create
    assert [rows for _, rows in online["pushed_rows"]] == [[1, 2, 3], [3, 1]]
    first, second = (sha for sha, _ in online["pushed_rows"])
    assert second == server.repository("datasets", "org/rows").sha != first


def test_files(hub):
    folder = hub.root / "models" / "org" / "name"
    folder.mkdir(parents=True)
    (folder / "text").write_bytes(b"0123456789")
    url = f"{hub.url}/org/name/resolve/main/text"
    status, headers, content = ask(url)
    assert (status, content, headers["Content-Length"], headers["Accept-Ranges"]) == (200, b"0123456789", "10", "bytes")
    assert headers["X-Repo-Commit"] == hub.repository("models", "org/name").sha
    head = ask(url, "HEAD")
    assert (head[0], head[1]["Content-Length"], head[1]["ETag"], head[2]) == (200, "10", headers["ETag"], b"")
    for wanted, part, told in (
        ("2-4", b"234", "2-4"),
        ("7-", b"789", "7-9"),
        ("-2", b"89", "8-9"),
        ("8-99", b"89", "8-9"),
    ):
        status, headers, content = ask(url, Range=f"bytes={wanted}")
        assert (status, content, headers["Content-Range"]) == (206, part, f"bytes {told}/10")
    assert ask(url, Range="bytes=10-")[0] == 416
    assert ask(f"{hub.url}/org/name/resolve/main/none")[1]["X-Error-Code"] == "EntryNotFound"


def test_the_commit_changes_with_the_files(hub):
    folder = hub.root / "models" / "org" / "name"
    folder.mkdir(parents=True)
    (folder / "text").write_text("before")
    before = hub.repository("models", "org/name").sha
    (folder / "text").write_text("after")
    after = hub.repository("models", "org/name").sha
    assert len(before) == len(after) == 40
    assert ask(f"{hub.url}/org/name/resolve/{after}/text")[2] == b"after"
    status, headers, _ = ask(f"{hub.url}/org/name/resolve/{before}/text")
    assert (status, headers["X-Error-Code"]) == (404, "RevisionNotFound")


@pytest.mark.parametrize(
    ("marker", "token", "expected"),
    [
        (".gated", None, (401, "GatedRepo")),
        (".gated", STRANGER, (403, "GatedRepo")),
        (".gated", ACCEPTED, (200, None)),
        (".private", None, (401, "RepoNotFound")),
        (".private", STRANGER, (404, "RepoNotFound")),
        (".private", ACCEPTED, (200, None)),
    ],
)
def test_kept_repositories(hub, marker, token, expected):
    folder = hub.root / "datasets" / "org" / "name"
    folder.mkdir(parents=True)
    (folder / "text").touch()
    (folder / marker).touch()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    status, answered, _ = ask(f"{hub.url}/datasets/org/name/resolve/main/text", **headers)
    assert (status, answered.get("X-Error-Code")) == expected
    assert ask(f"{hub.url}/datasets/org/name/resolve/main/{marker}", **headers)[0] in (401, 403, 404)
