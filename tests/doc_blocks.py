"""The blocks of commands and Python in README, CONTRIBUTING and docs/, with the marks that tell how each is tested.

A mark is a comment before the block, which a reader does not see:

    runs            in the quick suite, page by page in order, in a folder like a fresh checkout
    runs: minutes   the same in a slow test, as typed into a shell
    runs: hub       against a Hub on loopback
    needs: ...      a gpu, the hub (its models or data), or a package index; its options are checked, it is not run
    takes: hours    the same
    serves          until it is stopped; the same
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
KINDS = ("bash", "console", "python", "sh", "shell")
BLOCK = re.compile(r"^(?:<!-- ([a-z, :]+) -->\n\n?)?```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
MARKS = re.compile(r"runs(: (minutes|hub)(, minutes)?)?|needs: (gpu|hub|index)(, (gpu|hub|index))*|takes: hours|serves")


@dataclass(frozen=True)
class Block:
    """A block with its page, the line of its fence, its mark (or none) and its code."""

    page: Path
    line: int
    mark: str | None
    kind: str
    code: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The commands of a block for the shell, one each, without what installs."""
        whole = self.code.replace("\\\n", " ")
        lines = [re.sub(r"\s+#.*", "", line).strip() for line in whole.splitlines()]
        return [part.strip() for line in lines if line for part in line.split("&&")]


def blocks(page: Path) -> list[Block]:
    """The blocks of a page in their order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text[: found.start(2)].count("\n") + 1, *found.groups())
        for found in BLOCK.finditer(text)
        if found.group(2) in KINDS
    ]
