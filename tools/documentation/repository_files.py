"""For MkDocs: files of the repository that pages link to, as ``../recipes/configs/shapes.yaml``, become part of the site.

Such links work where Markdown is read in the repository, too. The cards in model_cards/ and pictures are shown as they are;
any other file gets a page of its own with its text.
Options in the text are marked for the style sheet.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<=\]\()((?:\.\./)+)([\w./-]+)")
OPTION = re.compile(r"(?<!\S)--[\w-]+")
SHOWN = "files/"  # where the pages of other files stand on the site
UNLISTED = "---\nsearch:\n  exclude: true\n---\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the cards, their pictures, and every other file that a page links to."""
    for path in sorted([*ROOT.glob("model_cards/*.md"), *ROOT.glob("model_cards/images/*.png")]):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    for name in sorted({target for page in files for target in _linked(page)}):
        text = (
            UNLISTED + f"# `{name}`\n\n````{PurePosixPath(name).suffix[1:]}\n{(ROOT / name).read_text('utf-8')}````\n"
        )
        shown = File.generated(config, f"{SHOWN}{name}.md", content=text, inclusion=InclusionLevel.NOT_IN_NAV)
        files.append(shown)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let the links to the repository's files point to where the site has them."""
    depth = page.file.src_uri.count("/")

    def moved(match: re.Match) -> str:
        target = match.group(2)
        if not _leaves(page.file, match.group(1)) or not (ROOT / target).is_file():
            return match.group()
        return "../" * depth + (target if _is_card(target) else f"{SHOWN}{target}.md")

    return LINK.sub(moved, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Mark the options in inline code, so that the style sheet can keep a line from breaking after their hyphens."""

    def marked(match: re.Match) -> str:
        return OPTION.sub(r'<span class="option">\g<0></span>', match.group())

    return re.sub(r"(?<=<code>)[^<]*(?=</code>)", marked, html)


def _linked(page: File) -> Iterator[str]:
    """The repository's files that a page links to and the site does not have anyway."""
    if page.is_documentation_page() and page.generated_by is None:
        for climb, target in LINK.findall(page.content_string):
            if _leaves(page, climb) and not _is_card(target) and (ROOT / target).is_file():
                yield target


def _leaves(page: File, climb: str) -> bool:
    """Whether so many ``../`` lead out of docs/, to the repository's top."""
    return climb.count("../") == page.src_uri.count("/") + 1


def _is_card(target: str) -> bool:
    return target.startswith("model_cards/") and target.endswith((".md", ".png"))
