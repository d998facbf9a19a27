"""The house: each folder imports only from those above it, no files import one another, and files stay short."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sdsclip_hf"
ORDER = (
    *(
        "contrastive_losses",
        "losses",
        "common",
        "config",
        "shapes",
        "data",
        "benchmarks",
        "students",
        "hub",
        "metrics",
        "teachers",
    ),
    *(
        "evaluation",
        "reports",
        "cards",
        "rankers",
        "scoring",
        "training",
        "prompts",
        "planning",
        "teacher_report",
        "doctor",
        "study",
        "demo",
        "commands",
    ),
)
MOST_LINES, MOST_FILES = 450, 5
FILES = sorted(file for file in PACKAGE.rglob("*.py") if "_recipes" not in file.parts)


def imports_of(file: Path) -> list[tuple[int, str]]:
    """Line and name of all that a file imports of the package, wherever in the file."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, name.name) for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found += [(node.lineno, f"{node.module}.{name.name}") for name in node.names]
    return [(line, name) for line, name in found if name.split(".")[0] == "sdsclip_hf"]


def file_of(name: str) -> Path:
    """The file that ``sdsclip_hf.a.b.c`` comes from, c perhaps being one of its names."""
    for words in (name.split("."), name.split(".")[:-1]):
        for file in (ROOT.joinpath(*words).with_suffix(".py"), ROOT.joinpath(*words, "__init__.py")):
            if file.is_file():
                return file
    raise AssertionError(f"{name} is imported, but there is no such file")


def told(file: Path) -> str:
    return str(file.relative_to(ROOT))


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


GRAPH = {file: {file_of(name): line for line, name in imports_of(file)} for file in FILES}


def test_every_folder_has_its_place():
    assert {room(file) for file in FILES} - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_a_folder_imports_only_from_those_above_it(name):
    wrong = [
        f"{told(file)}:{line} imports {told(other)}, which stands below {name}"
        for file, others in GRAPH.items()
        if room(file) == name
        for other, line in others.items()
        if room(other) != "__init__" and ORDER.index(room(other)) > ORDER.index(name)
    ]
    assert not wrong, "\n".join(wrong)


def test_common_imports_nothing_of_the_package_from_outside():
    assert not [
        f"{told(file)}:{line}" for file in FILES if room(file) == "common" for other, line in GRAPH[file].items()
        if room(other) != "common"
    ]  # fmt: skip


def test_what_becomes_a_space_imports_nothing_of_the_package():
    spaces = [
        file for file in FILES if "page" in file.parts or (room(file) == "metrics" and file.parent.name != "metrics")
    ]
    assert len(spaces) > 12
    assert not [f"{told(file)}:{line}" for file in spaces for line in GRAPH[file].values()]


def test_no_two_files_import_one_another():
    """Depth first: a file that is met again on the way down closes a circle."""
    finished: set[Path] = set()

    def visit(file: Path, way: tuple[Path, ...]) -> None:
        assert file not in way, " imports ".join(map(told, (*way[way.index(file) :], file)))
        if file not in finished:
            for other in GRAPH.get(file, ()):
                if other != file:
                    visit(other, (*way, file))
            finished.add(file)

    for file in FILES:
        if file != PACKAGE / "__init__.py":  # it names all of it, but imports it when used
            visit(file, ())


def test_files_are_short_and_the_root_is_nearly_empty():
    long = {
        told(file): lines
        for file in FILES
        if (lines := len(file.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    }
    assert not long
    assert len([path for path in PACKAGE.iterdir() if path.is_file()]) <= MOST_FILES
