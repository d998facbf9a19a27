"""What a study's runs add up to: scores and paired differences with intervals over seeds and items, and their tables."""

import json
from pathlib import Path

import numpy as np

from sdsclip_hf.metrics.common import winoground

BEFORE = "before"
HEALTH = ("sds", "sds_gap", "latent_rms", "latent_spread", "ranking", "ranking_agreement", "contrastive")


def summarize(settings: dict, folder: Path, runs: dict[str, list[Path]], skills: dict[str, list[Path]]) -> dict:
    """All figures of a study.

    Args:
        settings: the study's.
        folder: the study's.
        runs: arm -> the file of each seed's run, those of ``BEFORE`` first; seeds that begin alike share what was before.
        skills: scores -> the file of each world's teacher; empty where no curve is drawn.

    Returns:
        ``arms``: arm -> tag -> group score, its interval, the difference to the baseline and its interval, in per cent.
        ``figures``: text or image, as the settings name them -> the same of that score.
        ``retained``: arm -> benchmark -> the same, intervals over seeds alone. ``drift``: arm -> how far each tower
        moved. ``skill``: scores -> tag -> how often their teacher takes the right one of two captions, and ``teacher_group``
        its own group score, in per cent, the mean over the worlds. ``health``: arm -> figure -> (step, mean over the
        seeds). ``decoded``: arm -> file of decoded latents. ``settings``: the study's.
    """
    tags = np.load(runs[BEFORE][0])["tags"]
    told = {arm: [json.loads(path.with_suffix(".json").read_text()) for path in paths] for arm, paths in runs.items()}
    baseline = settings["baseline"]
    summary = {"settings": settings, "arms": _by_tag("group", runs, tags, baseline)}
    summary["figures"] = {name: _by_tag(name, runs, tags, baseline) for name in settings.get("figures") or []}
    summary |= {"retained": {}, "drift": {}, "health": {}}
    for arm, paths in runs.items():
        different = len(set(paths))
        summary["retained"][arm] = {
            name: _row(_column(told[arm], name), _column(told[baseline][: len(told[arm])], name), different)
            for name in told[arm][0]["retained"]
        }
        if arm != BEFORE:
            drift = [run["drift"] for run in told[arm]]
            summary["drift"][arm] = {tower: float(np.mean([run[tower] for run in drift])) for tower in drift[0]}
            summary["health"][arm] = _health([run["history"] for run in told[arm]])
    if skills:
        summary["skill"] = {name: _skill(paths, "skill") for name, paths in skills.items()}
        summary["teacher_group"] = {name: _skill(paths, "group") for name, paths in skills.items()}
    decoded = {arm: paths[0] for arm, paths in runs.items() if "decoded" in np.load(paths[0])}
    summary["decoded"] = {arm: str(path.relative_to(folder)) for arm, path in decoded.items()}
    return summary


def _by_tag(figure: str, runs: dict[str, list[Path]], tags: np.ndarray, baseline: str) -> dict[str, dict[str, dict]]:
    """Arm -> tag -> the row of a figure of 2 x 2 items."""
    right = {arm: np.stack([_right(path, figure) for path in paths]) for arm, paths in runs.items()}  # (seeds, items)
    return {
        arm: {
            tag: _row(right[arm][:, tags == tag], right[baseline][: len(paths), tags == tag], len(set(paths)))
            for tag in dict.fromkeys(tags.tolist())
        }
        for arm, paths in runs.items()
    }


def _right(path: Path, figure: str) -> np.ndarray:
    return winoground.right_items(np.load(path)["scores"])[figure].astype(float)


def _column(told: list[dict], name: str) -> np.ndarray:
    return np.array([[run["retained"][name]] for run in told])  # (seeds, 1)


def _row(values: np.ndarray, base: np.ndarray, runs: int) -> dict:
    """Figures of (seeds, items) in per cent, and of their paired difference to the baseline's; the first ``runs`` differ."""
    return {
        "group": 100 * values.mean(),
        "interval": interval(values[:runs]),
        "gain": 100 * (values.mean() - base.mean()),
        "gain_interval": interval(values - base),
        "seeds": [100 * row.mean() for row in values[:runs]],
        "items": int(values.shape[1]),
    }


def _health(histories: list[list[dict]]) -> dict[str, list[tuple[int, float]]]:
    found = {}
    for name in HEALTH:
        by_step: dict[int, list[float]] = {}
        for row in (row for history in histories for row in history if "loss" in row and name in row):
            by_step.setdefault(row["step"], []).append(row[name])
        if by_step:
            found[name] = [(step, float(np.mean(values))) for step, values in sorted(by_step.items())]
    return found


def _skill(paths: list[Path], figure: str) -> dict[str, float]:
    found = [json.loads(path.read_text())[figure] for path in paths]
    return {tag: 100 * float(np.mean([one[tag] for one in found])) for tag in found[0]}


def interval(values: np.ndarray, resamples: int = 4000) -> tuple[float, float]:
    """95 % percentile interval, in per cent, of the mean of (seeds, items), resampling both."""
    rng = np.random.default_rng(0)
    seeds, items = values.shape
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    of_items = rng.multinomial(items, np.full(items, 1 / items), size=resamples) / items
    means = np.einsum("bs,si,bi->b", of_seeds, values, of_items, optimize=True)
    low, high = np.quantile(means, [0.025, 0.975])
    return 100 * float(low), 100 * float(high)


def table(summary: dict) -> str:
    """The summary as Markdown: group score and gain over the baseline, each with its 95 % interval; then the rest."""
    baseline = summary["settings"]["baseline"]
    by_figure = {"group": summary["arms"], **summary["figures"]}
    parts = [_table(rows, baseline, f": {figure}") for figure, rows in by_figure.items()]
    if any(summary["retained"].values()):
        parts.append(_table(summary["retained"], baseline, ""))
    if summary["drift"]:
        lines = ["| arm | images moved | captions moved |", "|---|---|---|"]
        lines += [f"| {arm} | {row['images']:.3f} | {row['captions']:.3f} |" for arm, row in summary["drift"].items()]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _table(arms: dict[str, dict], baseline: str, suffix: str) -> str:
    columns = list(next(iter(arms.values())))
    head = " | ".join(f"{column}{suffix} | gain" for column in columns)
    lines = [f"| arm | {head} |", "|---" * (1 + 2 * len(columns)) + "|"]
    for arm, rows in arms.items():
        cells = []
        for column in columns:
            row = rows[column]
            cells.append(f"{row['group']:.1f} [{row['interval'][0]:.1f}, {row['interval'][1]:.1f}]")
            low, high = row["gain_interval"]
            cells.append("" if arm == baseline else f"{row['gain']:+.1f} [{low:+.1f}, {high:+.1f}]")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
