"""Scores as tables: whole ones for the terminal and for Markdown, and the one score of each benchmark that counts most."""

import re
from dataclasses import dataclass

from sdsclip_hf.benchmarks import ARO
from sdsclip_hf.evaluation.results import Results, labels

MAIN_SCORES = ("image accuracy", "group", "macro accuracy", "macro ITT", "accuracy", "micro accuracy")
MAIN_SCORES += ("recall@1", "accuracy@1")
MOST_SUBSETS = 4
WIDTH = 100
WHOLE = ("all", "image to text", "text to image")  # subsets that are all of a benchmark, or all of a way to score it
MACRO_MEAN = "macro mean"


def table(runs: dict[str, Results], differences: Results | None = None) -> str:
    """The headline scores in per cent with their 95 % intervals, as text for a terminal.

    Args:
        runs: run -> benchmark -> rows, see [`score_rows`].
        differences: benchmark -> rows of the second run minus the first, see [`compare`].
    """
    return aligned(_cells(runs, differences))


def markdown(runs: dict[str, Results]) -> str:
    """The same as a Markdown table."""
    head, *lines = _cells(runs)
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])


def _cells(runs: dict[str, Results], differences: Results | None = None) -> list[list[str]]:
    compared = ["difference", "McNemar p"] if differences else []
    lines = [["benchmark", "subset", "score", "items", "ties", *runs, *compared]]
    first = next(iter(runs.values()))
    for spec, label in labels(first).items():
        for number, row in enumerate(first[spec]):
            if not row["headline"]:
                continue
            same = [results[spec][number] for results in runs.values()]
            ties = "/".join(str(one["ties"]) for one in same)
            line = [label, row["subset"], row["score"], str(row["n"]), ties, *map(_percent, same)]
            if differences:
                difference = differences[spec][number]
                line += [_percent(difference, "+5.1f"), "" if difference["p"] is None else f"{difference['p']:.2g}"]
            lines.append(line)
    return lines


def _percent(row: dict, form: str = "5.1f") -> str:
    low, high = (100 * bound for bound in row["interval"])
    small = form.replace("5", "4")
    return f"{100 * row['value']:{form}} [{low:{small}}, {high:{small}}]"


@dataclass
class MainScore:
    """One score that stands for a benchmark or for a kind of its items.

    Attributes:
        spec: the benchmark.
        title: what is scored: a kind of items, or the benchmark.
        score: which score, e.g. "group".
        place: of its row among the benchmark's.
    """

    spec: str
    title: str
    score: str
    place: int


def main_scores(results: Results) -> list[MainScore]:
    """Of each benchmark the score that counts most: of each kind of its items where there are few, else of all."""
    found = []
    for spec, label in labels(results).items():
        rows = [(place, row) for place, row in enumerate(results[spec]) if row["headline"]]
        score = min((row["score"] for _, row in rows), key=_rank)
        places = [(place, row["subset"]) for place, row in rows if row["score"] == score]
        kinds = [(place, subset) for place, subset in places if subset != "all"]
        kept = kinds if 0 < len(kinds) <= MOST_SUBSETS else places[:1]
        found += [MainScore(spec, label if subset == "all" else subset, score, place) for place, subset in kept]
    return found


def _rank(score: str) -> int:
    return MAIN_SCORES.index(score) if score in MAIN_SCORES else len(MAIN_SCORES)


def main_table(runs: dict[str, Results], width: int = WIDTH) -> str:
    """The [`main_scores`] in per cent with their 95 % intervals, a line a run, as text for a terminal.

    Args:
        runs: run -> benchmark -> rows, see [`score_rows`].
        width: columns of the terminal; what does not fit beside the rest stands below it.
    """
    scores = main_scores(next(iter(runs.values())))
    names = ["", "", *runs]
    columns = []
    for one in scores:
        rows = [results[one.spec][one.place] for results in runs.values()]
        columns.append([one.title, f"{one.score}, {rows[0]['n']:,} items", *map(_percent, rows)])
    tables, beside = [], [names]
    for column in columns:
        if len(beside) > 1 and _width([*beside, column]) > width:
            tables.append(beside)
            beside = [names]
        beside.append(column)
    return "\n\n".join(aligned(list(zip(*one, strict=True)), heads=2) for one in [*tables, beside])


def suite_scores(results: Results) -> dict[str, float]:
    """The score of each benchmark as a whole that counts most, and their unweighted mean; ARO's four count as one.

    A benchmark that is scored both ways counts with the mean of the two.
    """
    by_name: dict[str, list[float]] = {}
    for spec, rows in results.items():
        name = re.split("[:=]", spec, maxsplit=1)[0]
        best = min((row["score"] for row in rows if row["headline"]), key=_rank)
        of_best = [row for row in rows if row["score"] == best and row["subset"] in WHOLE]
        value = sum(row["value"] for row in of_best) / len(of_best)
        by_name.setdefault("aro" if name in ARO else name, []).append(value)
    scores = {name: sum(values) / len(values) for name, values in by_name.items()}
    return scores | {MACRO_MEAN: sum(scores.values()) / len(scores)}


def suite_table(runs: dict[str, dict[str, float]]) -> str:
    """What [`suite_scores`] gives of each run, in per cent, a line a run, as text for a terminal."""
    columns = list(next(iter(runs.values())))
    lines = [[run, *(f"{100 * scores[column]:.1f}" for column in columns)] for run, scores in runs.items()]
    return aligned([["", *columns], *lines])


def main_line(results: Results) -> str:
    """The [`main_scores`] of one run in a line: "relation 9.4 (group), image to text 50.3 (recall@1)"."""
    values = [(one, 100 * results[one.spec][one.place]["value"]) for one in main_scores(results)]
    return ", ".join(f"{one.title} {value:.1f} ({one.score})" for one, value in values)


def _width(columns: list[list[str]]) -> int:
    return sum(max(map(len, column)) + 2 for column in columns) - 2


def aligned(lines: list, heads: int = 1) -> str:
    """Cells as lines of text, a rule below the first ``heads`` of them."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*text[:heads], "-" * max(map(len, text)), *text[heads:]])
