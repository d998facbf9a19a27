"""What the runs of a study of prompts add up to: the protocols' figures, differences to one arm, and their tables."""

from collections.abc import Mapping
from typing import Any

from sdsclip_hf.prompts.study.settings import Scored, Task, targets, tasks
from sdsclip_hf.prompts.tables import (
    Figure,
    across_table,
    base_to_new_table,
    difference,
    figure,
    markdown,
    over_shots_table,
)

Runs = Mapping[
    str, Mapping[Task, Mapping[Scored, list[float]]]
]  # arm -> task -> test -> accuracy of each seed, in per cent


def summarize(settings: dict[str, Any], runs: Runs) -> dict[str, Any]:
    """All scores, by arm, task and test: of each seed, the mean and its interval, and the gain over the baseline.

    Args:
        settings: of the study.
        runs: what was scored.
    """
    baseline = settings.get("baseline")
    rows = []
    for arm, of_tasks in runs.items():
        for task, of_tests in of_tasks.items():
            for test, values in of_tests.items():
                others = runs.get(baseline, {}).get(task, {}).get(test)
                gain = None if others is None or arm == baseline else difference(*paired(values, others))
                row = {"arm": arm, "trained_on": task.dataset, "classes": task.classes, "shots": task.shots}
                row |= {"test": str(test), "seeds": values, "mean": figure(values)._asdict()}
                rows.append(row | {"gain": gain and gain._asdict()})
    return {"settings": settings, "scores": rows}


def paired(values: list[float], others: list[float]) -> tuple[list[float], list[float]]:
    """What hangs on no seed was run once, and is the same for all."""
    count = max(len(values), len(others))
    return values * (count if len(values) == 1 else 1), others * (count if len(others) == 1 else 1)


def tables(settings: dict[str, Any], runs: Runs) -> str:
    """Markdown: a table for each protocol as the literature has it, then the gains over the baseline."""
    found, most = [], max(settings["shots"])
    data = settings["datasets"]
    own = [name for name, options in data.items() if "of" not in options]
    if "few_shot" in settings["protocols"]:
        few = {
            arm: {
                name: {k: runs[arm][Task(name, "all", k)][Scored(name, "all")] for k in settings["shots"]}
                for name in own
            }
            for arm in runs
        }
        found.append(("Few-shot: accuracy over pictures of each class", over_shots_table(few)))
    if "base_to_new" in settings["protocols"]:
        found += _base_to_new(runs, data, own, most)
    for protocol, title in (("cross_dataset", "Across datasets"), ("domain_generalization", "Across domains")):
        if protocol in settings["protocols"]:
            source = settings["source"]
            names, task = (source, *targets(settings, protocol)), Task(source, "all", most)
            scores = {arm: {name: runs[arm][task].get(Scored(name, "all")) for name in names} for arm in runs}
            scores = {arm: row for arm, row in scores.items() if all(row.values())}
            found.append((f"{title}: trained on {source}", across_table(scores, source)))
    if settings.get("baseline"):
        found.append((f"Gain over {settings['baseline']}, seed by seed", _gains(settings, runs)))
    return "\n\n".join(f"### {title}\n\n{table}" for title, table in found) + "\n"


def _base_to_new(runs: Runs, data: dict, own: list[str], shots: int) -> list[tuple[str, str]]:
    def halves(arm: str, name: str) -> dict[str, list[float] | None]:
        tests = runs[arm][Task(data[name].get("of", name), "base", shots)]
        return {half: tests.get(Scored(name, half)) for half in ("base", "new")}

    found = []
    others = [name for name, options in data.items() if options.get("halves")]
    for title, names in (("Base to new", own), ("Base to new in other domains", others)):
        scores = {arm: {name: halves(arm, name) for name in names} for arm in runs}
        scores = {arm: rows for arm, rows in scores.items() if all(all(row.values()) for row in rows.values())}
        if names and scores:
            found.append((f"{title}: trained on the base classes, {shots} pictures of each", base_to_new_table(scores)))
    pairs = {
        arm: {
            str(test): figure(values) for tests in of.values() for test, values in tests.items() if test.what == "pairs"
        }
        for arm, of in runs.items()
    }
    pairs = {arm: row for arm, row in pairs.items() if row}
    if pairs:
        found.append(("Pairs of attributes: the right one of two prompts", markdown(pairs, "method")))
    return found


def _gains(settings: dict[str, Any], runs: Runs) -> str:
    """Of each task with the most pictures, a column a test."""
    base = settings["baseline"]
    chosen = [(task, tests) for task, tests in tasks(settings).items() if task.shots == max(settings["shots"])]
    rows: dict[str, dict[str, Figure | str]] = {}
    for arm in runs:
        if arm != base:
            rows[arm] = {}
            for task, tests in chosen:
                for test in tests:
                    pair = [runs[one].get(task, {}).get(test) for one in (arm, base)]
                    gain = difference(*paired(*pair)) if all(pair) else "–"
                    rows[arm][f"{task.classes} → {test}"] = gain
    return markdown(rows, "method")
