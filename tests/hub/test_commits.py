"""Pushing files: every fault at every stage, once and for good, by the real client against a Hub on loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import hub_env
from hub_server import READER, STRANGER, WRITER, HubServer

from sdsclip_hf.hub.commits import HubError, check_repo_id, insist, is_hub_id

STAGES = (
    "create",
    "auth_check",
    "branch",
    "tree",
    "validate_yaml",
    "preupload",
    "lfs_batch",
    "lfs_upload",
    "lfs_verify",
)
STAGES += ("commit",)
FAULTS = (401, 403, 409, 429, 500, 503, "silence", "upload", "answer", "slow", "applied")

# In one process, with the server in it: what is imported takes longer than all the pushes.
MATRIX = """
import json, os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from hub_server import WRITER, HubServer

root, stages, kinds = Path(sys.argv[2]), json.loads(sys.argv[3]), json.loads(sys.argv[4])
server = HubServer(root).__enter__()
os.environ |= {"HF_ENDPOINT": server.url, "HF_TOKEN": WRITER, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(root / "home")}
waits = []
time.sleep = waits.append

from sdsclip_hf.hub.commits import HubError, push_files

def options(kind):
    if kind == "slow":
        return {"delay": 0.2}
    if kind == "applied":
        return {"status": 503, "applied": True}
    return {"cut": kind} if isinstance(kind, str) else {"status": kind}

files = {"README.md": b"---\\nlicense: mit\\n---\\n", "config.json": b"{}", "model.safetensors": bytes(range(256)) * 64}
told = []
for stage in stages:
    for kind in kinds:
        for times in (1, None):
            name = f"org/{stage}-{kind}-{times}".lower()
            fault, before = server.fault(stage, times=times, **options(kind)), len(waits)
            try:
                push_files(files, name, message="a push", revision="next", delete_patterns=["*.old"])
                error = None
            except HubError as found:
                error, cause = str(found), found.__cause__
            server.faults.clear()
            repository = server.repository("models", name)
            branch = repository and "next" in repository.branches
            there = server.files("models", name, "next") if branch else {}
            told.append({
                "stage": stage, "kind": kind, "times": times, "fired": fault.fired, "error": error, "waits": waits[before:],
                "whole": {file: there.get(file) for file in files} == files, "some": bool(set(there) & set(files)),
                "commits": [commit.title for commit in server.history("models", name, "next")] if branch else [],
            })
