"""The Hub on loopback, read and written by the real clients: datasets, huggingface_hub, transformers and evaluate."""

import contextlib
import hashlib
import json
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import pytest
from conftest import hub_env, make_clip, make_processor
from hub_repositories import Repository
from hub_server import ACCEPTED, READER, STRANGER, WRITER, HubServer
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    constants,
    get_hf_file_metadata,
    hf_hub_url,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

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


def test_datasets_are_read(session, few):
    _, sha, online, _, _ = session
    assert online["pairs"] == [6, [24, 20], few["caption"][:]]
    assert online["pictures"] == [[24, 20], few["caption"][:]]
    assert online["stream"] == few["caption"][:]
    shards = [f"data/test-{number:05}-of-00002.parquet" for number in range(2)]
    assert online["stream_files"] == [f"hf://datasets/org/pairs@{sha}/{shard}" for shard in shards]


def test_loaded_datasets_tell_their_commit(session):
    """The folder of their cache files is named by it, wherever they come from."""
    _, sha, online, dead, offline = session
    assert online["commits"] == [sha] * 3
    assert online["derived"] == [sha] * 2
    assert dead["commits"] == offline["commits"] == [sha] * 2
    assert online["builder"] == dead["builder"] == offline["builder"] == sha


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


def test_models_and_metrics_are_read(session):
    server, _, online, _, _ = session
    assert online["clip"] == [make_clip().num_parameters(), make_processor().tokenizer("a photo")["input_ids"]]
    assert online["no_clip"][0] == "builtins.OSError"
    assert "is not a valid model identifier" in online["no_clip"][1]
    assert online["metric"] == {"share": 0.5}
    assert online["no_metric"] == "builtins.FileNotFoundError"
    assert ("GET", "/spaces/org/some_metric/resolve/main/helper.py") in server.requests


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


def ask(url: str, method: str = "GET", data: bytes | None = None, **headers: str) -> tuple[int, dict, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method)) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


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


