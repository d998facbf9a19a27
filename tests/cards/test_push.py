"""Folders pushed by hand: whole models alone, without what is no part of them."""

import json
import shutil

import pytest
from conftest import hub_env
from dual_encoders import make_dual_encoder
from hub_runs import CLI, ask_errors, run, titles
from hub_server import WRITER, HubServer

from sdsclip_hf.cards.push import model_files, push_model
from sdsclip_hf.hub.attempts import HubError
from sdsclip_hf.shapes import model_path
from sdsclip_hf.students.sdsclip_model import SDSCLIPModel


def test_a_hub_that_is_gone_at_the_end_is_tried_again(tmp_path):
    gone = HubServer(tmp_path / "gone")
    gone.server_close()
    folder = tmp_path / "run"
    shutil.copytree(model_path("student"), folder)
    result = run(CLI, "push", str(folder), "org/new", env=hub_env(gone, HF_TOKEN=WRITER), code_expected=1)
    assert result.stderr.count("Trying again in") == 3 and "Check the network connection" in result.stderr
    assert f"To push it, logged in: sdsclip push {folder} org/new" in result.stderr


@pytest.mark.parametrize(("made", "state"), [(True, "may be missing"), (False, "is missing")])
def test_a_push_whose_end_nobody_saw_is_not_told_as_failed(hub_here, monkeypatch, made, state):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub_here.fault("commit", status=504, times=None, applied=made)
    if made:
        hub_here.fault("info", status=503, after=1, times=None)
    with pytest.raises(
        HubError, match=f"The commit “later” {state} on the Hub as a whole .* in: sdsclip push"
    ) as caught:
        push_model(model_path("student"), "org/new", message="later")
    assert caught.value.unseen == made and len(hub_here.history("models", "org/new")) == 1 + made


def test_a_token_in_a_file_is_not_pushed(hub, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(model_path("student"), folder)
    (folder / "run.yaml").write_text(f"note: {WRITER}\n")
    told = ask_errors(hub_env(hub), {"push": ("push", WRITER, [str(folder), "org/new"])})
    assert "run.yaml holds the token" in told["push"] and WRITER not in told["push"]
    assert "run.yaml" not in hub.files("models", "org/new")


def test_what_an_older_push_left_does_not_stay_beside_the_new_model(hub, tmp_path):
    old = hub.root / "models/org/old"
    shutil.copytree(model_path("student"), old)
    left = (
        "special_tokens_map.json",
        "preprocessor_config.json",
        "pytorch_model.bin",
        "model-00001-of-00002.safetensors",
    )
    left += (".eval_results/facebook__winoground.yaml", "scores.png", "report.html", "results.json", "run.yaml")
    (old / ".eval_results").mkdir()
    for name in (*left, "notes.txt"):
        (old / name).write_text("{}")
    folder = tmp_path / "run"
    shutil.copytree(model_path("student"), folder)
    assert ask_errors(hub_env(hub), {"push": ("push", WRITER, [str(folder), "org/old"])})["push"] == "no error"
    files = set(hub.files("models", "org/old"))
    assert "notes.txt" in files and not files & set(left)


def test_only_a_whole_model_is_pushed(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "latent_mapper.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="holds no exported model"):
        model_files(tmp_path, "org/new")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="holds no exported model"):
        model_files(tmp_path, "org/new")
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"")
    (tmp_path / "compared/x").mkdir(parents=True)
    for name in ("compared/x/losses.png", "losses.png", "before.json", "bad_images.txt"):
        (tmp_path / name).write_bytes(b"")
    assert {"losses.png", "model-00002-of-00002.safetensors"} <= set(model_files(tmp_path, "org/new"))
    assert not {"compared/x/losses.png", "before.json", "bad_images.txt"} & set(model_files(tmp_path, "org/new"))


@pytest.mark.parametrize("kind", ["siglip2", "chinese_clip"])
def test_all_that_an_export_of_another_kind_needs_is_pushed(tmp_path, kind):
    model, processor = make_dual_encoder(kind)
    SDSCLIPModel(model, trainable="lora").export(tmp_path, processor)
    (tmp_path / "vocab.txt").touch()  # as older transformers write it
    there = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert there - {"adapter/README.md"} == set(model_files(tmp_path, "org/new"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="type 'bert', which is no dual encoder"):
        model_files(tmp_path, "org/new")


def test_push_of_a_folder_by_hand(hub, tmp_path):
    folder, other = tmp_path / "run", hub.root / "models/org/other"
    shutil.copytree(model_path("student"), folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# NAMESPACE/NAME\n")
    (folder / "bad_images.txt").write_text("/home/me/secret.png")
    (folder / "report.html").write_text("<!doctype html>")
    other.mkdir(parents=True)
    (other / "config.json").write_text('{"model_type": "bert"}')
    (other / "adapter_old.txt").write_text("old")
    empty = tmp_path / "empty"
    empty.mkdir()
    told = ask_errors(
        hub_env(hub),
        {
            "no folder": ("push", WRITER, [str(tmp_path / "none"), "org/new"]),
            "no model": ("push", WRITER, [str(empty), "org/new"]),
            "no clip": ("push", WRITER, [model_path("teacher") + "/unet", "org/new"]),
            "taken": ("push", WRITER, [str(folder), "org/other"]),
            "forced": ("push", WRITER, [str(folder), "org/other", "--force"]),
            "new": ("push", WRITER, [str(folder), "org/new", "--private", "--message", "first"]),
            "again": ("push", WRITER, [str(folder), "org/new"]),
            "branch": ("push", WRITER, [str(folder), "org/new", "--revision", "next"]),
            "own": ("push", WRITER, [str(folder), "mine"]),
        },
    )
    assert "there is no folder" in told["no folder"] and "holds no exported model" in told["no model"]
    assert "holds no exported model" in told["no clip"]
    assert "'bert'" in told["taken"] and "--force" in told["taken"]
    assert all(told[name] == "no error" for name in ("forced", "new", "again", "branch", "own")), told
    assert list(titles(hub, "org/new")) == ["first"]  # the second push changed nothing
    files = hub.files("models", "org/new")
    assert b"# org/new" in files["README.md"] and "report.html" in files and "bad_images.txt" not in files
    assert b"# org-writer/mine" in hub.files("models", "org-writer/mine")["README.md"]
    assert hub.files("models", "org/new", "next") == files
    assert json.loads(hub.files("models", "org/other")["config.json"])["model_type"] == "clip"


def test_files_that_a_model_no_longer_has_go_with_the_next_push(hub, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(model_path("student"), folder)
    (folder / "adapter").mkdir()
    (folder / "adapter/adapter_config.json").write_text('{"base_model_name_or_path": "' + str(folder) + '"}')
    push = ("push", WRITER, [str(folder), "org/new"])
    ask_errors(hub_env(hub), {"first": push})
    assert json.loads(hub.files("models", "org/new")["adapter/adapter_config.json"])["base_model_name_or_path"] == "run"
    shutil.rmtree(folder / "adapter")
    ask_errors(hub_env(hub), {"second": push})
    assert not any(name.startswith("adapter") for name in hub.files("models", "org/new"))
