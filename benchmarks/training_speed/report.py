"""What was measured, as markdown tables and plots."""

from pathlib import Path

from sdsclip_hf.evaluation.plots import save_figure, subplots
from sdsclip_hf.losses import GRADIENTS

AXES = {"batch": "pairs in a batch", "latent": "latent size", "processes": "processes"}
UNMEASURED = "not measured"


def tables(rows: dict[str, dict]) -> str:
    """Markdown: the rows with a target or a ratio, the options, and the growth of time and memory."""
    groups = {"compared": [], "options": [], "growth": []}
    for name, row in rows.items():
        if name.startswith("option/"):
            groups["options"].append(_option_line(name, row))
        elif name.startswith("growth/"):
            point, figures = row["point"], [_number(figure["value"]) for figure in row["figures"]]
            groups["growth"].append([*map(str, point.values()), *figures])
        else:
            groups["compared"] += [_compared_line(figure) for figure in row["figures"]]
    heads = {
        "compared": ["what", "target", "measured (each pair)"],
        "options": ["option", "time of a step", "peak memory of a step"],
        "growth": ["gradient", "batch", "latent", "processes", "seconds a step", "peak, GiB"],
    }
    return "\n\n".join(_table(heads[name], lines) for name, lines in groups.items() if lines)


def _compared_line(figure: dict) -> list[str]:
    target = figure["target"].replace("<=", "≤").replace(">=", "≥")
    return [figure["what"], target, _with_pairs(figure)]


def _option_line(name: str, row: dict) -> list[str]:
    option = f"`{name.partition('/')[2]}`"
    if not row["figures"]:
        return [option, row["note"], ""]
    return [option, *map(_with_pairs, row["figures"])]


def _with_pairs(figure: dict) -> str:
    value = figure["value"]
    text = _number(value)
    pairs = ", ".join(_number(pair) for pair in figure.get("pairs", []))
    return f"**{text}** ({pairs})" if pairs else f"**{text}**"


def _number(value: float | None) -> str:
    if value is None:
        return UNMEASURED
    return f"{value:.1g}" if abs(value) < 0.005 else f"{value:.2f}"


def _table(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def plot_all(rows: dict[str, dict], folder: Path) -> list[Path]:
    """The plots that there are figures for: growth.png and options.png."""
    growth = [row for name, row in rows.items() if name.startswith("growth/")]
    options = {name.partition("/")[2]: row for name, row in rows.items() if name.startswith("option/")}
    options = {name: row for name, row in options.items() if row["figures"]}
    paths = []
    if growth:
        paths.append(folder / "growth.png")
        plot_growth(growth, paths[-1])
    if options:
        paths.append(folder / "options.png")
        plot_options(options, paths[-1])
    return paths


def plot_growth(rows: list[dict], path: Path) -> None:
    """Seconds and memory of a step over batch size, latent size and number of processes, one line a form of the gradient.

    Args:
        rows: with their points.
        path: the PNG to write.
    """
    figure, axes = subplots(2, len(AXES), figsize=(4 * len(AXES), 6), layout="constrained", sharey="row")
    for column, (name, label) in zip(axes.T, AXES.items(), strict=True):
        for form in GRADIENTS:
            line = _line(rows, name, form)
            for axis, place in zip(column, (0, 1), strict=True):
                values = [row["figures"][place]["value"] for row in line]
                if None not in values:
                    axis.plot([row["point"][name] for row in line], values, "o-", label=form.replace("_", "-"))
        column[1].set_xlabel(label)
        for axis in column:
            axis.set_xticks(sorted({row["point"][name] for form in GRADIENTS for row in _line(rows, name, form)}))
            axis.grid(alpha=0.3)
    for row in axes:
        row[0].set_ylim(bottom=0)  # when all lines are there, since a row shares its axis
    axes[0, 0].set_ylabel("seconds a step")
    axes[1, 0].set_ylabel("peak memory, GiB")
    axes[0, 0].legend(frameon=False, title="gradient")
    save_figure(figure, path)


def _line(rows: list[dict], name: str, form: str) -> list[dict]:
    """The rows of one form along one axis: those that agree in all else with the most others."""
    lines: dict[tuple, list[dict]] = {}
    for row in rows:
        if row["point"]["form"] == form:
            others = tuple(value for key, value in row["point"].items() if key != name)
            lines.setdefault(others, []).append(row)
    return sorted(max(lines.values(), key=len, default=[]), key=lambda row: row["point"][name])


def plot_options(rows: dict[str, dict], path: Path) -> None:
    """Time and memory of a step with each option, in per cent of one without.

    Args:
        rows: by option.
        path: the PNG to write.
    """
    figure, axis = subplots(figsize=(8, 0.6 * len(rows) + 1.2), layout="constrained")
    for place, what in enumerate(("time", "peak memory of the process")):
        values = [100 * (row["figures"][place]["value"] or 0) for row in rows.values()]
        bars = axis.barh([line + 0.36 * (place - 0.5) for line in range(len(rows))], values, 0.36, label=what)
        axis.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
    axis.axvline(100, color="black", linewidth=0.8)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.invert_yaxis()
    axis.margins(x=0.1)
    axis.set_xlabel("% of a step in the full form without the option")
    axis.grid(axis="x", alpha=0.3)
    figure.legend(frameon=False, loc="outside upper right", ncols=2)
    save_figure(figure, path)
