"""Plots of a run: loss terms over its steps, scores with their intervals."""

from pathlib import Path
from typing import TYPE_CHECKING

from sdsclip_hf.common.writing import whole_file
from sdsclip_hf.evaluation.results import labels
from sdsclip_hf.evaluation.tables import main_scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS_IN_A_ROW = 3


def plot_losses(log_history: list[dict], path: Path) -> None:
    """Training loss, its terms, and the health figures of the distillation term, one panel each.

    Args:
        log_history: ``trainer.state.log_history``.
        path: the PNG to write.
    """
    rows = [row for row in log_history if "loss" in row]
    panels = {
        "loss": ("loss", "total loss"),
        "contrastive": ("contrastive", "contrastive term"),
        "sds": ("sds", "distillation term"),
        "ranking": ("ranking", "ranking term"),
        "ranking_images": ("ranking_images", "ranking term over pictures"),
        "cosine": ("cosine", "cosine term"),
        "sds_gap": ("sds_gap", "gap to shuffled captions"),
        "latent_spread": ("latent_spread", "spread of z0 in a batch"),
        "grad_cosine": ("grad_cosine", "cosine of the terms' gradients"),
    }
    shown = [key for key in panels if any(key in row for row in rows)]
    if not shown:
        return
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure, axes = subplots(lines, columns, figsize=(4.2 * columns, 2.9 * lines), squeeze=False)
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    for axis, key in zip(axes.flat, shown, strict=False):
        points = [(row["step"], row[key]) for row in rows if key in row]
        axis.plot(*zip(*points, strict=True), color="tab:blue", label="train")
        held_out = [(row["step"], row[f"eval_{key}"]) for row in log_history if f"eval_{key}" in row]
        if held_out:
            axis.plot(*zip(*held_out, strict=True), "o-", color="tab:orange", label="held out")
            axis.legend(frameon=False)
        axis.set_title(panels[key][1], fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    figure.tight_layout()
    save_figure(figure, path)


def plot_main_scores(runs: dict[str, dict], path: Path) -> None:
    """The score of each benchmark, or kind of its items, that counts most: one panel each, a labelled bar a run.

    Args:
        runs: run -> benchmark -> rows, as [`evaluate_benchmarks`] gives them.
        path: the PNG to write.
    """
    scores = main_scores(next(iter(runs.values())))
    columns = min(len(scores), PANELS_IN_A_ROW)
    lines = -(-len(scores) // columns)
    size = (3.1 * columns + 1.4, lines * (0.36 * len(runs) + 1.1))
    figure, axes = subplots(lines, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis in axes.flat[len(scores) :]:
        axis.axis("off")
    for axis, one in zip(axes.flat, scores, strict=False):
        rows = [results[one.spec][one.place] for results in runs.values()]
        for place, row in enumerate(rows):
            value, (low, high) = 100 * row["value"], (100 * bound for bound in row["interval"])
            errors = [[max(0.0, value - low)], [max(0.0, high - value)]]
            axis.barh(place, value, 0.72, xerr=errors, capsize=2, color=f"C{place % 10}", ecolor="0.35")
            axis.text(max(value, high) + 2, place, f"{value:.0f}", va="center", fontsize=10)
        axis.set_title(f"{one.title}\n{one.score}, %", fontsize=10)
        axis.set_xlim(0, 116)
        axis.set_xticks(range(0, 101, 25))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_yticks(range(len(runs)), list(runs))
    axes[0, 0].set_ylim(len(runs) - 0.5, -0.5)
    save_figure(figure, path)


def plot_scores(runs: dict[str, dict], path: Path) -> None:
    """The headline scores with 95 % intervals: one panel a benchmark, one colour a run.

    Args:
        runs: run -> benchmark -> rows, as [`evaluate_benchmarks`] gives them.
        path: the PNG to write.
    """
    first = next(iter(runs.values()))
    shown = {spec: [place for place, row in enumerate(rows) if row["headline"]] for spec, rows in first.items()}
    titles = labels(first)
    heights = [0.16 * len(places) * (len(runs) + 0.6) + 0.2 for places in shown.values()]
    figure, axes = subplots(
        len(shown),
        figsize=(7, sum(heights) + 0.75 * len(shown) + 0.5),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for axis, (spec, places) in zip(axes[:, 0], shown.items(), strict=True):
        for number, (run, results) in enumerate(runs.items()):
            rows = [results[spec][place] for place in places]
            values = [100 * row["value"] for row in rows]
            below = [max(0.0, value - 100 * row["interval"][0]) for value, row in zip(values, rows, strict=True)]
            above = [max(0.0, 100 * row["interval"][1] - value) for value, row in zip(values, rows, strict=True)]
            offset = 0.8 * ((number + 0.5) / len(runs) - 0.5)
            positions = [line + offset for line in range(len(rows))]
            axis.barh(positions, values, 0.8 / len(runs), xerr=(below, above), capsize=2, label=run)
            axis.plot(values, positions, "k.", markersize=2)  # a bar of no length is a score, too
        axis.set_yticks(range(len(places)), [_row_name(first[spec][place]) for place in places], fontsize=8)
        axis.set_ylim(len(places) - 0.4, -0.6)
        axis.set_xlim(-1, 101)
        axis.grid(axis="x", alpha=0.3)
        axis.set_title(titles[spec], fontsize=10, loc="left")
    axes[-1, 0].set_xlabel("%")
    columns = len(runs) if sum(map(len, runs)) < 60 else 1
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, ncols=columns, loc="outside upper right")
    save_figure(figure, path)


def _row_name(row: dict) -> str:
    return row["score"] if row["subset"] == "all" else f"{row['subset']}: {row['score']}"


def subplots(rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], layout: str | None = None, **options):
    """A figure and its axes, as ``pyplot.subplots`` gives them, without a window or a notebook that would show it."""
    from matplotlib.figure import Figure  # it takes a second, which most commands need not wait

    figure = Figure(figsize=figsize, layout=layout)
    return figure, figure.subplots(rows, columns, **options)


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure as a PNG."""
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=130, format="png")