@pytest.fixture
def waits(monkeypatch):
    """The seconds that the client would have waited between its attempts."""
    seconds = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def api(hub, waits, monkeypatch):
    """The client as a process with the environment of `hub_env` has it, with a token that may write in "org"."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return HfApi(endpoint=hub.url, token=WRITER)


def write(folder: Path, **contents: bytes | str) -> Path:
    """A folder with the files; `__` in a name stands for a slash, `_` for a dot."""
    for name, content in contents.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def contents(folder: str | Path) -> dict[str, bytes]:
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def add(path: str, content: bytes | str) -> CommitOperationAdd:
    return CommitOperationAdd(path, content.encode() if isinstance(content, str) else content)


def commit(api: HfApi, *operations, name: str = "org/name", message: str = "some", **options) -> str:
    return api.create_commit(name, list(operations), commit_message=message, **options).oid


def weights(seed: int, size: int = 300_000) -> bytes:
    return hashlib.shake_128(bytes([seed])).digest(size)


@pytest.mark.parametrize(
    ("kind", "page", "options", "files"),
    [
        ("model", "", {}, [".gitattributes"]),
        ("dataset", "datasets/", {"private": True}, [".gitattributes"]),
        ("space", "spaces/", {"space_sdk": "gradio"}, [".gitattributes", "README.md"]),
    ],
)
def test_repositories_are_created_and_deleted(hub, api, kind, page, options, files):
    url = api.create_repo("org/name", repo_type=kind, **options)
    assert (url, url.repo_type, url.repo_id) == (f"{hub.url}/{page}org/name", kind, "org/name")
    info = api.repo_info("org/name", repo_type=kind)
    assert [file.rfilename for file in info.siblings] == files
    assert (info.private, getattr(info, "sdk", None)) == (options.get("private", False), options.get("space_sdk"))
    assert [entry.title for entry in api.list_repo_commits("org/name", repo_type=kind)] == ["initial commit"]
    assert api.create_repo("org/name", repo_type=kind, exist_ok=True, **options) == url
    with pytest.raises(HfHubHTTPError, match=f"You already created this {kind} repo") as error:
        api.create_repo("org/name", repo_type=kind, **options)
    assert error.value.response.status_code == 409
    api.delete_repo("org/name", repo_type=kind)
    assert not api.repo_exists("org/name", repo_type=kind)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("org/name", repo_type=kind)
    api.delete_repo("org/name", repo_type=kind, missing_ok=True)


def test_a_repository_without_namespace_is_the_users(api):
    assert api.create_repo("name").repo_id == "org-writer/name"
    api.move_repo("org-writer/name", "org/moved")
    assert (api.repo_exists("org-writer/name"), api.repo_exists("org/moved")) == (False, True)


def test_every_commit_stays_readable(hub, api, tmp_path):
    api.create_repo("org/name")
    states, shas = [], []
    for step in range(3):
        folder = write(tmp_path / "run", **{f"checkpoint__{step}_txt": str(step), "model_safetensors": weights(step)})
        shas.append(api.upload_folder(repo_id="org/name", folder_path=folder, commit_message=f"step {step}").oid)
        states.append(contents(folder))
    assert len(states[2]) == 4
    for sha, state in zip(shas, states, strict=True):
        loaded = contents(api.snapshot_download("org/name", revision=sha, local_dir=tmp_path / sha))
        assert {path: loaded[path] for path in state} == state
        assert {path for path in loaded if not path.startswith(".")} == set(state)
        assert {path: hub.files("models", "org/name", sha)[path] for path in state} == state
        assert api.model_info("org/name", revision=sha).sha == sha
    told = api.list_repo_commits("org/name")
    assert [(one.commit_id, one.title, one.authors) for one in told[:3]] == [
        (sha, f"step {step}", ["org-writer"]) for step, sha in reversed(list(enumerate(shas)))
    ]
    history = hub.history("models", "org/name")
    assert [one.sha for one in history] == [one.commit_id for one in told]
    assert [one.parent for one in history] == [*history[1:], None]
    assert [one.created_at for one in told] == sorted((one.created_at for one in told), reverse=True)
    assert len(api.list_repo_commits("org/name", revision=shas[0])) == 2


def test_large_files(hub, api):
    """Told by .gitattributes or by their size; their names are sha256, and what is there is not sent again."""
    api.create_repo("org/name")
    content, huge = weights(1), bytes(10 * 2**20 + 1)
    sha = commit(api, add("a/model.safetensors", content), add("small.txt", "text"), add("huge.txt", huge))
    assert hub.stages.count("lfs_upload") == hub.stages.count("lfs_verify") == 2
    files = {file.path: file for file in api.list_repo_tree("org/name", recursive=True) if hasattr(file, "lfs")}
    assert files["small.txt"].lfs is None
    assert files["small.txt"].blob_id == "f3a34851d44d6b97c90fbb99dd3d18c261b9a237"  # git hash-object
    assert (files["huge.txt"].lfs.size, files["huge.txt"].size) == (len(huge), len(huge))
    digest = hashlib.sha256(content).hexdigest()
    assert (files["a/model.safetensors"].lfs.sha256, files["a/model.safetensors"].lfs.pointer_size) == (digest, 131)
    told = get_hf_file_metadata(hf_hub_url("org/name", "a/model.safetensors", endpoint=hub.url))
    assert (told.etag, told.size, told.commit_hash) == (digest, len(content), sha)
    blobs = {file.rfilename: file for file in api.model_info("org/name", files_metadata=True).siblings}
    assert (blobs["huge.txt"].lfs.size, blobs["small.txt"].lfs) == (len(huge), None)
    commit(api, add("b/again.safetensors", content), add("small.txt", "other"))
    assert hub.stages.count("lfs_upload") == 2
    same = commit(api, add("small.txt", "other"), add("a/model.safetensors", content))
    assert same == hub.history("models", "org/name")[0].sha
    assert len(hub.history("models", "org/name")) == 3


def test_large_files_in_parts(hub, api):
    hub.part_size = 2**16
    api.create_repo("org/name")
    commit(api, add("model.safetensors", weights(1)), add("small.safetensors", weights(2, 2**16)))
    files = hub.files("models", "org/name")
    assert (files["model.safetensors"], files["small.safetensors"]) == (weights(1), weights(2, 2**16))
    assert (hub.stages.count("lfs_upload"), hub.stages.count("lfs_complete")) == (5 + 1, 1)
    ticket = next(ticket for ticket, upload in hub.uploads.items() if upload.parts)
    other = json.dumps({"parts": [{"partNumber": 1, "etag": "other"}]}).encode()
    assert ask(f"{hub.url}/lfs/{ticket}", "POST", other)[0] == 400


def test_operations(hub, api):
    api.create_repo("org/name")
    first = commit(api, *(add(name, name) for name in ("a/1", "a/2", "ab", "b/c/3")), add("x.bin", weights(1)))
    operations = [CommitOperationDelete("a/"), CommitOperationDelete("ab"), add("b/c/3", "new"), add("a/4", "4")]
    second = commit(api, *operations, CommitOperationCopy("x.bin", "y.bin"), CommitOperationCopy("a/1", "z", first))
    given = {"b/c/3": b"new", "a/4": b"4", "x.bin": weights(1), "y.bin": weights(1), "z": b"a/1"}
    files = hub.files("models", "org/name")
    assert files == given | {".gitattributes": files[".gitattributes"]}
    changes = {one.path: one.last_commit.oid for one in api.list_repo_tree("org/name", recursive=True, expand=True)}
    assert (changes["x.bin"], changes["y.bin"], changes["b"], changes["a"]) == (first, second, second, second)
    assert changes[".gitattributes"] == hub.history("models", "org/name")[-1].sha
    with pytest.raises(EntryNotFoundError, match="A file with this name doesn't exist"):
        commit(api, CommitOperationDelete("none"))
    with pytest.raises(EntryNotFoundError, match="A folder with this name doesn't exist"):
        commit(api, CommitOperationDelete("b/d/"))
    assert hub.repository("models", "org/name").sha == second


def test_patterns(hub, api, tmp_path):
    api.create_repo("org/name")
    folder = write(tmp_path / "run", _gitignore="*.log\nlogs/\n/top.txt\n", a_txt="a", sub__b_log="b", logs__c="c")
    write(folder, top_txt="t", sub__top_txt="t", big_log=weights(1), keep__d_json="d")
    api.upload_folder(repo_id="org/name", folder_path=folder, ignore_patterns="keep/*")
    assert sorted(hub.files("models", "org/name")) == [".gitattributes", ".gitignore", "a.txt", "sub/top.txt"]
    later = write(tmp_path / "later", b_txt="b")
    api.upload_folder(repo_id="org/name", folder_path=later, delete_patterns=["*.txt", ".git*"])
    assert sorted(hub.files("models", "org/name")) == [".gitattributes", "b.txt"]


def test_a_commit_to_another_parent_is_refused(hub, api):
    api.create_repo("org/name")
    before = hub.repository("models", "org/name").sha
    after = commit(api, add("a", "a"), parent_commit=before)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as error:
        commit(api, add("a", "b"), parent_commit=before)
    assert error.value.response.status_code == 412
    assert hub.repository("models", "org/name").sha == after
    with pytest.raises(HfHubHTTPError, match="501"):
        commit(api, add("a", "b"), create_pr=True)


def test_branches_and_tags(hub, api):
    api.create_repo("org/name")
    first = commit(api, add("a", "a"))
    second = commit(api, add("a", "b"))
    api.create_branch("org/name", branch="side/way", revision=first)
    api.create_branch("org/name", branch="side/way", exist_ok=True)
    api.create_tag("org/name", tag="v1", revision=first)
    third = commit(api, add("c", "c"), revision="side/way")
    refs = api.list_repo_refs("org/name")
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": second, "side/way": third}
    assert [(ref.ref, ref.target_commit) for ref in refs.tags] == [("refs/tags/v1", first)]
    assert hub.files("models", "org/name", "side/way")["a"] == b"a"
    assert "c" not in hub.files("models", "org/name")
    assert api.model_info("org/name", revision="v1").sha == first
    assert [one.commit_id for one in api.list_repo_commits("org/name", revision="side/way")][:2] == [third, first]
    for function, options, message in (
        (api.create_branch, {"branch": "side/way"}, "already exists"),
        (api.create_tag, {"tag": "v1"}, "already exists"),
        (api.delete_branch, {"branch": "main"}, "Cannot delete refs/heads/main"),
        (api.delete_branch, {"branch": "none"}, "Reference does not exist"),
        (api.delete_tag, {"tag": "none"}, "Reference does not exist"),
    ):
        with pytest.raises(HfHubHTTPError, match=message):
            function("org/name", **options)
    api.delete_branch("org/name", branch="side/way")
    api.delete_tag("org/name", tag="v1")
    assert api.model_info("org/name", revision=third).sha == third
    for revision in ("side/way", "v1", "0" * 40):
        with pytest.raises(RevisionNotFoundError, match=f"Invalid rev id: {revision}"):
            api.model_info("org/name", revision=revision)
    with pytest.raises(RevisionNotFoundError):
        commit(api, add("c", "d"), revision="side/way")


def test_many_commits(hub, api, monkeypatch):
    """Told in pages; made at the same time they follow one another all the same."""
    changed = Repository.changed
    monkeypatch.setattr(Repository, "changed", lambda *arguments: threading.Event().wait(0.01) or changed(*arguments))
    hub.page_size = 4
    api.create_repo("org/name")
    with ThreadPoolExecutor(6) as pool:
        shas = list(pool.map(lambda number: commit(api, add(f"{number}.bin", weights(number, 1000))), range(9)))
    told = [one.commit_id for one in api.list_repo_commits("org/name")]
    assert len(told) == len(set(told)) == 10
    assert set(told[:9]) == set(shas)
    assert len(hub.files("models", "org/name")) == 10
    assert hub.stages.count("commits") == 3


def test_a_folder_that_is_written(hub, api):
    """Its files become the first commit; from then on the folder has no say."""
    folder = write(hub.root / "models" / "org" / "name", a="a", b="b")
    before = hub.repository("models", "org/name").sha
    after = commit(api, add("a", "new"))
    write(folder, a="changed", c="c")
    assert [one.sha for one in hub.history("models", "org/name")] == [after, before]
    assert hub.files("models", "org/name", before) == {"a": b"a", "b": b"b"}
    assert hub.files("models", "org/name") == {"a": b"new", "b": b"b"}
    api.delete_repo("org/name")
    assert hub.repository("models", "org/name") is None


ACTIONS = {
    "create": lambda api: api.create_repo("org/other"),
    "commit": lambda api: commit(api, add("a", "b")),
    "branch": lambda api: api.create_branch("org/name", branch="side"),
    "tag": lambda api: api.create_tag("org/name", tag="v1"),
    "settings": lambda api: api.update_repo_settings("org/name", private=True),
    "move": lambda api: api.move_repo("org/name", "org/other"),
    "delete": lambda api: api.delete_repo("org/name"),
}


@pytest.mark.parametrize("token", [READER, STRANGER, False, "hf_wrong"])
@pytest.mark.parametrize("action", ACTIONS)
def test_who_may_not_write(hub, api, action, token):
    api.create_repo("org/name")
    before = vars(hub.repository("models", "org/name")).copy()
    with pytest.raises(HfHubHTTPError) as error:
        ACTIONS[action](HfApi(endpoint=hub.url, token=token))
    rights = 'You don\'t have the rights to create a model under the namespace "org"'
    status, message = {
        False: (401, "Invalid username or password."),
        "hf_wrong": (401, "Invalid credentials in Authorization header"),
    }.get(token, (403, rights if action == "create" else "Authorization error."))
    assert error.value.response.status_code == status
    assert message in str(error.value)
    assert vars(hub.repository("models", "org/name")) == before
    assert hub.repository("models", "org/other") is None


def test_a_stranger_writes_at_home(hub, api):
    stranger = HfApi(endpoint=hub.url, token=STRANGER)
    stranger.create_repo("stranger/name")
    commit(stranger, add("a", "a"), name="stranger/name")
    with pytest.raises(HfHubHTTPError, match="403 Forbidden: Authorization error"):
        commit(api, add("a", "b"), name="stranger/name")
    with pytest.raises(HfHubHTTPError, match="403 Forbidden: Authorization error"):
        stranger.move_repo("stranger/name", "org/name")
    assert hub.files("models", "stranger/name")["a"] == b"a"


def test_who_reads_what_was_made_private(hub, api, tmp_path):
    api.create_repo("org/name", private=True)
    commit(api, add("a", "a"))

    def read(token: str | bool) -> str:
        cache = tempfile.mkdtemp(dir=tmp_path)
        return Path(api.hf_hub_download("org/name", "a", token=token, cache_dir=cache)).read_text()

    assert [read(token) for token in (WRITER, READER, ACCEPTED)] == ["a"] * 3
    for token in (STRANGER, False):
        with pytest.raises(RepositoryNotFoundError):
            read(token)
        with pytest.raises(RepositoryNotFoundError):
            commit(HfApi(endpoint=hub.url, token=token), add("a", "b"))
    api.update_repo_settings("org/name", private=False, gated="auto")
    assert [read(token) for token in (WRITER, READER, ACCEPTED)] == ["a"] * 3
    for token in (STRANGER, False):
        with pytest.raises(GatedRepoError):
            read(token)
    api.update_repo_settings("org/name", gated=False)
    assert read(STRANGER) == read(False) == "a"


def test_tokens(hub, api):
    told = {token: api.whoami(token=token) for token in (WRITER, READER, STRANGER, ACCEPTED)}
    roles = {token: one["auth"]["accessToken"]["role"] for token, one in told.items()}
    assert roles == {WRITER: "write", READER: "read", STRANGER: "write", ACCEPTED: "read"}
    assert [one["name"] for one in told.values()] == ["org-writer", "org-writer", "stranger", "accepted"]
    assert [org["name"] for org in told[WRITER]["orgs"]] == ["org"]
    api.create_repo("org/name")
    api.auth_check("org/name", write=True)
    with pytest.raises(HfHubHTTPError, match="403"):
        api.auth_check("org/name", token=READER, write=True)


def test_uploads_are_checked(hub, api):
    """What is not what its sha256 and size say is in no commit."""
    api.create_repo("org/name")
    head = hub.repository("models", "org/name").sha
    sha256, git = hashlib.sha256(b"right").hexdigest(), f"{hub.url}/org/name.git/info/lfs/objects"
    signed = {"Authorization": f"Bearer {WRITER}"}

    def post(url: str, *lines: dict) -> tuple[int, dict]:
        status, _, content = ask(url, "POST", b"\n".join(json.dumps(line).encode() for line in lines), **signed)
        return status, json.loads(content)

    def committed(size: int = 5) -> tuple[int, dict]:
        file = {"key": "lfsFile", "value": {"path": "x.bin", "algo": "sha256", "oid": sha256, "size": size}}
        return post(f"{hub.url}/api/models/org/name/commit/main", {"key": "header", "value": {"summary": "x"}}, file)

    def batch() -> dict:
        wanted = {"operation": "upload", "transfers": ["basic"], "objects": [{"oid": sha256, "size": 5}]}
        return post(f"{git}/batch", wanted)[1]["objects"][0]

    assert committed()[0] == 400
    address = batch()["actions"]["upload"]["href"]
    for sent, status in ((b"wrong", 400), (b"right", 200)):
        assert ask(address, "PUT", sent)[0] == 200
        assert post(f"{git}/verify", {"oid": sha256, "size": 5})[0] == status
        assert ("actions" in batch()) == (status == 400)
        if status == 400:
            assert committed()[0] == 400
    assert ask(f"{hub.url}/lfs/abcdef", "PUT", b"right")[0] == 403
    assert committed(size=6)[0] == 400
    assert hub.repository("models", "org/name").sha == head
    assert committed()[0] == 200
    assert hub.files("models", "org/name")["x.bin"] == b"right"


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("---\nlicense: 3\n---\n", '"license" must be a string'),
        ("---\n- a\n- b\n---\n", "must be a mapping, not list"),
        ("---\na: [\n---\n", "Invalid YAML in README.md"),
        ("---\ndatasets:\n- null\n---\n", '"datasets" must be a string or an array of strings'),
        ("---\nbase_model: /outputs/run\n---\n", '"base_model" with value "/outputs/run" is not valid'),
        ("---\nmodel-index: a\n---\n", '"model-index" must be an array'),
        (
            "---\nmodel-index:\n- name: a\n  results:\n  - task: {type: b}\n    metrics: [{type: c}]\n---\n",
            '"model-index[0].results[0].dataset.type" is required',
        ),
    ],
)
def test_wrong_cards(hub, api, card, message):
    api.create_repo("org/name")
    with pytest.raises(ValueError, match=re.escape(message)):
        commit(api, add("README.md", card))
    assert "commit" not in hub.stages
    api._validate_yaml = lambda *arguments, **options: None
    with pytest.raises(BadRequestError, match=re.escape(message)):
        commit(api, add("README.md", card))
    assert "README.md" not in hub.files("models", "org/name")


def test_right_cards(hub, api):
    api.create_repo("org/name")
    card = "---\nlicense: [mit]\nbase_model: org/clip\ntags: [a]\nlibrary_name: transformers\nmodel-index:\n- name: x\n"
    card += (
        "  results:\n  - {task: {type: a}, dataset: {type: b, name: c}, metrics: [{type: d, value: 1.5}]}\n---\n# X\n"
    )
    commit(api, add("README.md", card))
    info = api.model_info("org/name")
    assert (info.card_data.base_model, info.card_data.license, info.tags) == ("org/clip", ["mit"], ["a"])
    assert (vars(info)["library_name"], info.card_data.eval_results[0].metric_value) == ("transformers", 1.5)
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        commit(api, add("README.md", "# X"))


def some_commit(api: HfApi) -> None:
    commit(api, add("README.md", "---\nlicense: mit\n---\n"), add("x.bin", weights(1)))


STAGE_CALLS = {
    "whoami": lambda api: api.whoami(),
    "create": lambda api: api.create_repo("org/other"),
    "delete": lambda api: api.delete_repo("org/name"),
    "info": lambda api: api.model_info("org/name"),
    "refs": lambda api: api.list_repo_refs("org/name"),
    "branch": lambda api: api.create_branch("org/name", branch="side"),
    "tag": lambda api: api.create_tag("org/name", tag="v1"),
    "resolve": lambda api: api.hf_hub_download("org/name", "a", force_download=True),
    "validate_yaml": some_commit,
    "commit": some_commit,
}
CUT = ("ReadError", "WriteError", "RemoteProtocolError")  # of httpx or httpx2, as the client's version is
RETRIED = ("preupload", "lfs_batch", "lfs_upload", "lfs_verify")


@pytest.fixture
def name(hub, api, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    api.create_repo("org/name")
    commit(api, add("a", weights(0)))
    hub.stages.clear()
    return "org/name"


def cause(error: BaseException) -> BaseException:
    """What the client met before it raised something of its own."""
    return cause(error.__cause__) if error.__cause__ and not isinstance(error, HfHubHTTPError) else error


@pytest.mark.parametrize("status", [401, 403, 409, 429, 500, 502, 503])
@pytest.mark.parametrize("stage", STAGE_CALLS)
def test_statuses(hub, api, name, stage, status):
    fault = hub.fault(stage, status=status, message="Some reason")
    with pytest.raises(Exception) as error:
        STAGE_CALLS[stage](api)
    found = cause(error.value)
    assert isinstance(found, HfHubHTTPError), found
    assert found.response.status_code == status
    assert found.response.headers["X-Error-Message"] == "Some reason"
    assert (fault.fired, hub.stages.count(stage)) == (1, 1)
    assert len(hub.history("models", name)) == 2
    STAGE_CALLS[stage](api)


@pytest.mark.parametrize("stage", RETRIED)
def test_statuses_that_the_client_outlasts(hub, api, name, waits, stage):
    first = hub.fault(stage, status=503)
    second = hub.fault(stage, status=429, retry_after=6)
    some_commit(api)
    assert (first.fired, second.fired, waits) == (1, 1, [1, 7])
    always = hub.fault(stage, status=502, times=None)
    with pytest.raises(Exception) as error:
        commit(api, add("y.bin", weights(2)))
    assert cause(error.value).response.status_code == 502
    assert (always.fired, first.fired, second.fired) == (6, 1, 1)


@pytest.mark.parametrize("cut", ["silence", "upload", "answer"])
@pytest.mark.parametrize("stage", [*RETRIED, "validate_yaml"])
def test_cut_connections(hub, api, name, stage, cut):
    fault = hub.fault(stage, cut=cut)
    if stage == "validate_yaml":
        with pytest.raises(Exception) as error:
            some_commit(api)
        assert type(error.value).__name__ in CUT
    else:
        some_commit(api)
        assert hub.files("models", name)["x.bin"] == weights(1)
        assert len(hub.history("models", name)) == 3
        assert hub.stages.count(stage) == 2
    assert fault.fired == 1


@pytest.mark.parametrize(
    ("how", "applied"),
    [
        ({"cut": "silence"}, False),
        ({"cut": "upload"}, False),
        ({"status": 503}, False),
        ({"cut": "answer"}, True),
        ({"cut": "silence", "applied": True}, True),
        ({"status": 500, "applied": True}, True),
    ],
)
def test_a_commit_whose_answer_is_lost(hub, api, name, how, applied):
    """It may have been made or not; made again there is one all the same, as the client sees that nothing is new."""
    hub.fault("commit", **how)
    with pytest.raises(Exception) as error:
        some_commit(api)
    assert type(error.value).__name__ in (CUT if "cut" in how else ("HfHubHTTPError",))
    assert len(hub.history("models", name)) == 2 + applied
    some_commit(api)
    assert len(hub.history("models", name)) == 3
    assert hub.stages.count("commit") == (1 if applied else 2)
    assert hub.files("models", name)["x.bin"] == weights(1)


def test_an_upload_is_cut_in_its_middle(hub):
    """The server does not wait for the second half."""
    hub.fault("lfs_upload", cut="upload")
    with socket.create_connection(("127.0.0.1", hub.server_port), timeout=5) as connection:
        connection.sendall(b"PUT /lfs/abc HTTP/1.1\r\nContent-Length: 1000\r\n\r\n" + bytes(600))
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) == b""


def test_a_download_that_is_cut(hub, api, name):
    fault = hub.fault("resolve", method="GET", cut="answer", path=r"/resolve/[^/]+/a$")
    assert Path(api.hf_hub_download(name, "a")).read_bytes() == weights(0)
    assert (fault.fired, hub.stages.count("resolve")) == (1, 3)


def test_faults_are_chosen_and_counted(hub, api, name):
    fault = hub.fault("info", status=500, after=1, times=2)
    met = []
    for _ in range(5):
        try:
            api.model_info(name)
            met.append(False)
        except HfHubHTTPError:
            met.append(True)
    assert met == [False, True, True, False, False]
    assert fault.fired == 2
    hub.fault(status=503, method="POST", path="/tag/", times=None)
    api.create_branch(name, branch="side")
    with pytest.raises(HfHubHTTPError, match="503"):
        api.create_tag(name, tag="v1")
    hub.faults.clear()
    api.create_tag(name, tag="v1")
    coded = hub.fault("info", status=403, code="GatedRepo")
    with pytest.raises(GatedRepoError):
        api.model_info(name)
    assert coded.fired == 1


def test_late_answers(hub, api, name):
    hub.fault("info", delay=0.3)
    start = time.monotonic()
    assert api.model_info(name).id == name
    assert time.monotonic() - start >= 0.3
    hub.fault("info", delay=0.5)
    with pytest.raises(Exception) as error:
        api.model_info(name, timeout=0.1)
    assert type(error.value).__name__ == "ReadTimeout"
    assert api.model_info(name, timeout=0.4).id == name


def test_answers_of_any_form(hub, api, name):
    hub.fault("info", body=b"caf\xe9", headers={"Content-Type": "text/plain"})
    status, headers, content = ask(f"{hub.url}/api/models/{name}", "GET", None)
    assert (status, headers["Content-Type"], content) == (200, "text/plain", b"caf\xe9")
    hub.fault("info", status=301, headers={"Location": f"/api/models/{name}/refs"})
    status, _, content = ask(f"{hub.url}/api/models/{name}", "GET", None)
    assert status == 200 and "branches" in json.loads(content)
    hub.fault("info", status=204)
    assert ask(f"{hub.url}/api/models/{name}", "GET", None)[::2] == (204, b"")


def test_what_is_carried_out_behind_its_answer(hub, api, name):
    hub.fault("tag", status=504, late=True)
    with pytest.raises(HfHubHTTPError, match="504"):
        api.create_tag(name, tag="v1")
    assert not hub.repository("models", name).tags
    api.create_tag(name, tag="v2")
    assert list(hub.repository("models", name).tags) == ["v1", "v2"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"stage": "comit", "status": 500},
        {"stage": "commit"},
        {"cut": "all"},
        {"cut": "answer", "body": b""},
        {"status": 500, "late": True, "applied": True},
    ],
)
def test_wrong_faults(hub, wrong):
    with pytest.raises(ValueError):
        hub.fault(**wrong)
