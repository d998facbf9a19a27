"""Metrics placed in ``evaluate``'s cache, and loaded from there by their bare names, in processes of their own."""

import http.server
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import datasets
import evaluate
import pytest

import sdsclip_hf.commands.cli
import sdsclip_hf.metrics
from sdsclip_hf.metrics import install as installing
from sdsclip_hf.metrics.install import STAMP, install, install_quietly, installed, uninstall

NAME = "winoground_group_score"
LITERAL = 'import evaluate; print(evaluate.load("winoground_group_score").compute(scores=[[[0.9, 0.1], [0.2, 0.8]]]))'


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of modules, which may not exist yet."""
    folder = tmp_path / "hub" / "modules"
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", folder)
    return folder


@pytest.fixture
def nothing_on_the_hub():
    """The address of a server that is reached and has no file."""

    class NotFound(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(404)

        do_GET = do_HEAD
        log_message = lambda *_: None  # noqa: E731

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), NotFound) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def state(name: str = NAME) -> str:
    return next(metric.state for metric in installed() if metric.name == name)


def place_foreign(cache: Path, age: float = 0.0, name: str = NAME) -> Path:
    module = cache / "evaluate_modules" / "metrics" / f"evaluate-metric--{name}" / ("0" * 64)
    module.mkdir(parents=True)
    file = module / f"{name}.py"
    file.write_text("")
    os.utime(file, (file.stat().st_mtime - age,) * 2)
    return module


def set_version(module: Path, version: str) -> None:
    """Make a module look as if another version of the package had placed it, with other code."""
    (module / STAMP).write_text(json.dumps({"version": version, "hash": "x"}))
    with open(module / "scoring.py", "a") as file:
        file.write("# another version\n")


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def run(code: str, cache: Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_MODULES_CACHE": str(cache), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


SLOW = [pytest.param(reach, marks=pytest.mark.slow) for reach in ("unreachable", "not on the Hub")]


@pytest.mark.parametrize("reach", ["offline", *SLOW])
def test_evaluate_loads_the_bare_name_from_any_folder(cache, tmp_path, nothing_on_the_hub, reach):
    install([NAME])
    environment = {
        "offline": {"HF_HUB_OFFLINE": "1"},
        "unreachable": {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"},
        "not on the Hub": {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": nothing_on_the_hub},
    }[reach]
    done = run(LITERAL, cache, tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert "'winoground_group_score': 1.0" in done.stdout


def test_each_metric_is_placed_as_evaluate_would(cache):
    found = install()
    assert [metric.name for metric in found] == sdsclip_hf.metrics.names()
    for metric in found:
        assert metric.state == "current"
        assert metric.version == installing._own_version()
        assert metric.folder.parent == cache / "evaluate_modules" / "metrics" / f"evaluate-metric--{metric.name}"
        int(metric.folder.name, 16)
        source = Path(sdsclip_hf.metrics.path(metric.name))
        code = {file.name for file in source.glob("*.py")} - {"app.py"}
        assert {file.name for file in metric.folder.iterdir()} == code | {"__init__.py", STAMP}
        assert all((metric.folder / file).read_bytes() == (source / file).read_bytes() for file in code)
        for package in (metric.folder, *list(metric.folder.parents)[:4]):
            assert (package / "__init__.py").is_file()


def test_evaluate_takes_the_module_that_is_told(cache):
    install([NAME])
    place_foreign(cache, age=100)
    factory = evaluate.loading.CachedEvaluationModuleFactory(
        f"evaluate-metric--{NAME}", dynamic_modules_path=str(cache / "evaluate_modules")
    )
    assert factory.get_module().hash == next(m.folder.name for m in installed() if m.name == NAME)


def test_a_second_time_writes_nothing(cache):
    install()
    before = times(cache)
    install()
    install_quietly()
    assert times(cache) == before


def test_an_older_one_is_replaced(cache):
    module = install([NAME])[0].folder
    set_version(module, "0.0.1")
    assert state() == "older"
    old = module.rename(module.parent / ("1" * 64))
    found = install([NAME])[0]
    assert (found.state, found.folder) == ("current", module)
    assert not old.exists()


def test_a_damaged_one_is_replaced(cache):
    module = install([NAME])[0].folder
    (module / "scoring.py").write_text("")
    assert state() == "older"
    assert install([NAME])[0].folder == module
    assert (module / "scoring.py").stat().st_size > 0


def test_a_newer_one_stays_and_is_the_one_that_is_loaded(cache):
    module = install([NAME])[0].folder
    set_version(module, "99.0")
    before = times(cache)
    found = install([NAME])[0]
    assert (found.state, found.version, found.folder) == ("newer", "99.0", module)
    assert times(cache) == before


def test_a_module_from_elsewhere_stays_and_is_told(cache, caplog):
    module = place_foreign(cache)
    before = times(module)
    found = install([NAME])[0]
    assert (found.state, found.version, found.folder) == ("foreign", None, module)
    assert times(module) == before
    assert list(module.parent.iterdir()) == [module]
    with caplog.at_level(logging.WARNING):
        install_quietly()
    assert str(module) in caplog.text


def test_a_module_from_elsewhere_that_came_later_is_told_and_ours_is_removed_alone(cache):
    ours = install([NAME])[0].folder
    theirs = place_foreign(cache, age=-100)
    assert state() == "foreign"
    assert uninstall([NAME]) == [NAME]
    assert not ours.exists()
    assert (theirs / f"{NAME}.py").exists()


def test_uninstall_leaves_the_others(cache):
    install()
    assert uninstall([NAME]) == [NAME]
    assert {metric.name: metric.state for metric in installed()} == {
        name: "absent" if name == NAME else "current" for name in sdsclip_hf.metrics.names()
    }
    assert uninstall([NAME]) == []
    assert uninstall() == [name for name in sdsclip_hf.metrics.names() if name != NAME]


def test_what_a_killed_process_left_is_no_module_and_is_cleared_away(cache):
    folder = install([NAME])[0].folder.parent
    left = folder / f"{installing.UNFINISHED}abc" / "module"
    left.mkdir(parents=True)
    assert state() == "current"
    uninstall([NAME])
    assert not left.parent.exists()


def test_nothing_unfinished_is_ever_in_place(cache, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(installing.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        install([NAME])
    assert state() == "absent"
    folder = cache / "evaluate_modules" / "metrics" / f"evaluate-metric--{NAME}"
    assert [path.name for path in folder.iterdir()] == ["__init__.py"]


@pytest.mark.slow
def test_two_processes_at_once(cache, tmp_path):
    code = (
        "from sdsclip_hf.metrics.install import *\n"
        "for _ in range(8):\n"
        f"    assert install(['{NAME}'])[0].state in ('current', 'absent')\n"
        f"    uninstall(['{NAME}'])\n"
        f"install_quietly()\n"
    )
    environment = {**os.environ, "HF_MODULES_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        assert process.communicate(timeout=300)[1] == ""
        assert process.returncode == 0
    assert {metric.state for metric in installed()} == {"current"}
    assert len([module for module in installed()[0].folder.parent.iterdir() if module.is_dir()]) == 1


def test_a_cache_that_cannot_be_written_is_a_warning_alone(tmp_path, monkeypatch, caplog):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", file / "modules")
    with pytest.raises(OSError):
        install()
    with caplog.at_level(logging.WARNING):
        install_quietly()
    assert "not placed in evaluate's cache" in caplog.text


def test_unknown_names_raise_before_anything_is_written(cache):
    for function in (install, uninstall):
        with pytest.raises(ValueError, match=rf"unknown metric 'bleu'; choose from .*{NAME}"):
            function([NAME, "bleu"])
    assert not cache.exists()


def command(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["sdsclip", "metrics", *arguments])
    sdsclip_hf.commands.cli.main()


def test_commands(cache, monkeypatch, capsys):
    command(monkeypatch, "install", NAME, "aro_order")
    assert capsys.readouterr().out.count("current") == 2
    command(monkeypatch, "list")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == [
        "current" if name in (NAME, "aro_order") else "absent" for name in sdsclip_hf.metrics.names()
    ]
    command(monkeypatch, "uninstall", NAME)
    assert capsys.readouterr().out == f"removed: {NAME}\n"
    command(monkeypatch, "uninstall", NAME)
    assert capsys.readouterr().out == "nothing was installed\n"
    command(monkeypatch, "path", NAME)
    assert capsys.readouterr().out == f"{sdsclip_hf.metrics.path(NAME)}\n"
    place_foreign(cache)
    command(monkeypatch, "install")
    assert "left as it is; remove its folder to place ours" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [("install", "bleu"), ("uninstall", "bleu"), ("path", "bleu")])
def test_commands_with_an_unknown_name_end_with_one_line(cache, monkeypatch, arguments):
    with pytest.raises(SystemExit) as stopped:
        command(monkeypatch, *arguments)
    message = stopped.value.code
    assert message.startswith("sdsclip metrics: error: unknown metric 'bleu'")
    assert "\n" not in message


@pytest.mark.parametrize("arguments", [("--help",), ("install", "--help"), ("list", "--help"), ("path", "--help")])
def test_help_names_the_metrics_or_the_states(monkeypatch, capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        command(monkeypatch, *arguments)
    assert stopped.value.code == 0
    help_text = capsys.readouterr().out
    assert NAME in help_text or "foreign" in help_text


def test_evaluate_looks_where_datasets_keeps_its_modules():
    assert str(evaluate.config.HF_MODULES_CACHE) == str(datasets.config.HF_MODULES_CACHE)
    assert evaluate.config.MODULE_NAME_FOR_DYNAMIC_MODULES == "evaluate_modules"
