"""Every public name has a docstring with an example, and every example runs and prints what its comments say."""

import ast
import importlib
import inspect
import io
import re
import tokenize
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

import sdsclip_hf

PAGES = sorted((Path(__file__).parents[2] / "docs" / "api").glob("*.md"))
FIELDS_TELL_OF_THEMSELVES = (
    "sdsclip_hf.config.SDSCLIPConfig",
    "sdsclip_hf.prompts.config.PromptConfig",
)  # a help text each
MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
EXAMPLE = re.compile(r"^Example:\n+```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.fixture
def one_thread():
    """Of small models, threads cost more than they give where other tests run beside them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def documented() -> list[str]:
    """The full names that the pages have, ``sdsclip_hf.losses.ranking_loss``."""
    return [name for page in PAGES for name in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.M)]


def public() -> list[str]:
    """Those and what ``sdsclip_hf`` gives, by the modules that they come from."""
    own = [f"sdsclip_hf.{module}.{name}" for name, module in sdsclip_hf._WHERE.items()]
    return list(dict.fromkeys([*documented(), *own]))


def load(name: str):
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def examples(name: str) -> list[str]:
    return EXAMPLE.findall(inspect.getdoc(load(name)) or "")


def expected(code: str) -> list[str]:
    """The comments behind ``print(...)``: what it prints."""
    starts = {node.lineno for node in ast.parse(code).body if ast.unparse(node).startswith("print(")}
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    return [t.string.removeprefix("# ") for t in tokens if t.type == tokenize.COMMENT and t.start[0] in starts]


def run(code: str) -> list[str]:
    """What the prints of an example that have a comment give, each as a line."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(code, "example", "exec"), {"__name__": "__main__"})
    return printed.getvalue().splitlines()


def test_every_public_name_is_on_a_page_and_in_the_table():
    table = (PAGES[0].parent / "index.md").read_text(encoding="utf-8")
    assert not set(public()) - set(documented())
    assert not [name for name in sdsclip_hf.__all__ if f"`{name}`" not in table]
    assert len(documented()) > 25


@pytest.mark.parametrize("name", public())
def test_docstring_tells_arguments_and_has_an_example(name):
    thing = load(name)
    text = inspect.getdoc(thing) or ""
    assert examples(name), f"{name} has no `Example:` with a block of python"
    if not inspect.isclass(thing):
        assert "Raises:" in text or "raise " not in inspect.getsource(thing)
    if name in FIELDS_TELL_OF_THEMSELVES or inspect.ismodule(thing):
        return
    named = [key for key, argument in inspect.signature(thing).parameters.items() if argument.kind not in MANY]
    told = {name for names in re.findall(r"^    ([a-z_, ]+):", text, re.M) for name in names.split(", ")}
    assert not set(named) - told, f"{name} does not tell of some of its arguments"


@pytest.mark.parametrize("name", public())
def test_example_runs_and_prints_what_it_says(name, tmp_path, monkeypatch, hub_here, one_thread):
    monkeypatch.chdir(tmp_path)
    for code in examples(name):
        wanted, printed = expected(code), run(code)
        assert [line for line in printed if line in wanted] == wanted
        assert len(wanted) == code.count("print("), "a print without a comment that tells what it prints"


def test_comments_of_prints_are_compared():
    assert expected("x = 1  # one\nprint(x)  # 1\nprint(2)\n") == ["1"]
    assert run("print(1 + 1)\nprint('a')") == ["2", "a"]
