"""A table over many runs: models in rows, benchmarks in columns."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sdsclip_hf.benchmarks import HUB_IDS, parse
from sdsclip_hf.common.errors import read_json
from sdsclip_hf.evaluation.evaluate_models import RESULTS_FILE
from sdsclip_hf.evaluation.results import Results
from sdsclip_hf.evaluation.tables import main_scores

OF_SOURCE = ("name", "revision", "split", "items", "missing_images")
OF_ROW = {"subset", "score", "value", "interval", "n", "headline"}
VERSIONS = ("sdsclip_hf", "transformers", "torch")


@dataclass
class Run:
    """A model's scores in one file.

    Args:
        path: the file.
        name: what the model is called there.
        fingerprint: of its weights; of a training's runs, which file and run it is.
        scores: benchmark -> rows, see [`score_rows`].
        sources: benchmark -> what was read, see [`Benchmark`].
        versions: of the packages.
    """

    path: Path
    name: str
    fingerprint: str
    scores: Results
    sources: dict[str, dict]
    versions: dict[str, str]


@dataclass
class Row:
    """A model with its cells: column -> score, and of each package the versions that it was scored with."""

    name: str
    path: Path
    cells: dict[str, dict] = field(default_factory=dict)
    versions: dict[str, dict[str, None]] = field(default_factory=dict)


@dataclass
class Leaderboard:
    """The table.

    Args:
        rows: the models, as they were met.
        columns: benchmark and score.
        sources: benchmark -> what was read.
    """

    rows: list[Row]
    columns: list[str]
    sources: dict[str, dict]

    def markdown(self) -> str:
        """As a Markdown table, in per cent with 95 % intervals, and what the benchmarks were read from."""
        lines = [["model", *self.columns, *VERSIONS], ["---"] * (1 + len(self.columns) + len(VERSIONS))]
        for row in self.rows:
            cells = [_percent(row.cells[column]) if column in row.cells else "" for column in self.columns]
            lines.append([row.name, *cells, *_versions(row)])
        table = "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)
        sources = "\n".join(f"* {name}: {_told(source)}." for name, source in self.sources.items())
        return f"{table}\n\nScores in % with 95 % intervals.\n\n{sources}\n"

    def csv(self) -> str:
        """As comma-separated values in per cent: of each column the score, the interval's bounds and the count."""
        written = io.StringIO()
        writer = csv.writer(written, lineterminator="\n")
        parts = ("", " low", " high", " n")
        writer.writerow(["model", *(column + part for column in self.columns for part in parts), *VERSIONS])
        for row in self.rows:
            cells = [value for column in self.columns for value in _numbers(row.cells.get(column))]
            writer.writerow([row.name, *cells, *_versions(row)])
        return written.getvalue()


def leaderboard(paths: Sequence[Path]) -> Leaderboard:
    """The table over results; a model of the same name and weights is one row, whatever files its scores are in.

    Args:
        paths: files ``results.json`` of evaluations or trainings, or the folders that they are in.

    Raises:
        ValueError: a file is missing, or is not of this form; or two files ask a benchmark of other sources or counts, or
            score a model twice and differently.
    """
    rows: dict[tuple[str, str], Row] = {}
    asked: dict[str, tuple[dict, Path]] = {}
    counts: dict[str, tuple[int, Path]] = {}
    for run in (run for path in paths for run in _read(path)):
        row = rows.setdefault((run.name, run.fingerprint), Row(run.name, run.path))
        for name in VERSIONS:
            row.versions.setdefault(name, {})[run.versions.get(name, "")] = None
        for spec, source in run.sources.items():
            told, place = asked.setdefault(_benchmark(spec), (source, run.path))
            if any(source.get(key) != told.get(key) for key in OF_SOURCE):
                raise _mixed(_benchmark(spec), (run.path, _told(source)), (place, _told(told)))
        for one in main_scores(run.scores):
            found = run.scores[one.spec][one.place]
            subset = "" if found["subset"] == "all" else f" {found['subset']}"
            column = f"{_benchmark(one.spec)}{subset} ({one.score})"
            count, place = counts.setdefault(column, (found["n"], run.path))
            if count != found["n"]:
                raise _mixed(column, (run.path, f"{found['n']} questions"), (place, f"{count} questions"))
            if row.cells.setdefault(column, found)["value"] != found["value"]:
                raise ValueError(
                    f"{run.path} has another score of {run.name} on {column} than {row.path}: {_percent(found)}, not "
                    f"{_percent(row.cells[column])}. Leave one of them out."
                )
    names = [row.name for row in rows.values()]
    for row in rows.values():
        if names.count(row.name) > 1:
            row.name = f"{row.name} ({row.path.parent})"
    return Leaderboard(list(rows.values()), list(counts), {name: source for name, (source, _) in asked.items()})


