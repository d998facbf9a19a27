"""For mkdocstrings: [`name`] in a docstring, the style of transformers, links to what the name means there."""

import re

import griffe

REFERENCE = re.compile(r"\[`([\w.]+)`\](?![\[(])")


class DocstringLinks(griffe.Extension):
    """Replaces each reference by a link where the site documents the object, and by plain code where it does not."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        """Called for each module, class, function and attribute, with all of its module known."""
        if obj.docstring:
            obj.docstring.value = REFERENCE.sub(lambda match: _link(obj, match.group(1)), obj.docstring.value)


def _link(obj: griffe.Object, name: str) -> str:
    try:
        path = obj.resolve(name)
    except griffe.NameResolutionError:
        return f"`{name}`"
    return f'<autoref optional identifier="{path}"><code>{name}</code></autoref>'
