"""The files that several metrics share: a Space stands alone, so each has its own copy of them.

After a change to the first copy, ``python -m sdsclip_hf.metrics.copies`` brings the others in line.
"""

from pathlib import Path

WINOGROUND = ("winoground_group_score", "winoground_image_score", "winoground_text_score")
CHOICES = ("aro_relation", "aro_attribution", "aro_order", "sugarcrepe_accuracy")
SHARED = {
    "scoring.py": (*WINOGROUND, *CHOICES),
    "winoground.py": WINOGROUND,
    "choices.py": CHOICES,
    "app.py": (*WINOGROUND, *CHOICES),
    "requirements.txt": (*WINOGROUND, *CHOICES),
}


def differing() -> dict[Path, Path]:
    """Each copy that differs from the first one, or is missing, with the first one."""
    folder = Path(__file__).parent
    pairs = {folder / name / file: folder / metrics[0] / file for file, metrics in SHARED.items() for name in metrics}
    return {
        copy: first for copy, first in pairs.items() if not copy.exists() or copy.read_bytes() != first.read_bytes()
    }


if __name__ == "__main__":
    for copy, first in differing().items():
        copy.write_bytes(first.read_bytes())
        print(f"{copy.parent.name}/{copy.name} is now as {first.parent.name}/{first.name}")
