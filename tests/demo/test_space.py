"""The model that a demo compares with, and the demo as a Space: a folder that stands alone, its card, and its push."""

import ast
import json
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml
from hub_server import READER, HubServer
from huggingface_hub import HfApi
from packaging.requirements import Requirement

from sdsclip_hf.commands import space
from sdsclip_hf.demo.base_model import find_base
from sdsclip_hf.demo.show import PAGE, find_models
from sdsclip_hf.demo.space import SETTINGS, write_space
from sdsclip_hf.shapes import model_path


def card(folder: Path, front: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(f"---\n{front}\n---\n\n# a card\n")
    return folder


def test_the_base_of_a_folder_is_its_cards_or_else_its_runs(tmp_path):
    folder = card(tmp_path, "license: mit")
    (folder / "run.yaml").write_text("model_name_or_path: shapes/student\nseed: 1\n")
    assert find_base(str(folder)) == "shapes/student"
    for front in ("base_model: org/base", "base_model:\n- org/base"):
        card(folder, front)
        assert find_base(str(folder)) == "org/base"
    assert find_models(str(folder)) == {"Base": "org/base", "Tuned": str(folder)}
    assert find_models(str(folder), "other") == {"Base": "other", "Tuned": str(folder)}


@pytest.mark.parametrize(
    ("front", "message"),
    [
        ("license: mit", r"neither README.md \(base_model\) nor run.yaml in .* names the model .*; give it as --base"),
        ("base_model: []", "give it as --base"),
        ("a: [", "give it as --base"),
        ("- a list", "give it as --base"),
        ("base_model: [org/a, org/b]", r"several base models \(org/a, org/b\); give one of them as --base"),
    ],
)
def test_a_base_that_cannot_be_told_is_an_error_that_names_the_option(tmp_path, front, message):
    with pytest.raises(ValueError, match=message):
        find_base(str(card(tmp_path, front)))


@pytest.mark.slow
def test_the_folder_of_a_space_is_whole_and_stands_alone(tmp_path):
    write_space(tmp_path, "org/tuned", "org/base")
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    kept = {path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*") if path.suffix in (".py", ".md", ".txt")}
    assert files == kept | {SETTINGS, "pixels.py"}
    assert json.loads((tmp_path / SETTINGS).read_text())["models"] == {"Base": "org/base", "Tuned": "org/tuned"}
    code = "import sys; sys.modules['sdsclip_hf'] = None; import preference; print(preference.compare)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    imported = {
        name.split(".")[0]
        for path in tmp_path.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and not node.level)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module])
    }
    assert imported - set(sys.stdlib_module_names) == {
        "gradio",
        "numpy",
        "PIL",
        "pixels",
        "preference",
        "torch",
        "transformers",
    }