def _read(path: Path) -> Iterator[Run]:
    """The runs of a file, which an evaluation or a training wrote."""
    path = path / RESULTS_FILE if path.is_dir() else path
    if not path.is_file():
        raise ValueError(
            f"there is no file {path}; give files results.json of evaluations, as in outputs/*/results.json."
        )
    results = read_json(path, "Evaluate again.")
    versions, benchmarks = results.get("versions", {}), results.get("benchmarks", {})
    if "models" in results:
        _check(path, [key for one in benchmarks.values() for key in ("source", "scores") if key not in one])
        lacking = [run for one in benchmarks.values() for run in results["models"] if run not in one["scores"]]
        _check(path, [f"scores of {run}" for run in lacking])
        sources = {spec: one["source"] for spec, one in benchmarks.items()}
        of_runs = {run: {spec: one["scores"][run] for spec, one in benchmarks.items()} for run in results["models"]}
        prints = {run: str(record.get("fingerprint")) for run, record in results["models"].items()}
    else:
        _check(path, [key for key in ("before", "after", "label") if key not in results])
        sources, folder = benchmarks, path.absolute().parent.name
        of_label = {"before": results["before"], **results.get("compared", {}), results["label"]: results["after"]}
        of_runs = {f"{folder}: {run}": scores for run, scores in of_label.items() if scores}
        prints = {run: f"{path.absolute()} {run}" for run in of_runs}
    rows = [row for scores in of_runs.values() for of_spec in scores.values() for row in of_spec]
    _check(path, [key for row in rows for key in sorted(OF_ROW - set(row))])
    if not rows:
        raise ValueError(f"{path} holds no scores of benchmarks. Leave it out.")
    for run, scores in of_runs.items():
        yield Run(path, run, prints[run], scores, {spec: sources[spec] for spec in scores}, versions)


def _check(path: Path, missing: list[str]) -> None:
    if missing:
        raise ValueError(
            f"{path} is of an older version or of another program: it has no {missing[0]!r}. Evaluate again, in a new "
            "--output_dir, or leave it out."
        )


def _benchmark(spec: str) -> str:
    """What is one benchmark wherever it was read from: its name where it is a published one, else with its source."""
    return spec.partition("=")[0] if parse(spec)[0] in (*HUB_IDS, "sugarcrepe") else spec


def _mixed(what: str, one: tuple[Path, str], other: tuple[Path, str]) -> ValueError:
    return ValueError(
        f"{one[0]} has {what} of {one[1]}, and {other[0]} of {other[1]}: the rows of a table must answer the same "
        "questions. Evaluate both alike, or leave one out."
    )


def _told(source: dict) -> str:
    """A benchmark's source in words."""
    at = f" at {source['revision']}" if source.get("revision") else ""
    split = f", split {source['split']}" if source.get("split") else ""
    missing = f", {source['missing_images']} left out for their images" if source.get("missing_images") else ""
    return f"{source.get('items')} items of {source.get('name')}{split}{at}{missing}"


def _percent(row: dict) -> str:
    low, high = (100 * bound for bound in row["interval"])
    return f"{100 * row['value']:.1f} [{low:.1f}, {high:.1f}]"


def _numbers(row: dict | None) -> list:
    if row is None:
        return [""] * 4
    return [*(f"{100 * value:.2f}" for value in (row["value"], *row["interval"])), row["n"]]


def _versions(row: Row) -> list[str]:
    return [" / ".join(filter(None, row.versions.get(name, {}))) for name in VERSIONS]
