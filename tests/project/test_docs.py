"""README and docs/: every block runs, or says why not and names only what there is; links lead somewhere."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from doc_blocks import MARKS, PAGES, ROOT, Block, blocks

from sdsclip_hf.common.resources import find_config
from sdsclip_hf.shapes import load_shapes, model_path

BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELL = [block for block in BLOCKS if block.kind != "python"]
FIRST_COMMAND = "pip install -e . && accelerate launch recipes/finetune.py\n"
OF_OTHERS = ("bash", "hf", "mkdocs", "npm", "pip", "pyright", "pytest", "ruff")  # programs whose options are not ours
# Options in the text that belong to other programs, or to another part of a command line than our own.
FOREIGN = {"--index-url", "--nproc_per_node", "--config_file", "--strict", "--shm-size", "--NAME", "--OPTION"}
SCRIPTS = (
    "benchmarks/training.py",
    "benchmarks/gpu.py",
    "benchmarks/many_gpus.py",
    "benchmarks/pictures.py",
    "tools/train_shapes.py",
    "tools/campaign.py",
    "tools/fitted_weights.py",
    "recipes/emoji_to_dataset.py",
)
# Of `hf jobs` and uv.
OF_JOBS = {"--detach", "--dry-run", "--no-project", "--secrets", "--timeout", "--volume", "--with-editable"}
OF_JOBS |= {"--flavor", "--label", "--namespace"}


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def execute():
    """Run a block's code in a folder: exit code and output. One process imports all, its forks run."""
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    command = [sys.executable, str(ROOT / "tests/doc_runner.py")]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:

        @cache
        def run(folder: Path, kind: str, code: str) -> tuple[int, str]:
            print(json.dumps({"folder": str(folder), "kind": kind, "code": code}), file=server.stdin, flush=True)
            return tuple(json.loads(server.stdout.readline()))

        yield run
        server.stdin.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """data/mine: a folder of 40 pictures, with a caption each."""
    folder = tmp_path_factory.mktemp("data") / "mine"
    (folder / "train").mkdir(parents=True)
    with (folder / "train/metadata.jsonl").open("w") as written:
        for number, row in enumerate(load_shapes("train", per_scene=1).select(range(40))):
            row["image"].save(folder / f"train/{number:04}.png")
            print(json.dumps({"file_name": f"{number:04}.png", "caption": row["caption"][0]}), file=written)
    return folder


@pytest.fixture
def checkout(tmp_path, pictures) -> Path:
    """A folder like a fresh checkout, with pictures of one's own."""
    for name in ("recipes", "benchmarks", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine").symlink_to(pictures)
    return tmp_path


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_says_how_it_is_tested(block):
    assert block.mark, f"{block} has no mark; tests/doc_blocks.py tells which there are"
    assert MARKS.fullmatch(block.mark), f"{block}: unknown mark {block.mark!r}"
    if block.kind == "python":
        ast.parse(block.code)


QUICK = ("README.md",)  # the others' blocks have tests of the same commands beside them


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[] if page.name in QUICK else pytest.mark.slow)
        for page in PAGES
        if any(block.mark == "runs" for block in blocks(page))
    ],
    ids=relative,
)
def test_the_blocks_of_a_page_run_one_after_the_other(page, checkout, execute):
    shutil.copytree(model_path("student"), checkout / "outputs/shapes")  # the first command's, as far as pages read it
    for block in blocks(page):
        if block.mark == "runs":
            for code in [block.code] if block.kind == "python" else block.commands:
                status, printed = execute(checkout, block.kind, code)
                assert status == 0, f"{block}\n{code}\n{printed[-3000:]}"


