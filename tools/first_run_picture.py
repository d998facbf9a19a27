# /// script
# requires-python = ">=3.10"
# dependencies = ["sdsclip_hf"]  # or from git: ["sdsclip_hf @ git+https://github.com/OWNER/sdsclip_hf"]
# ///
"""Draw the README's picture, a swapped pair and the scores of its table: ``python tools/first_run_picture.py``."""

import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from sdsclip_hf.shapes.scenes import RELATION_TEMPLATES, Placement, Scene, Thing, render

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "model_cards/images/first_run.png"
KINDS = ("attribute", "attribute\nin relation", "relation")
COLOURS = ("#b0b4bb", "#7aa6d8", "#f2a65a", "#2f9e6e")


def scores(readme: str) -> dict[str, list[tuple[float, float, float]]]:
    """run -> (score, low, high) of each kind of pair, from the README's table."""
    number = r"([\d.]+) \[([\d.]+), ([\d.]+)\]"
    rows = re.findall(rf"^\| ([^|]+) \| {number} \| {number} \| {number} \| [\d.]+ \|$", readme, re.MULTILINE)
    return {name: [tuple(map(float, cells[at : at + 3])) for at in (0, 3, 6)] for name, *cells in rows}


def draw(runs: dict[str, list[tuple[float, float, float]]]) -> plt.Figure:
    """Left two pictures whose captions differ by a swap, right the group scores of each run."""
    figure = plt.figure(figsize=(10, 3.5), dpi=150)
    pair, bars = figure.add_gridspec(
        1, 2, width_ratios=(1, 1.55), wspace=0.2, left=0.02, right=0.99, top=0.87, bottom=0.23
    )
    left, right = pair.subgridspec(1, 2, wspace=0.12).subplots()
    scene = Scene(Thing("yellow", "star"), Thing("blue", "cross"), "left of")
    placement = Placement((0, 0), (0, 0), 6.0, 6.0, 240)
    for axis, shown in ((left, scene), (right, scene.swap_arguments())):
        axis.imshow(render(shown, placement))
        axis.set_title(shown.caption(RELATION_TEMPLATES[0]).replace(" left of ", "\nleft of "), fontsize=10)
        axis.axis("off")
    figure.text(0.193, 0.235, "A relation: which caption belongs to which picture?", ha="center", fontsize=10)
    axis, width = figure.add_subplot(bars), 0.8 / len(runs)
    for number, ((name, rows), colour) in enumerate(zip(runs.items(), COLOURS, strict=True)):
        places = [kind + (number - (len(runs) - 1) / 2) * width for kind in range(len(KINDS))]
        values, lows, highs = zip(*rows, strict=True)
        below = [value - low for value, low in zip(values, lows, strict=True)]
        above = [high - value for value, high in zip(values, highs, strict=True)]
        whisker = {"lw": 0.8, "ecolor": "#444"}
        axis.bar(places, values, 0.9 * width, yerr=[below, above], color=colour, label=name, error_kw=whisker)
        for place, value, high in zip(places, values, highs, strict=True):
            axis.text(place, high + 1.5, f"{value:.0f}", ha="center", fontsize=9)
    axis.set_xticks(range(len(KINDS)), KINDS, fontsize=10)
    axis.set_ylim(0, 112)
    axis.set_yticks(range(0, 101, 25))
    axis.set_title("Swapped pairs that CLIP gets right, % (all four choices)", fontsize=10, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(ncols=4, frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.2), columnspacing=1.2)
    return figure


if __name__ == "__main__":
    draw(scores((ROOT / "README.md").read_text(encoding="utf-8"))).savefig(PICTURE)
    print(f"{PICTURE.relative_to(ROOT)} shows the README's table.")