def test_the_card_of_a_space_is_filled_in(tmp_path):
    write_space(tmp_path, "org/tuned", "org/base")
    _, front, body = (tmp_path / "README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["models"] == ["org/tuned", "org/base"]
    assert (front["sdk"], front["sdk_version"], front["app_file"]) == ("gradio", "6.31.0", "app.py")
    assert (tmp_path / front["app_file"]).is_file()
    assert front["title"] and front["emoji"] and front["license"] == "apache-2.0" and front["tags"]
    assert len(front["short_description"]) <= 60  # the Hub's limit
    assert {front["colorFrom"], front["colorTo"]} <= {
        "red",
        "yellow",
        "green",
        "blue",
        "indigo",
        "purple",
        "pink",
        "gray",
    }
    assert "$" not in body and "https://huggingface.co/org/base" in body


def test_a_space_requires_what_the_package_does():
    lines = (PAGE / "requirements.txt").read_text().splitlines()
    ours = {requirement.name: requirement.specifier for requirement in map(Requirement, requires("sdsclip_hf"))}
    asked = [Requirement(line) for line in lines if not line.startswith("--")]
    of_siglip = {"sentencepiece"}  # which nobody need install who has no such model
    assert {requirement.name for requirement in asked} == {"numpy", "pillow", "torch", "transformers"} | of_siglip
    assert all(ours[one.name] == one.specifier for one in asked if one.name not in of_siglip)


@pytest.fixture
def models(hub_here) -> HubServer:
    """A Hub with a tuned model, whose card names its base, and the base."""
    card(hub_here.root / "models" / "org" / "tuned", "base_model: org/base")
    card(hub_here.root / "models" / "org" / "base", "license: mit")
    return hub_here


def push(*arguments: str) -> None:
    space.main(["push", "org/demo", *arguments])


def test_push_creates_a_space_and_updates_it(models, tmp_path, capsys):
    push("--model", "org/tuned")
    folder = tmp_path / "space"
    folder.mkdir()
    write_space(folder, "org/tuned", "org/base")
    expected = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {**expected, ".gitattributes": models.files("spaces", "org/demo")[".gitattributes"]} == (
        models.files("spaces", "org/demo")
    )
    assert not models.repository("spaces", "org/demo").private
    told = capsys.readouterr().out
    assert f"{models.url}/spaces/org/demo compares org/base and org/tuned.\n" in told
    assert "HF_TOKEN" not in told
    HfApi().upload_file(path_or_fileobj=b"", path_in_repo="old/a.py", repo_id="org/demo", repo_type="space")
    before = len(models.history("spaces", "org/demo"))
    push("--model", "org/tuned", "--base", "org/base")
    assert "old/a.py" not in models.files("spaces", "org/demo")
    assert ".gitattributes" in models.files("spaces", "org/demo")
    assert len(models.history("spaces", "org/demo")) == before + 1


def test_push_refuses_what_is_no_demo_unless_forced(models):
    api = HfApi()
    api.create_repo("org/demo", repo_type="space", space_sdk="static")
    api.upload_file(path_or_fileobj=b"mine", path_in_repo="index.html", repo_id="org/demo", repo_type="space")
    with pytest.raises(SystemExit, match=r"org/demo holds something other than a demo .* index.html .*--force"):
        push("--model", "org/tuned")
    assert models.files("spaces", "org/demo")["index.html"] == b"mine"
    push("--model", "org/tuned", "--force")
    assert "index.html" not in models.files("spaces", "org/demo")
    assert SETTINGS in models.files("spaces", "org/demo")


def test_push_tells_that_a_private_model_needs_a_token(models, capsys):
    (models.root / "models" / "org" / "base" / ".private").touch()
    push("--model", "org/tuned", "--private")
    assert "org/base can be read with a token only: give the Space one, as a secret named HF_TOKEN" in (
        capsys.readouterr().out
    )
    assert models.repository("spaces", "org/demo").private


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "org/nothing"], r"--model org/nothing: there is no such model .*no folder either.*`sdsclip push`"),
        (["--model", model_path("student")], r"no such model on the Hub, .*\(a folder here\).*`sdsclip push`"),
        (["--model", "org/base"], "the card of org/base names no base_model.*; give it as --base"),
        (["--model", "org/tuned", "--base", "shapes/student"], "--base shapes/student is part of this package"),
        (["--model", "org/tuned", "--base", "org/none"], "--base org/none: there is no such model on the Hub"),
        (["--model", "org/tuned", "--base", "org/tuned"], "compared with itself"),
    ],
)
def test_push_refuses_models_that_a_space_cannot_load(models, arguments, message):
    with pytest.raises(SystemExit, match=f"^sdsclip space: error: .*{message}"):
        push(*arguments)
    assert models.repository("spaces", "org/demo") is None


@pytest.mark.parametrize(
    ("stage_and_path", "message"),
    [
        ({"path": "models/org/tuned$"}, "org/tuned on the Hub: .*status 500.*Try again later"),
        ({"path": "tuned/resolve/main/README.md"}, "the card of org/tuned, .*, could not be read: .*as --base"),
        ({"stage": "tree"}, "org/demo on the Hub: .*status 500.*Try again later"),
    ],
)
def test_what_the_hub_does_not_answer_is_an_error_with_a_remedy(models, monkeypatch, stage_and_path, message):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    HfApi().create_repo("org/demo", repo_type="space", space_sdk="gradio")
    fault = models.fault(**{"stage": None} | stage_and_path, status=500, times=None)
    with pytest.raises(SystemExit, match=f"^sdsclip space: error: {message}"):
        push("--model", "org/tuned")
    assert fault.fired >= 4  # it was tried again
    assert SETTINGS not in models.files("spaces", "org/demo")


def test_push_refuses_a_name_or_token_that_will_not_do(models, monkeypatch, tmp_path):
    for name in ("demo", "org/de mo"):
        with pytest.raises(SystemExit, match="give it as NAMESPACE/NAME"):
            space.main(["push", name, "--model", "org/tuned"])
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", READER)
    with pytest.raises(SystemExit, match="Use a token that may write to org/demo"):
        push("--model", "org/tuned")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(SystemExit, match="type `hf auth login`"):
        push("--model", "org/tuned")
    assert models.repository("spaces", "org/demo") is None
