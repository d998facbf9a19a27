"""``sdsclip metrics push``: a Space for each metric, from which ``evaluate.load`` takes the same numbers."""

import json
import subprocess
import sys
from pathlib import Path

import evaluate
import pytest
from conftest import hub_env
from hub_server import READER, STRANGER, HubServer
from huggingface_hub import HfApi

import sdsclip_hf.metrics
from sdsclip_hf.commands.metrics import main

NAMES = sdsclip_hf.metrics.names()
NAME = "winoground_group_score"
# In a process of its own: the package is made not to be importable, and what is asked comes on stdin.
LOAD = """
import json, sys
sys.modules["sdsclip_hf"] = None
import evaluate
results = {}
for name, cases in json.load(sys.stdin).items():
    metric = evaluate.load(f"org/{name}")
    results[name] = [metric.compute(**inputs) for inputs in cases]
print(json.dumps(results))
"""


def shipped(name: str) -> dict[str, bytes]:
    """The files of a metric that git keeps."""
    folder = Path(sdsclip_hf.metrics.path(name))
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def held(hub: HubServer, space: str) -> dict[str, bytes]:
    """What a Space holds, without what the Hub itself puts there."""
    return {path: text for path, text in hub.files("spaces", space).items() if path != ".gitattributes"}


def put(space: str, **contents: str) -> None:
    """Commit files to a Space, which is created."""
    api = HfApi()
    api.create_repo(space, repo_type="space", space_sdk="gradio", exist_ok=True)
    for name, text in contents.items():
        api.upload_file(path_or_fileobj=text.encode(), path_in_repo=name, repo_id=space, repo_type="space")


def cases(name: str) -> list[dict]:
    text = (Path(sdsclip_hf.metrics.path(name)) / "test_cases.json").read_text()
    return [case["inputs"] for case in json.loads(text)]


def test_all_are_pushed_and_give_the_numbers_of_the_local_modules(hub_here, capsys, tmp_path):
    main(["push", "--org", "org"])
    told = capsys.readouterr().out
    for name in NAMES:
        assert held(hub_here, f"org/{name}") == shipped(name)
        assert f'evaluate.load("org/{name}"): {hub_here.url}/spaces/org/{name}/commit/' in told
    asked = {name: cases(name) for name in NAMES}
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD],
        input=json.dumps(asked),
        env=hub_env(hub_here),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert loaded.returncode == 0, loaded.stderr
    results = json.loads(loaded.stdout)
    for name, inputs in asked.items():
        metric = evaluate.load(sdsclip_hf.metrics.path(name), cache_dir=str(tmp_path))
        local = [metric.compute(**case) for case in inputs]
        assert results[name] == json.loads(json.dumps(local))
        assert len(local) >= 2
    fetched = {path for method, path in hub_here.requests if method == "GET" and path.endswith(".py")}
    assert fetched >= {f"/spaces/org/{name}/resolve/main/{name}.py" for name in NAMES}


def test_a_second_push_replaces_what_is_stale_in_one_commit(hub_here):
    main(["push", "--org", "org", "--name", NAME])
    before = hub_here.history("spaces", f"org/{NAME}")
    put(f"org/{NAME}", **{"old.py": "", "folder/old.txt": "old", f"{NAME}.py": "changed"})
    main(["push", "--org", "org", "--name", NAME])
    assert held(hub_here, f"org/{NAME}") == shipped(NAME)
    assert len(hub_here.history("spaces", f"org/{NAME}")) == len(before) + 3 + 1
    assert ".gitattributes" in hub_here.files("spaces", f"org/{NAME}")


def test_names_may_be_given_together_and_apart_and_new_spaces_be_private(hub_here):
    main(["push", "--org", "org", "--name", "aro_order", "aro_relation", "--name", NAME, "aro_order", "--private"])
    pushed = [name for name in NAMES if hub_here.repository("spaces", f"org/{name}")]
    assert pushed == ["aro_order", "aro_relation", NAME]
    assert all(hub_here.repository("spaces", f"org/{name}").private for name in pushed)
    assert len(hub_here.history("spaces", "org/aro_order")) == 2  # the Hub's own, and ours


@pytest.mark.parametrize("org", ["two words", "org/more", "-org", ""])
def test_a_malformed_org_is_an_error(org, hub_here):
    with pytest.raises(SystemExit, match=r"is no name on the Hub; give that of an organisation or user alone"):
        main(["push", f"--org={org}"])
    assert not hub_here.requests


def test_an_unknown_metric_and_a_missing_login_are_errors_before_anything_is_pushed(hub_here, monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match=r"unknown metric 'nothing'; choose from aro_attribution, "):
        main(["push", "--org", "org", "--name", NAME, "nothing"])
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(SystemExit, match="type `hf auth login`"):
        main(["push", "--org", "org"])
    assert not hub_here.requests


@pytest.mark.parametrize("token", [READER, STRANGER])
def test_without_the_right_to_write_each_is_an_error_with_a_remedy(hub_here, waits, monkeypatch, capsys, token):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(SystemExit, match="2 of 2 Spaces failed"):
        main(["push", "--org", "org", "--name", NAME, "aro_order"])
    errors = capsys.readouterr().err
    for name in (NAME, "aro_order"):
        assert f"{name}: org/{name} on the Hub: " in errors
        assert hub_here.repository("spaces", f"org/{name}") is None
    assert "Use a token that may write" in errors


def test_one_that_fails_does_not_lose_the_others(hub_here, waits, capsys):
    hub_here.fault("commit", status=500, path="aro_order", times=None)
    put("org/aro_relation", **{"mine.py": "print()"})
    with pytest.raises(SystemExit) as error:
        main(["push", "--org", "org", "--private"])
    assert f"2 of {len(NAMES)} Spaces failed" in str(error.value)
    finish = "metrics push --org org --name aro_order aro_relation --private"
    assert str(error.value).endswith(f"sdsclip {finish}")
    told = capsys.readouterr()
    assert "aro_order: org/aro_order on the Hub: " in told.err
    assert "aro_relation: the Space org/aro_relation holds something other than the metric aro_relation" in told.err
    others = [name for name in NAMES if name not in ("aro_order", "aro_relation")]
    assert [line.split('"')[1] for line in told.out.splitlines()] == [f"org/{name}" for name in others]
    assert all(held(hub_here, f"org/{name}") == shipped(name) for name in others)
    assert set(held(hub_here, "org/aro_relation")) == {"README.md", "mine.py"}
    hub_here.faults.clear()
    main([*finish.split()[1:], "--force"])
    assert all(held(hub_here, f"org/{name}") == shipped(name) for name in ("aro_order", "aro_relation"))