print("TOLD" + json.dumps(told))
"""


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    root = tmp_path_factory.mktemp("matrix")
    arguments = [str(Path(__file__).parents[1]), str(root), json.dumps(STAGES), json.dumps(FAULTS)]
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    result = subprocess.run([sys.executable, "-c", MATRIX, *arguments], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert WRITER not in result.stdout + result.stderr
    return {(row["stage"], row["kind"], row["times"]): row for row in json.loads(result.stdout.partition("TOLD")[2])}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", FAULTS, ids=str)
def test_a_fault_that_passes_is_overcome(matrix, stage, kind):
    row = matrix[stage, kind, 1]
    assert row["fired"] == 1
    assert row["error"] is None and row["whole"]
    assert row["commits"].count("a push") == 1  # also where the answer to the first attempt was lost


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", FAULTS, ids=str)
def test_a_fault_that_stays_ends_in_an_error_with_a_remedy_and_in_no_half_commit(matrix, stage, kind):
    row = matrix[stage, kind, None]
    assert row["fired"] >= 1
    if row["error"] is None:
        assert row["whole"] and (stage, kind) in HARMLESS
        return
    assert row["whole"] == row["some"] and (
        not row["some"] or (stage, kind) == ("commit", "applied") or kind == "answer"
    )
    if (stage, kind) == ("branch", 409):  # "it is there already", until something is to be put on it
        assert "that the branch exists" in row["error"]
        return
    remedies = {401: "hf auth login", 403: "namespace of your own", 429: "try again later"}
    assert remedies.get(kind, "Try again later") in row["error"]
    assert row["error"].startswith(f"org/{stage}-") and "\n" not in row["error"]
    if kind in (401, 403):
        assert row["waits"][-1:] == [1.0]  # one attempt more, and no long wait for what waiting does not mend
    else:
        assert {1.0, 5.0, 20.0} <= set(row["waits"])


# A late answer; a repository that is there already; what has come in all the same, and is not sent again.
HARMLESS = {(stage, "slow") for stage in STAGES} | {("create", 409)} | {("lfs_verify", kind) for kind in FAULTS}
HARMLESS |= {(stage, kind) for stage in ("lfs_upload", "commit") for kind in ("answer", "applied")}


def push(hub: HubServer, token: str | None, code: str) -> str:
    """What the error of ``code`` says, or what it prints."""
    code = f"import time; time.sleep = lambda seconds: None\nfrom sdsclip_hf.hub.commits import *\ntry:\n    print({code})\n"
    code += "except (ValueError, OSError) as error:\n    print(type(error).__name__, error)"
    env = hub_env(hub, **({"HF_TOKEN": token} if token else {}))
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_who_may_not_write_is_told_so(hub):
    call = 'push_files({"a.txt": b"a"}, "org/new", message="a push")'
    assert push(hub, None, call).startswith("ValueError a push needs a login on the Hub")
    for token in (READER, STRANGER):
        told = push(hub, token, call)
        assert told.startswith("HubError org/new on the Hub: ") and "must be write" in told, told
    assert push(hub, "hf_nobody", call).count("hf auth login") == 1
    assert "NAMESPACE/NAME" in push(hub, WRITER, 'push_files({}, "a/b/c", message="")')
    assert hub.repository("models", "org/new") is None


def test_what_a_branch_holds_is_looked_at_there(hub):
    for model_type, options in (("clip", ""), ("bert", ', revision="other"')):
        content = f"{{'config.json': b'{{\"model_type\": \"{model_type}\"}}'}}"
        push(hub, WRITER, f'push_files({content}, "org/mixed", message="a push"{options})')
    assert push(hub, WRITER, 'check_holds_clip("org/mixed")') == "None"
    assert "a model of type 'bert'" in push(hub, WRITER, 'check_holds_clip("org/mixed", revision="other")')


def test_a_folder_is_pushed_without_what_is_hidden_and_what_is_stale_goes(hub, tmp_path):
    for name in ("app.py", ".secret", "__pycache__/app.pyc", "sub/data.json", "old.json"):
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_text(name)
    call = (
        f'push_folder({str(tmp_path / "folder")!r}, "org/space", repo_type="space", space_sdk="gradio", message="a", '
    )
    fresh = {".gitattributes", "README.md"}  # what the Hub puts into a new Space
    assert "/spaces/org/space/commit/" in push(hub, WRITER, call + "private=True)")
    assert set(hub.files("spaces", "org/space")) == {*fresh, "app.py", "old.json", "sub/data.json"}
    assert hub.repository("spaces", "org/space").private
    push(hub, WRITER, call + 'allow_patterns=["*.py", "sub/*"], delete_patterns=["*.json"])')
    assert set(hub.files("spaces", "org/space")) == {*fresh, "app.py", "sub/data.json"}
    push(
        hub, WRITER, call + 'allow_patterns=["app.py"], delete_patterns=["*.json"])'
    )  # without a slash: at the top alone
    assert "sub/data.json" in hub.files("spaces", "org/space")


def test_the_hub_is_given_the_time_that_it_asks_for(monkeypatch):
    waits, answers = [], [("7", 429), ("600", 503), ("", 500)]
    monkeypatch.setattr("sdsclip_hf.hub.commits.time.sleep", waits.append)

    def attempt():
        if answers:
            wait, status = answers.pop(0)
            error = OSError("busy")
            error.response = SimpleNamespace(status_code=status, headers={"Retry-After": wait})
            raise error
        return "done"

    assert insist(attempt, "org/x") == "done" and waits == [7.0, 60.0, 20.0]


def test_no_connection_is_tried_again_but_before_training(monkeypatch):
    waits = []
    monkeypatch.setattr("sdsclip_hf.hub.commits.time.sleep", waits.append)

    class ConnectError(Exception):
        pass

    def attempt():
        raise ConnectError("refused")

    with pytest.raises(HubError, match="Check the network connection") as caught:
        insist(attempt, "org/x", needs_network=True)
    assert not caught.value.passing and not waits
    with pytest.raises(HubError) as caught:
        insist(attempt, "org/x")
    assert caught.value.passing and waits == [1.0, 5.0, 20.0]


@pytest.mark.parametrize("name", ["a/b/c", "a..b", "-a/b", "a b", "x" * 97, ""])
def test_what_is_no_name(name):
    with pytest.raises(ValueError, match="NAMESPACE/NAME"):
        check_repo_id(name)


def test_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "org/local").mkdir()
    assert is_hub_id("openai/clip-vit-base-patch32") and is_hub_id("org/other")
    assert not any(map(is_hub_id, ("org/local", "shapes/student", "/tmp/x", "a/b/c", "shapes", str(tmp_path))))
