"""``sdsclip env`` tells what a report of a bug needs, and no secret."""

import platform
import subprocess
from importlib.metadata import version

import pytest
import torch

from sdsclip_hf.commands import env
from sdsclip_hf.commands.env import environment, main


@pytest.fixture
def settings(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "https://someone:hunter2@hub.example:8080/path")
    (tmp_path / "token").write_text("hf_storedstored")
    monkeypatch.setattr(env.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(env, "default_config_file", str(tmp_path / "default_config.yaml"))


def test_it_tells_of_the_machine_and_no_secret(settings, capsys, tmp_path):
    main([])
    printed = capsys.readouterr().out
    told = dict(line.split("  ", 1) for line in printed.splitlines())
    told = {name: value.strip() for name, value in told.items()}
    assert told["Python"] == platform.python_version()
    for name in ("sdsclip_hf", "torch", "transformers", "diffusers"):
        assert told[name] == version(name)
    assert told["HF_TOKEN"] == "set" and told["WANDB_API_KEY"] == "not set"
    assert told["token stored by hf auth login"] == "present"
    assert told["accelerate's default configuration"] == "absent"
    assert told["HF_HOME"] == str(tmp_path)
    assert told["HF_ENDPOINT"] == "https://hub.example:8080/path"
    for secret in ("secretsecret", "storedstored", "hunter2"):
        assert secret not in printed


def test_the_revision_is_git_s(settings):
    git = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=env.__file__.rpartition("/")[0], capture_output=True, text=True
    )
    revision = environment()["sdsclip_hf revision"]
    assert revision.removesuffix("-dirty") == (git.stdout.strip() if git.returncode == 0 else "no git checkout")


def test_gpus_are_told_each_with_its_memory(monkeypatch):
    class Properties:
        name, total_memory, major, minor = "Some GPU", 24 * 2**30, 8, 9

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: Properties())
    told = environment()
    assert told["cuda:0"] == told["cuda:1"] == "Some GPU, 24.0 GiB, compute capability 8.9"


def test_what_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr(env, "OPTIONAL", ("no-such-distribution",))
    assert environment()["no-such-distribution"] == "not installed"
