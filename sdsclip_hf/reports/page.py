"""One HTML file that stands alone: the template with its style, its script and the values in it."""

import json
import re
from pathlib import Path

from sdsclip_hf.common.writing import write_text

WEB = Path(__file__).parent / "web"
REPORT_FILE = "report.html"
SCRIPTS = ("elements.js", "charts.js", "page.js")


def write_page(path: Path, content: dict, pictures: list[str]) -> None:
    """Write the page that shows what [`gather`] gave, in the place of what is there.

    Raises:
        NoRoomError: the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page(content, pictures))


def page(content: dict, pictures: list[str]) -> str:
    """The page as HTML."""
    parts = {"style": (WEB / "page.css").read_text(encoding="utf-8")}
    parts["script"] = "".join((WEB / name).read_text(encoding="utf-8") for name in SCRIPTS)
    parts |= {"content": as_script(content), "pictures": as_script(pictures)}
    template = (WEB / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{ (\w+) \}\}", lambda found: parts[found[1]], template)


def as_script(value) -> str:
    """JSON that no HTML can begin or end in, whatever its texts hold; in ASCII."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
