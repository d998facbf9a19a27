# /// script
# requires-python = ">=3.10"
# dependencies = ["sdsclip_hf"]  # or from git: ["sdsclip_hf @ git+https://github.com/OWNER/sdsclip_hf"]
# ///
"""Put the figures of finished studies into model_cards/: ``python tools/study_card.py [outputs]``.

Of each study in the folder the results and plots are copied, and its rows in the tables of model_cards/study.md and
docs/study.md get the figures of the arms that they name. Rows that change are printed, so that it also tells where a rerun
differs from the card. The text between the tables is yours to mend.
"""

import argparse
import json
import re
from pathlib import Path

from PIL import Image

from sdsclip_hf.common.checkpoints import write_json

ROOT = Path(__file__).resolve().parent.parent
CARD, PAGE = "model_cards/study.md", "docs/study.md"
IMAGES, RESULTS = "model_cards/images", "model_cards/results"
RETAINED = {
    "text to image, recall@1": "retrieval:test/text_to_image/recall@1",
    "image to text, recall@1": "retrieval:test/image_to_text/recall@1",
    "which two shapes": "shapes_classes:test=shape/all/accuracy@1",
    "which two colours": "shapes_classes:test=color/all/accuracy@1",
    "attribute, validation": "shapes:validation/attribute/group",
    "relation, validation": "shapes:validation/relation/group",
    "which two colours, validation": "shapes_classes:validation/all/accuracy@1",
}
FIGURES = re.compile(r"(.+), (text|image) score")  # columns of other figures than the group score
# The page's table has a column of each of two studies, and says some arms at greater length.
PAGE_COLUMNS = [("study_ranking", "attribute"), ("study_sds", "relation")]
PAGE_ARMS = {
    "contrastive loss alone": "contrastive",
    "+ L_SDS, h_w trained along from nothing, as the paper has it": "+ L_SDS, as the paper has it",
    "+ L_rank, `wise_ft_alpha` 0.6": "+ L_rank, 0.6 of the way",
    "+ L_rank's form with true labels": "+ L_rank, true labels",
    "+ hard negatives, by labels (NegCLIP's form)": "+ hard negatives, by labels",
    "control: L_rank, scores of a wrong image": "+ L_rank, scores of a wrong image",
    "control: L_rank, untrained teacher": "+ L_rank, untrained teacher",
    "control: L_SDS, shuffled captions": "+ L_SDS, shuffled captions",
}
PLOTS = {"study.png": "", "skill.png": "", "health.png": "_health", "decoded.png": "_decoded"}


def fill_card(text: str, results: dict[str, dict]) -> str:
    """The card with the figures of ``results`` (study -> its results.json) in each table that stands under its heading.

    Raises:
        KeyError: a row names an arm that its study has not.
    """
    lines, study, columns = [], None, []
    for line in text.split("\n"):
        if line.startswith("## "):
            study = next(iter(re.findall(r"`(study_\w+)`", line)), None)
        cells = _cells(line)
        if not cells:
            columns = []
        elif cells[0] == "arm":
            columns = cells[1::2]
        elif columns and study in results and not line.startswith("|-"):
            arm, found = _arm(cells[0]), results[study]
            bare = arm in ("before", found["settings"]["baseline"])
            rows = [_found(found, arm, column) for column in columns]
            line = _row([cells[0], *(cell for row in rows for cell in (_score(row), "" if bare else _gain(row)))])
        lines.append(line)
    return "\n".join(lines)


def fill_page(text: str, results: dict[str, dict]) -> str:
    """docs/study.md with the same in its table of two students; cells that are empty stay so.

    Raises:
        KeyError: a row names an arm that its study has not.
    """
    lines, inside = [], False
    for line in text.split("\n"):
        cells = _cells(line)
        if cells and inside and not line.startswith("|-"):
            arm = PAGE_ARMS.get(_arm(cells[0]), _arm(cells[0]))
            for number, (study, tag) in enumerate(PAGE_COLUMNS, 1):
                if cells[number] and study in results:
                    seeds = re.search(r"( \(\d+\))?$", cells[number]).group()
                    cells[number] = _score(results[study]["arms"][arm][tag]) + seeds
            line = _row(cells)
        inside = line.startswith("| | student that binds nothing") or (inside and bool(cells))
        lines.append(line)
    return "\n".join(lines)


def _found(results: dict, arm: str, column: str) -> dict:
    """What a study's results hold of an arm under a column of the card."""
    if column in RETAINED:
        return results["retained"][arm][RETAINED[column]]
    if named := FIGURES.fullmatch(column):
        tag, figure = named.groups()
        return results["figures"][figure][arm][tag]
    return results["arms"][arm][column]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def _row(cells: list[str]) -> str:
    return "".join(f"| {cell} " for cell in cells) + "|"


def _arm(cell: str) -> str:
    """The arm's name without what marks the row: bold type, and the number of seeds."""
    return re.sub(r" \(\d+\)$", "", cell.replace("**", ""))


def _score(row: dict) -> str:
    return "{:.1f} [{:.1f}, {:.1f}]".format(row["group"], *row["interval"])


def _gain(row: dict) -> str:
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(row["gain"], *row["gain_interval"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outputs", nargs="?", type=Path, default=Path("outputs"), help="holds the studies' folders")
    args = parser.parse_args()
    card = (ROOT / CARD).read_text(encoding="utf-8")
    folders = [args.outputs / name for name in sorted(set(re.findall(r"`(study_[a-z_]+)`", card)))]
    results = {f.name: json.loads((f / "results.json").read_text()) for f in folders if (f / "results.json").is_file()}
    if not results:
        raise SystemExit(f"error: no study has its results.json in {args.outputs}; run bash tools/whole_study.sh.")
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    filled = {CARD: (card, fill_card(card, results)), PAGE: (page, fill_page(page, results))}
    for path, (before, after) in filled.items():
        for old, new in zip(before.split("\n"), after.split("\n"), strict=True):
            if old != new:
                print(f"{path}\n- {old}\n+ {new}")
        (ROOT / path).write_text(after, encoding="utf-8")
    (ROOT / RESULTS).mkdir(exist_ok=True)
    for study, found in results.items():
        write_json(ROOT / RESULTS / f"{study}.json", found)
        for plot, ending in PLOTS.items():
            source, target = args.outputs / study / plot, ROOT / IMAGES / f"{study}{ending}.png"
            if (
                source.is_file()
                and f"images/{target.name}" in card
                and not (plot == "study.png" and found.get("skill"))
            ):
                picture = Image.open(source).convert("RGB")
                few = plot != "decoded.png"  # photographs, as it were, do not fit a palette
                (picture.quantize(256) if few else picture).save(target, optimize=True)
    print(f"The figures of {', '.join(results)} are in {CARD} and {PAGE}; their text and the plots want a look.")


if __name__ == "__main__":
    main()
