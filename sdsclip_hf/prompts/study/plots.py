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
    """Accuracy over the pictures of each class, one panel a dataset, one line an arm, with intervals over seeds."""
    names = [name for name, options in settings["datasets"].items() if "of" not in options]
    shots = sorted(settings["shots"])
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    size = (3.6 * columns + 1.6, 3.0 * lines)
    figure_, axes = subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for axis, name in zip(axes.flat, names, strict=False):
        for place, arm in enumerate(runs):
            found = [figure(runs[arm][Task(name, "all", k)][Scored(name, "all")]) for k in shots]
            means, reach = [one.mean for one in found], [one.reach or 0.0 for one in found]
            axis.errorbar(
                shots, means, yerr=reach, marker="o", markersize=3, capsize=2, color=f"C{place % 10}", label=arm
            )
        axis.set_xscale("log", base=2)
        axis.set_xticks(shots, list(map(str, shots)))
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("pictures of each class")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("accuracy, %")
    figure_.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    save_figure(figure_, path)


def plot_base_to_new(settings: dict[str, Any], runs: Runs, path: Path) -> None:
    """New against base classes, one panel a dataset or other domain, one point an arm, with intervals over seeds."""
    data, most = settings["datasets"], max(settings["shots"])
    names = [name for name, options in data.items() if "of" not in options or options.get("halves")]
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    size = (3.4 * columns + 1.8, 3.2 * lines)
    figure_, axes = subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for axis, name in zip(axes.flat, names, strict=False):
        task = Task(data[name].get("of", name), "base", most)
        for place, arm in enumerate(runs):
            of_tests = runs[arm].get(task, {})
            if Scored(name, "new") in of_tests:
                base, new = (figure(of_tests[Scored(name, half)]) for half in ("base", "new"))
                reach = {"xerr": base.reach or 0.0, "yerr": new.reach or 0.0}
                axis.errorbar(base.mean, new.mean, **reach, fmt="o", capsize=2, color=f"C{place % 10}", label=arm)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("base classes, %")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("new classes, %")
    figure_.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    save_figure(figure_, path)


def plot_gains(settings: dict[str, Any], runs: Runs, path: Path) -> None:
    """The gain of each arm over the baseline, one panel a test of the tasks with the most pictures, with intervals."""
    base, most = settings["baseline"], max(settings["shots"])
    asked = [(task, test) for task, tests in tasks(settings).items() if task.shots == most for test in tests]
    asked = [(task, test) for task, test in asked if runs[base].get(task, {}).get(test)]
    arms = [arm for arm in runs if arm != base]
    columns = min(4, len(asked))
    lines = -(-len(asked) // columns)
    size = (2.6 * columns + 2.0, lines * (0.3 * len(arms) + 0.9))
    figure_, axes = subplots(lines, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis in axes.flat[len(asked) :]:
        axis.axis("off")
    for axis, (task, test) in zip(axes.flat, asked, strict=False):
        for place, arm in enumerate(arms):
            if values := runs[arm].get(task, {}).get(test):
                gain = difference(*paired(values, runs[base][task][test]))
                axis.errorbar(gain.mean, place, xerr=gain.reach or 0.0, fmt="o", capsize=2, color=f"C{place % 10}")
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(f"{task.classes} → {test}", fontsize=9)
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel(f"gain over {base}, points", fontsize=8)
    axes[0, 0].set_yticks(range(len(arms)), arms, fontsize=8)
    axes[0, 0].set_ylim(len(arms) - 0.5, -0.5)
    save_figure(figure_, path)
