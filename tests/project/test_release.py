"""What a release is made of: one version, files that parse, and a wheel from which the main job runs."""

import importlib
import json
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import sdsclip_hf

ROOT = Path(__file__).parents[2]
MOST_BYTES = 25 * 10**6
tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCRIPTS = sorted(
    path
    for folder in ("recipes", "tools", "benchmarks")
    for path in (ROOT / folder).glob("*.py")
    if path.read_text().startswith("# /// script")
)
needs_checkout = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="lists the files by git")


def test_the_version_is_told_in_one_place_and_the_others_agree():
    assert PROJECT["dynamic"] == ["version"] and "version" not in PROJECT
    assert re.fullmatch(r"\d+\.\d+\.\d+", sdsclip_hf.__version__)
    assert version("sdsclip_hf") == sdsclip_hf.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == sdsclip_hf.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text()
    released = re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)
    assert released[:2] == ["Unreleased", sdsclip_hf.__version__]
    for name in released:
        assert re.search(rf"^\[{re.escape(name)}\]: https://", changelog, re.MULTILINE), name


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_handed_over_alone_can_be_resolved(path):
    """PEP 723: the comment lines between the marks are TOML; no line of them may point into a checkout."""
    head = re.match(r"# /// script\n(.*?)^# ///$", path.read_text(), re.DOTALL | re.MULTILINE)[1]
    lines = [line.removeprefix("#").removeprefix(" ") for line in head.splitlines()]
    header = tomllib.loads("\n".join(lines))
    assert set(header) == {"requires-python", "dependencies"}
    assert header["requires-python"] == PROJECT["requires-python"]
    wanted = [Requirement(text) for text in header["dependencies"]]
    assert all(one.name == PROJECT["name"] and one.extras <= set(PROJECT["optional-dependencies"]) for one in wanted)
    if wanted:
        (other,) = re.findall(r'# or from git: \["(.+)"\]$', head, re.MULTILINE)
        assert Requirement(other).url == f"git+{PROJECT['urls']['Repository']}"
        assert Requirement(other).extras == wanted[0].extras


def test_every_library_has_a_lowest_version():
    for text in PROJECT["dependencies"]:
        assert any(bound.operator == ">=" for bound in Requirement(text).specifier), text


def test_ci_runs_every_python_that_is_promised_and_the_lowest_torch():
    jobs = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]
    promised = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert jobs["quick"]["strategy"]["matrix"]["python"] == promised
    assert all(one in SpecifierSet(PROJECT["requires-python"]) for one in promised)
    (torch,) = [Requirement(text) for text in PROJECT["dependencies"] if text.startswith("torch>")]
    (lowest,) = [bound.version for bound in torch.specifier]
    assert f"torch=={lowest}.0 " in yaml.safe_dump(jobs["lowest"], width=1000)


