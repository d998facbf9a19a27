"""The link from a model's card to the page of its items, see [`sdsclip_hf.reports`]."""

from pathlib import Path

from sdsclip_hf.cards.model_card import CARD_FILE, REPORT_LINK
from sdsclip_hf.common.writing import write_text

HEADING = "## Scores"  # of the template


def check_card(folder: Path, model: str) -> None:
    """See that a folder has a card, and that what was evaluated is its model.

    Args:
        folder: of a run.
        model: as it was evaluated, a folder or a Hub id.

    Raises:
        ValueError: it has no card, or another folder's model was evaluated.
    """
    if not (folder / CARD_FILE).is_file():
        raise ValueError(f"--card {folder} has no {CARD_FILE}; give the folder that a finished run left.")
    if Path(model).is_dir() and Path(model).resolve() != folder.resolve():
        raise ValueError(f"--card {folder} is not {model}, which was evaluated; give that folder.")


def link_report(folder: Path) -> None:
    """Let a card's scores begin with the link, once."""
    path = folder / CARD_FILE
    text = path.read_text(encoding="utf-8")
    if REPORT_LINK in text:
        return
    head, heading, rest = text.partition(f"{HEADING}\n")
    if not heading:
        head, heading, rest = f"{text.rstrip()}\n\n", f"{HEADING}\n", ""
    write_text(path, f"{head}{heading}\n{REPORT_LINK}\n{rest}")
