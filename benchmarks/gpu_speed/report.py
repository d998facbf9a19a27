"""What was measured, as a Markdown table and plots, beside the goals."""

from pathlib import Path

from sdsclip_hf.evaluation.plots import save_figure, subplots

GOALS = {
    "scoring/SD 1.5": "MFU of 0.60",
    "training/ViT-B/32/L_rank": "a step within 1.15 times a contrastive one",
    "training/ViT-B/32/L_SDS, stop-gradient": "1.1 times the denoiser's forward pass",
    "compiled": "a time below 1",
    "evaluation": "as many images/s as the image tower alone",
}


def table(rows: dict[str, list[dict]]) -> str:
    """Of each row the best point, with all of its figures."""
    lines = ["| row | figures | goal |", "| --- | --- | --- |"]
    for name, points in rows.items():
        told = ", ".join(f"{key} {_number(value)}" for key, value in best(points).items()) if points else "not measured"
        goal = next((goal for start, goal in GOALS.items() if name.startswith(start)), "")
        lines.append(f"| {name} | {told} | {goal} |")
    return "\n".join(lines)


def best(points: list[dict]) -> dict:
    """The point with the most images or pairs a second; of rows without such the last."""
    return max(points, key=lambda point: point.get("images/s") or point.get("pairs/s") or 0)


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return "-" if value is None else str(value)


def plots(rows: dict[str, list[dict]], folder: Path) -> list[Path]:
    """training.png, images a second over the batch; scoring.png, pairs a second over the denoiser's batch."""
    made = []
    for kind, across, up in (("training", "pairs", "images/s"), ("scoring", "batch", "pairs/s")):
        chosen = {name.partition("/")[2]: points for name, points in rows.items() if name.startswith(f"{kind}/")}
        if any(chosen.values()):
            made.append(folder / f"{kind}.png")
            _plot(chosen, across, up, made[-1])
    return made


def _plot(rows: dict[str, list[dict]], across: str, up: str, path: Path) -> None:
    figure, axes = subplots(figsize=(7, 4.5))
    for name, points in rows.items():
        axes.plot([point[across] for point in points], [point[up] for point in points], marker="o", label=name)
    axes.set(xlabel=across, ylabel=up, xscale="log", yscale="log")
    axes.legend(fontsize=6)
    save_figure(figure, path)
