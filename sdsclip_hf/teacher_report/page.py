"""The report as one HTML file that needs neither a network nor a script."""

import re
from html import escape
from pathlib import Path

from sdsclip_hf.common.writing import write_text
from sdsclip_hf.reports.page import WEB
from sdsclip_hf.teacher_report.plots import pictures
from sdsclip_hf.teacher_report.text import note, sentences, table_lines, told_of

PAGE_FILE = "teacher_report.html"


def write_page(path: Path, report: dict) -> None:
    """Write the page of a report, in the place of what is there.

    Raises:
        NoRoomError: the disk is full.
    """
    write_text(path, page(report))


def page(report: dict) -> str:
    """The page as HTML. All texts are escaped: no caption, tag or name can become markup."""
    head, *rows = table_lines(report)
    parts = {
        "style": (WEB / "page.css").read_text(encoding="utf-8"),
        "title": escape(told_of(report)),
        "head": "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head),
        "rows": "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows),
        "note": escape(note(report)),
        "verdict": "\n".join(f"<li>{escape(sentence)}</li>" for sentence in sentences(report)),
        "plots": "\n".join(
            f'<figure class="panel"><h3>{words}</h3><img alt="{words}" src="{source}"></figure>'
            for words, source in pictures(report)
        ),
        "command": escape(report["command"]),
        "version": escape(report["versions"]["sdsclip_hf"]),
    }
    template = (WEB / "teacher.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{ (\w+) \}\}", lambda found: parts[found[1]], template)
