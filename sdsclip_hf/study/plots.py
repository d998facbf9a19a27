"""Plots of a study: scores by arm, and against the teacher's skill, health over training, what h_w(f(x)) decodes to."""

from pathlib import Path

import numpy as np

from sdsclip_hf.evaluation.plots import save_figure, subplots

SPAN = 30
STYLES = ("-", "--", ":")
TITLES = {
    "sds": "L_SDS",
    "sds_gap": "L_SDS of another caption, less that of the own",
    "latent_rms": "RMS of z0",
    "latent_spread": "spread of z0 within a batch",
    "ranking": "L_rank",
    "ranking_agreement": "student and target agree on the first choice",
    "contrastive": "L_CLIP",
}


def plot_all(summary: dict, folder: Path) -> None:
    """Every plot that the summary has figures for: study.png, skill.png, health.png, decoded.png.

    Args:
        summary: from [`summarize`].
        folder: the study's, which receives them.
    """
    plot_scores(summary, folder / "study.png")
    if "skill" in summary:
        plot_skill(summary, folder / "skill.png")
    with_terms = {arm: rows for arm, rows in summary["health"].items() if len(rows) > 1}
    if with_terms:
        plot_health(with_terms, folder / "health.png")
    if summary["decoded"]:
        plot_decoded({arm: folder / path for arm, path in summary["decoded"].items()}, folder / "decoded.png")


def plot_scores(summary: dict, path: Path) -> None:
    """Group score of each arm, one panel a tag: the mean with its interval, and a dot for each seed."""
    arms = list(summary["arms"])
    tags = list(summary["arms"][arms[0]])
    figure, axes = subplots(1, len(tags), figsize=(4 * len(tags), 0.42 * len(arms) + 1.3), sharey=True, squeeze=False)
    for axis, tag in zip(axes[0], tags, strict=True):
        for place, arm in enumerate(arms):
            row = summary["arms"][arm][tag]
            low, high = row["interval"]
            axis.plot([low, high], [place, place], color="tab:blue", linewidth=5, alpha=0.3, solid_capstyle="butt")
            axis.plot(row["seeds"], [place] * len(row["seeds"]), ".", color="tab:grey", markersize=4)
            axis.plot(row["group"], place, "o", color="tab:blue")
        axis.set_title(f"{tag} ({row['items']} items)", fontsize=10)
        axis.set_xlim(-2, 102)
        axis.set_xlabel("group score, %")
        axis.grid(alpha=0.3)
    axes[0][0].set_yticks(range(len(arms)), arms)
    axes[0][0].invert_yaxis()
    figure.tight_layout()
    save_figure(figure, path)


def plot_skill(summary: dict, path: Path) -> None:
    """Group score against the accuracy of the teacher that made the scores, one panel a tag.

    With lines for the baseline and for the teacher's own group score.
    """
    baseline = summary["settings"]["baseline"]
    tags = [tag for tag in next(iter(summary["skill"].values())) if tag in summary["arms"][baseline]]
    figure, axes = subplots(1, len(tags), figsize=(4.2 * len(tags), 3.6), sharey=True, squeeze=False)
    for axis, tag in zip(axes[0], tags, strict=True):
        alone = summary["arms"][baseline][tag]
        axis.axhline(alone["group"], color="black", linewidth=0.8, label=f"{baseline} alone")
        axis.axhspan(*alone["interval"], color="black", alpha=0.08)
        teachers = sorted((skill[tag], summary["teacher_group"][name][tag]) for name, skill in summary["skill"].items())
        axis.plot(*zip(*teachers, strict=True), ":", color="grey", linewidth=1.4, label="the teacher itself")
        for curve in summary["settings"]["curves"]:
            points = [
                (skill[tag], summary["arms"][f"{curve}, {name}"][tag]) for name, skill in summary["skill"].items()
            ]
            points.sort(key=lambda point: point[0])
            x, scores = [point[0] for point in points], [point[1]["group"] for point in points]
            bounds = np.array([point[1]["interval"] for point in points]).T
            (line,) = axis.plot(x, scores, "o-", markersize=4, label=curve)
            axis.fill_between(x, *bounds, alpha=0.15, color=line.get_color())
        axis.set_title(tag, fontsize=10)
        axis.set_xlabel("teacher takes the right one of two captions, %")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("group score, %")
    axes[0][0].set_ylim(-3, 103)
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    save_figure(figure, path)


def plot_health(arms: dict[str, dict], path: Path) -> None:
    """The terms and their health figures over the steps, one panel a figure, one line an arm, means over the seeds."""
    arms = _joined(arms)
    names = [name for name in TITLES if any(name in rows for rows in arms.values())]
    lines = -(-len(names) // 2)
    figure, axes = subplots(lines, 2, figsize=(11, 3.0 * lines + 0.6), squeeze=False, layout="constrained")
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for axis, name in zip(axes.flat, names, strict=False):
        for place, (arm, rows) in enumerate(arms.items()):
            if name in rows:
                style = STYLES[place // 10 % len(STYLES)]
                axis.plot(*zip(*rows[name], strict=True), style, color=f"C{place % 10}", label=arm, linewidth=1.4)
        values = [value for rows in arms.values() for _, value in rows.get(name, [])]
        if max(values) > SPAN * np.median(values) > 0 < min(values):
            axis.set_yscale("log")  # one arm would flatten the others
        axis.set_title(TITLES[name], fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    handles = {text: line for axis in axes.flat for line, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    save_figure(figure, path)


def _joined(arms: dict[str, dict]) -> dict[str, dict]:
    """Arms with the same figures, since they share a training, under one name."""
    joined: dict[str, dict] = {}
    for arm, rows in arms.items():
        same = next((name for name, others in joined.items() if others == rows), None)
        joined = {f"{same}; {arm}" if name == same else name: others for name, others in joined.items()}
        joined |= {} if same else {arm: rows}
    return joined


def plot_decoded(files: dict[str, Path], path: Path) -> None:
    """What the teacher's decoder makes of pictures' own latents, and of h_w(f(x)) of each arm's first run."""
    first = np.load(next(iter(files.values())))
    rows = {"the pictures, through the autoencoder": first["pictures"]}
    rows |= {arm: np.load(file)["decoded"] for arm, file in files.items()}
    count = len(first["pictures"])
    figure, axes = subplots(
        len(rows), count, figsize=(0.9 * count + 0.4, 1.15 * len(rows)), squeeze=False, layout="constrained"
    )
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture)
            axis.axis("off")
        text = line[0].text(0, 1.06, name, transform=line[0].transAxes, fontsize=8)
        text.set_in_layout(False)  # a long one would widen the first column
    figure.get_layout_engine().set(hspace=0.25, rect=(0, 0, 1, 1 - 0.2 / figure.get_figheight()))
    save_figure(figure, path)