def test_the_files_of_the_repository_s_host_parse_and_name_what_there_is():
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        workflow = yaml.safe_load(path.read_text())
        assert workflow["name"] == path.stem and workflow[True], path  # yaml takes the key `on` for true
        assert workflow["permissions"] == {"contents": "read"}
        for job in workflow["jobs"].values():
            assert job["runs-on"] and all(("uses" in step) != ("run" in step) for step in job["steps"])
            named = re.findall(r'-e "\.\[(\w+)\]"', yaml.safe_dump(job, width=1000))
            assert set(named) - {"docs"} <= set(PROJECT["optional-dependencies"])
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        if path.stem != "config":
            assert {"name", "description", "body"} <= set(form)
            names = [part["id"] for part in form["body"]]
            assert len(set(names)) == len(names) and all(part["attributes"]["label"] for part in form["body"])
    assert "sdsclip env" in (ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text()
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (ruff,) = [text for text in PROJECT["optional-dependencies"]["dev"] if text.startswith("ruff")]
    assert ruff == f"ruff=={hooks[0]['rev'].removeprefix('v')}"


def test_the_owner_is_one_name_everywhere():
    owner = re.fullmatch(r"https://github\.com/([\w.-]+)/sdsclip_hf", PROJECT["urls"]["Repository"])[1]
    files = [ROOT / name for name in ("CHANGELOG.md", "docs/hf_jobs.md", "README.md")] + SCRIPTS
    found = {name for file in files for name in re.findall(r"github\.com/([\w.-]+)/sdsclip_hf", file.read_text())}
    assert found == {owner}


def run(*command, cwd: Path, **options) -> str:
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """Wheel and source distribution of the files that git tracks, the wheel built from the latter."""
    folder = tmp_path_factory.mktemp("release")
    run("git", "-C", ROOT, "checkout-index", "--all", f"--prefix={folder}/checkout/", cwd=folder)
    run(sys.executable, "-m", "build", "--outdir", folder / "dist", folder / "checkout", cwd=folder)
    return folder / "dist"


@pytest.mark.slow
@needs_checkout
def test_wheel_and_source_hold_what_they_must_and_no_more(dist):
    run(sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir(), cwd=dist)
    (wheel,), (source,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    assert wheel.stat().st_size < MOST_BYTES and source.stat().st_size < MOST_BYTES
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"sdsclip_hf", f"sdsclip_hf-{sdsclip_hf.__version__}.dist-info"}
    tracked = run("git", "-C", ROOT, "ls-files", "sdsclip_hf", "recipes", cwd=ROOT).split()
    moved = {re.sub("^recipes/", "sdsclip_hf/_recipes/", name) for name in tracked}
    card = "sdsclip_hf/_model_cards/model_card.md.jinja"
    assert {name for name in names if ".dist-info" not in name} == moved | {card}
    assert "sdsclip_hf/py.typed" in names
    with tarfile.open(source) as archive:
        in_source = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "tests/conftest.py", "recipes/finetune.py"} <= in_source


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory) -> Path:
    """The Python of a fresh environment into which the wheel was installed, with this one's build of torch."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=True)
    python = folder / "bin/python"
    pip = [python, "-m", "pip", "install", "--quiet"]
    run(*pip, f"torch=={version('torch').partition('+')[0]}", cwd=folder)
    run(*pip, next(dist.glob("*.whl")), cwd=folder)
    return python


@pytest.mark.slow
@needs_checkout
def test_the_main_job_runs_from_the_wheel_in_an_empty_folder(installed, tmp_path):
    """Nothing of the checkout is within reach: the folder is empty, and no variable of Python's is set."""
    env = {"PATH": f"{installed.parent}:/usr/bin:/bin", "HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    (tmp_path / "home").mkdir()
    (tmp_path / "empty").mkdir()
    printed = run("sdsclip", "finetune", cwd=tmp_path / "empty", env=env)
    results = json.loads((tmp_path / "empty/outputs/shapes/results.json").read_text())
    assert set(results["compared"]) == {"contrastive only", "+ L_SDS"} and results["label"] == "+ L_rank"
    table = printed.rpartition("before")[2]
    assert all(name in table for name in ("contrastive only", "+ L_SDS", "+ L_rank"))
    assert results["versions"]["sdsclip_hf"] == sdsclip_hf.__version__
    assert (tmp_path / "empty/outputs/shapes/README.md").exists()
    told = run("sdsclip", "env", cwd=tmp_path / "empty", env=env)
    assert re.search(r"^sdsclip_hf revision +no git checkout$", told, re.MULTILINE)


@pytest.mark.slow
@needs_checkout
def test_launch_configurations_are_found_from_the_wheel(installed, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)  # lest it lead to the checkout
    code = "from sdsclip_hf.common.resources import recipes_dir; print(recipes_dir())"
    recipes = Path(run(installed, "-c", code, cwd=tmp_path).strip())
    assert recipes.is_relative_to(installed.parents[1]) and (recipes / "configs/shapes.yaml").is_file()
    done = subprocess.run(
        [installed.parent / "sdsclip", "finetune", "--accelerate_config", "none"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "cpu, deepspeed_zero2, fsdp2, multi_cpu, multi_gpu" in done.stderr
