"""Plots of a study of prompts: accuracy over pictures of a class, base against new classes, gains over the baseline."""

from pathlib import Path
from typing import Any

from sdsclip_hf.evaluation.plots import save_figure, subplots
from sdsclip_hf.prompts.study.settings import Scored, Task, tasks
from sdsclip_hf.prompts.study.summary import Runs, paired
from sdsclip_hf.prompts.tables import difference, figure


def plot_all(settings: dict[str, Any], runs: Runs, folder: Path) -> None:
    """Every plot that the settings ask for: shots.png, base_to_new.png, gains.png."""
    if "few_shot" in settings["protocols"]:
        plot_shots(settings, runs, folder / "shots.png")
    if "base_to_new" in settings["protocols"]:
        plot_base_to_new(settings, runs, folder / "base_to_new.png")
    if settings.get("baseline") and len(settings["seeds"]) > 1:
        plot_gains(settings, runs, folder / "gains.png")


def plot_shots(settings: dict[str, Any], runs: Runs, path: Path) -> None:
    """Accuracy over the pictures of each class, one panel a dataset, one line an arm, with intervals over seeds as bands.

    What learns from no picture, zero-shot, is a level.
    """
    names = [name for name, options in settings["datasets"].items() if "of" not in options]
    shots = sorted(settings["shots"])
    figure_, axes = _panels(len(names), panel=(3.6, 3.0), beside=1.6)
    for axis, name in zip(axes.flat, names, strict=False):
        for arm in runs:
            look = {"color": _color(arm, runs), "label": arm}
            found = [figure(runs[arm][Task(name, "all", k)][Scored(name, "all")]) for k in shots]
            if settings["arms"][arm]["method"] == "zero_shot":
                axis.axhline(found[0].mean, linestyle="--", **look)
                continue
            axis.plot(shots, [one.mean for one in found], marker="o", markersize=3, **look)
            if found[0].reach is not None:
                bounds = ([one.mean + sign * one.reach for one in found] for sign in (-1, 1))
                axis.fill_between(shots, *bounds, alpha=0.15, color=look["color"])
        axis.set_xscale("log", base=2)
        axis.set_xticks(shots, list(map(str, shots)))
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("pictures of each class")
        axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy, %")
    _save_with_legend(figure_, axes, path)


def plot_base_to_new(settings: dict[str, Any], runs: Runs, path: Path) -> None:
    """New against base classes, one panel a dataset or other domain, one point an arm, with intervals over seeds."""
    data, most = settings["datasets"], max(settings["shots"])
    names = [name for name, options in data.items() if "of" not in options or options.get("halves")]
    figure_, axes = _panels(len(names), panel=(3.4, 3.2), beside=1.8)
    for axis, name in zip(axes.flat, names, strict=False):
        task = Task(data[name].get("of", name), "base", most)
        for arm in runs:
            of_tests = runs[arm].get(task, {})
            if Scored(name, "new") in of_tests:
                base, new = (figure(of_tests[Scored(name, half)]) for half in ("base", "new"))
                reach = {"xerr": base.reach or 0.0, "yerr": new.reach or 0.0}
                axis.errorbar(base.mean, new.mean, **reach, fmt="o", capsize=2, color=_color(arm, runs), label=arm)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("base classes, %")
        axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel("new classes, %")
    _save_with_legend(figure_, axes, path)


def plot_gains(settings: dict[str, Any], runs: Runs, path: Path) -> None:
    """The gain of each arm over the baseline, one panel a test of the tasks with the most pictures, with intervals."""
    base, most = settings["baseline"], max(settings["shots"])
    asked = [(task, test) for task, tests in tasks(settings).items() if task.shots == most for test in tests]
    asked = [(task, test) for task, test in asked if runs[base].get(task, {}).get(test)]
    arms = [arm for arm in runs if arm != base]
    figure_, axes = _panels(len(asked), panel=(2.6, 0.3 * len(arms) + 1.0), beside=2.0, sharey=True)
    for axis, (task, test) in zip(axes.flat, asked, strict=False):
        for place, arm in enumerate(arms):
            if values := runs[arm].get(task, {}).get(test):
                gain = difference(*paired(values, runs[base][task][test]))
                axis.errorbar(gain.mean, place, xerr=gain.reach or 0.0, fmt="o", capsize=2, color=_color(arm, runs))
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(f"{task.classes} → {test}", fontsize=9)
        axis.grid(alpha=0.3)
        axis.set_xlabel(f"gain over {base}, points", fontsize=8)
        axis.tick_params(labelsize=8)
    axes[0, 0].set_yticks(range(len(arms)), arms)
    axes[0, 0].set_ylim(len(arms) - 0.5, -0.5)
    save_figure(figure_, path)


def _color(arm: str, runs: Runs) -> str:
    """The same for an arm in every plot."""
    return f"C{[*runs].index(arm) % 10}"


def _panels(count: int, panel: tuple[float, float], beside: float, **options) -> tuple[Any, Any]:
    """A figure of ``count`` panels, up to four a line, each so wide and high in inches, with room beside them; its axes."""
    lines = -(-count // 4)
    columns = -(-count // lines)
    size = (panel[0] * columns + beside, panel[1] * lines)
    figure_, axes = subplots(lines, columns, figsize=size, squeeze=False, layout="constrained", **options)
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure_, axes


def _save_with_legend(figure_: Any, axes: Any, path: Path) -> None:
    figure_.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    save_figure(figure_, path)