@pytest.fixture(scope="module")
def first_run(tmp_path_factory) -> Path:
    """What the first command leaves."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    follow(Block(ROOT / "README.md", 0, None, "bash", FIRST_COMMAND), folder)
    return folder / "outputs"


def follow(block: Block, folder: Path) -> None:
    """Run a block as typed, but for what installs."""
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    lines = [line for line in block.commands if not line.startswith("pip install")]
    command = [sys.executable, "-c", block.code] if block.kind == "python" else ["bash", "-ec", "\n".join(lines)]
    done = subprocess.run(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{block}\n{block.code}\n{done.stdout[-3000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if any(b.mark == "runs: minutes" for b in blocks(p))], ids=relative)
def test_a_page_works_as_typed_from_a_fresh_checkout_on(page, checkout, request):
    for block in blocks(page):
        if block.code == FIRST_COMMAND:  # the same on several pages: run once
            shutil.copytree(request.getfixturevalue("first_run"), checkout / "outputs")
        elif block.mark in ("runs", "runs: minutes"):
            follow(block, checkout)


def options(words: list[str]) -> list[str]:
    return [word.split("=")[0] for word in words if word.startswith("--")]


def test_no_block_names_an_option_or_a_file_that_does_not_exist(execute, tmp_path):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    wrong = []
    for block in SHELL:
        for command in block.commands:
            words = [word for word in shlex.split(command) if not re.fullmatch(r"\w+=\S*", word)]
            program, rest = words[0], words[1:]
            if program not in (*OF_OTHERS, "sdsclip", "accelerate", "python"):
                wrong.append(f"{block}: unknown program {program!r}")
            files = [w for w in rest if re.match(r"(recipes|tools|benchmarks|tests)/", w)]
            wrong += [f"{block}: there is no {file}" for file in files if not (ROOT / file).exists()]
            for name in (rest[rest.index("--config") + 1],) if "--config" in rest else ():
                find_config(name)
            if program == "pip":
                known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
                extras = re.findall(r"\.\[(\w+)\]", command)
                wrong += [f"{block}: no extra {name}" for name in extras if name not in known]
            elif program in ("sdsclip", "accelerate", "python"):
                script = next((word for word in rest if word.endswith(".py")), None)
                own = rest[rest.index(script) + 1 :] if script else rest
                ask = f"python {ROOT / script}" if script else " ".join(["sdsclip", *subcommand(rest)])
                status, told = execute(tmp_path, "bash", f"{ask} --help")
                if status:
                    wrong.append(f"{block}: {ask} --help\n{told[-1000:]}")
                    continue
                known = set(re.findall(r"--\w[\w-]*", told))
                wrong += [f"{block}: {ask} has no {option}" for option in options(own) if option not in known]
    assert not wrong, "\n".join(wrong)


def subcommand(words: list[str]) -> list[str]:
    return words[:2] if words[0] in ("metrics", "space") else words[:1]


def test_the_text_names_no_option_that_does_not_exist(execute, tmp_path):
    commands = re.findall(r'^    "([\w-]+)": \(', (ROOT / "sdsclip_hf/commands/cli.py").read_text(), re.MULTILINE)
    assert {"finetune", "evaluate", "plan", "space"} <= set(commands)
    asked = [f"sdsclip {name}" for name in commands] + ["sdsclip space push", "sdsclip metrics push"]
    asked += [f"python {ROOT / script}" for script in SCRIPTS]
    known = FOREIGN | {"--help"}
    for ask in asked:
        status, told = execute(tmp_path, "bash", f"{ask} --help")
        assert status == 0, told
        known |= set(re.findall(r"--\w[\w-]*", told))
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        known_here = known | (OF_JOBS if page.stem == "hf_jobs" else set())
        named = {option for code in re.findall(r"`([^`]+)`", text) for option in re.findall(r"(?<!\S)--\w[\w-]*", code)}
        assert named <= known_here, f"{relative(page)} names {', '.join(sorted(named - known_here))}"


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and the site make it."""
    return re.sub(r"[^\w\s-]", "", re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", heading)).strip().lower().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_to_files_and_headings_in_the_repository(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target, _, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(#([^)\s]+))?\)", text):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{relative(page)} links to {target}, which is not there"
        if anchor:
            headings = {slug(line) for line in re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)}
            assert anchor in headings, f"{relative(page)} links to #{anchor} of {target or 'itself'}: {headings}"


def test_the_readme_is_short_and_begins_with_the_two_commands():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    first, second, *_ = [block.code for block in blocks(ROOT / "README.md")]
    assert first == FIRST_COMMAND and second == 'pip install -e ".[test]" && pytest\n'


def test_every_page_stands_in_the_site_s_menu():
    def pages(entry) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in pages(part)]

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda loader, suffix, node: suffix)
    listed = pages(yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"])
    there = {page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert there <= set(listed) and len(set(listed)) == len(listed)
