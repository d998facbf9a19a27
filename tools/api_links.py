"""For the documentation site: names in docstrings, such as [`ClipScorer`], become links to their place on the API pages."""

import re
from pathlib import Path

import griffe

PAGES = Path(__file__).parents[1] / "docs" / "api"
NAME = re.compile(r"\[`([\w.]+)`\](?![\[(])")


class LinkNames(griffe.Extension):
    """Links a name that is on a page, or is a method of the same class; any other loses its brackets."""

    def __init__(self):
        texts = [page.read_text(encoding="utf-8") for page in sorted(PAGES.glob("*.md"))]
        full = [name for text in texts for name in re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)]
        self.places = {name.rpartition(".")[2]: name for name in full}

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        """Called for each class and function that was read."""
        if obj.docstring is not None:
            obj.docstring.value = NAME.sub(lambda found: self._link(found[1], obj), obj.docstring.value)

    def _link(self, name: str, obj: griffe.Object) -> str:
        owner = obj if obj.is_class else obj.parent
        head = name.partition(".")[0]
        if head in self.places:
            return f"[`{name}`][{self.places[head]}]"
        shown = owner is not None and owner.is_class and owner.name in self.places
        if shown and name in owner.members and not name.startswith("_"):
            return f"[`{name}`][{self.places[owner.name]}.{name}]"
        return f"`{name}`"
