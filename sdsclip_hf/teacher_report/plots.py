"""The report's figures as plots."""

import base64
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

from sdsclip_hf.evaluation.plots import subplots

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (6.0, 3.6)


def pictures(report: dict) -> list[tuple[str, str]]:
    """The plots that a report has figures for: what each shows, in words, and a PNG as a data URI."""
    wanted: list[tuple[str, str, Callable]] = [
        ("accuracy", "Accuracy by kind of change, of the teacher and the students", _kinds),
        (
            "calibration",
            "How often the preferred caption is right, against how sure the teacher is of it",
            _reliability,
        ),
        ("draws", "Accuracy against the number of draws", _draws),
        ("timesteps", "Accuracy of one draw against its timestep, with the fitted weights", _timesteps),
    ]
    return [(words, _drawn(draw, report)) for key, words, draw in wanted if key in report]


def _drawn(draw: Callable, report: dict) -> str:
    figure, axis = subplots(figsize=SIZE, layout="constrained")
    draw(axis, report)
    axis.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, dpi=130, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _kinds(axis: "Axes", report: dict) -> None:
    rows, runs = report["accuracy"], ["teacher", *report["students"]]
    for number, run in enumerate(runs):
        shares = [row["teacher"] if number == 0 else row["students"][run] for row in rows]
        offset = 0.8 * ((number + 0.5) / len(runs) - 0.5)
        places = [line + offset for line in range(len(rows))]
        values, errors = _bars(shares)
        axis.barh(places, values, 0.8 / len(runs), xerr=errors, capsize=2, label=run, ecolor="0.35")
    axis.axvline(50, color="0.4", linewidth=1, linestyle=":")
    axis.set_yticks(range(len(rows)), [f"{row['name']} ({row['pairs']:,})" for row in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlim(0, 100)
    axis.set_xlabel("pairs right, %; dotted: chance")
    axis.legend(frameon=False, fontsize=8, ncols=len(runs), loc="lower center", bbox_to_anchor=(0.5, 1))


def _bars(shares: list[dict]) -> tuple[list[float], list[list[float]]]:
    """Values in %, and how far their intervals reach below and above."""
    values = [100 * one["value"] for one in shares]
    below = [max(0.0, value - 100 * one["interval"][0]) for value, one in zip(values, shares, strict=True)]
    above = [max(0.0, 100 * one["interval"][1] - value) for value, one in zip(values, shares, strict=True)]
    return values, [below, above]


def _reliability(axis: "Axes", report: dict) -> None:
    bins = report["calibration"]["bins"]
    values, errors = _bars(bins)
    axis.plot([50, 100], [50, 100], color="0.6", linewidth=1, label="as sure as right")
    axis.errorbar([100 * one["confidence"] for one in bins], values, errors, fmt="o-", capsize=2, label="teacher")
    axis.set_xlabel("confidence in the preferred caption, %")
    axis.set_ylabel("right, %")
    axis.legend(frameon=False, fontsize=8)


def _draws(axis: "Axes", report: dict) -> None:
    rows = report["draws"]
    draws, (values, errors) = [row["draws"] for row in rows], _bars(rows)
    axis.errorbar(draws, values, errors, fmt="o-", capsize=2, color="black", label="all")
    for kind in rows[0]["kinds"]:
        axis.plot(draws, [100 * row["kinds"][kind] for row in rows], label=kind)
    axis.axvline(report["verdict"]["draws"], color="0.4", linewidth=1, linestyle=":")
    axis.set_xlabel("draws; dotted: those of the verdict")
    axis.set_ylabel("pairs right, %")
    axis.legend(frameon=False, fontsize=8)


def _timesteps(axis: "Axes", report: dict) -> None:
    rows = report["timesteps"]
    timesteps, (values, errors) = [row["timestep"] for row in rows], _bars(rows)
    axis.errorbar(timesteps, values, errors, fmt="o-", capsize=2, color="black")
    axis.axhline(50, color="0.4", linewidth=1, linestyle=":")
    axis.set_xlabel("timestep; dotted: chance")
    axis.set_ylabel("pairs right by one draw, %")
    if report["verdict"]["weighted"]:
        other = axis.twinx()
        width = 0.5 * (max(timesteps) - min(timesteps)) / len(timesteps)
        other.bar(timesteps, [row["weight"] for row in rows], width, color="tab:blue", alpha=0.3)
        other.set_ylabel("fitted weight (bars)")
        other.spines["top"].set_visible(False)
