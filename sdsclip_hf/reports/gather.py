"""From a finished evaluation to what its page shows: plain values, and thumbnails of the pictures."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from sdsclip_hf.benchmarks import Benchmark, Item, Options, load_benchmark, parse
from sdsclip_hf.benchmarks.items import picture_name
from sdsclip_hf.evaluation.results import labels
from sdsclip_hf.reports.evaluated import Answered, read_evaluation
from sdsclip_hf.reports.thumbnails import Album
from sdsclip_hf.reports.verdicts import RANKED, TRIPLET, Verdicts, form_of, judge
from sdsclip_hf.reports.words import gain_and_lose

NO_COPIES = ("winoground",)  # its licence, which each reader accepts on the Hub, does not let pictures be handed on
MOST_ITEMS = 5000
MOST_PICTURES = 28e6  # characters of thumbnails, so that a page of them stays below 30 MB
KINDS = {(False, True): "won", (True, False): "lost", (False, False): "both wrong", (True, True): "both right"}
KINDS |= {(False,): "wrong", (True,): "right"}
SHOWN_FIRST = ("lost", "won", "both wrong", "wrong", "both right", "right")  # where not all pictures find room


@dataclass(frozen=True)
class Pictures:
    """Which pictures a page gets.

    Args:
        none: no pictures, captions only.
        all: also of benchmarks whose licence forbids copies: for a page that is not handed on.
    """

    none: bool = False
    all: bool = False

    def why_not(self, spec: str) -> str | None:
        """Why a benchmark's pictures stay out; None where they do not."""
        if self.none:
            return "Pictures were left out, as asked for."
        if parse(spec)[0] in NO_COPIES and not self.all:
            return "Pictures are left out: this benchmark's licence forbids copies of them."
        return None


def gather(
    folder: Path,
    model: str | None = None,
    pictures: Pictures = Pictures(),
    benchmarks: dict[str, Benchmark] | None = None,
    most_items: int = MOST_ITEMS,
) -> tuple[dict, list[str]]:
    """What the page of an evaluation shows, and the thumbnails in it as data URIs.

    Args:
        folder: that ``sdsclip evaluate`` wrote.
        model: which run is compared with the first; default: the last.
        pictures: which the page gets.
        benchmarks: those that were evaluated, where they are still at hand; otherwise their sources are read again.
        most_items: in the page; of more, each benchmark shows a random sample.

    Raises:
        ValueError: the folder holds no finished evaluation, or no such run.
    """
    results, asked = read_evaluation(folder)
    runs = _chosen(list(results["models"]), model)
    album, heads = Album(0), labels(asked)
    shares = fair_shares([len(one.rows) for one in asked.values()], most_items)
    content: dict = {"command": results["command"], "version": results["versions"]["sdsclip_hf"], "benchmarks": []}
    content["models"] = [{"run": run, **results["models"][run]} for run in runs]
    content["others"] = [run for run in results["models"] if run not in runs]
    for place, (spec, one) in enumerate(asked.items()):
        album.limit = album.size + (MOST_PICTURES - album.size) / (len(asked) - place)
        found = {"label": heads[spec], "spec": spec, "source": results["benchmarks"][spec]["source"], "notes": []}
        found["scores"] = _score_rows(results["benchmarks"][spec], runs)
        why_not = pictures.why_not(spec)
        items: dict[str, Item] = {}
        if why_not is None:
            items, why_not = _items(spec, benchmarks, results.get("reading", {}))
        found |= _look(spec, one, runs, items, album, shares[place])
        found["notes"] += [why_not] if why_not else []
        content["benchmarks"].append(found)
    return content, album.pictures


def _chosen(runs: list[str], model: str | None) -> list[str]:
    """The first run, and the one that it is compared with; of one run that alone."""
    if model is not None and model not in runs[1:]:
        others = f"choose from {', '.join(runs[1:])}" if runs[1:] else "there is no other than the first, leave it out"
        raise ValueError(f"--model {model} is no run that {runs[0]} can be compared with; {others}.")
    return [runs[0], *([model] if model else runs[1:][-1:])]


def fair_shares(counts: Sequence[int], total: int) -> list[int]:
    """How many of each benchmark's items find room, where small ones are shown whole before large ones are sampled."""
    shares, left = [0] * len(counts), total
    for rank, place in enumerate(sorted(range(len(counts)), key=lambda place: counts[place])):
        shares[place] = min(counts[place], left // (len(counts) - rank))
        left -= shares[place]
    return shares


def _score_rows(benchmark: dict, runs: list[str]) -> list[dict]:
    """The headline scores of the runs, with the difference of the second to the first."""
    rows = []
    for number, first in enumerate(benchmark["scores"][runs[0]]):
        if first["headline"]:
            same = [benchmark["scores"][run][number] for run in runs]
            row = {"subset": first["subset"], "score": first["score"], "n": first["n"]}
            row["runs"] = [{key: one[key] for key in ("value", "interval", "ties")} for one in same]
            row["difference"] = benchmark["differences"][runs[1]][number] if len(runs) > 1 else None
            rows.append(row)
    return rows


def _items(spec: str, benchmarks: dict[str, Benchmark] | None, reading: dict) -> tuple[dict[str, Item], str | None]:
    """identifier -> item with its pictures, and why there are none."""
    if benchmarks is None:
        known = {field.name for field in fields(Options)}
        options = {
            name: tuple(value) if name == "templates" else value for name, value in reading.items() if name in known
        }
        try:
            benchmark = load_benchmark(spec, Options(**options))
        except (ValueError, OSError) as error:
            return {}, f"The pictures could not be read again, so that captions stand alone: {error}"
    else:
        benchmark = benchmarks[spec]
    return {item.identifier: item for item in benchmark.items}, None


def _look(spec: str, one: Answered, runs: list[str], items: dict[str, Item], album: Album, share: int) -> dict:
    """A benchmark's items, their kinds and their words."""
    answers = {run: one.answers[run] for run in runs}
    form = form_of(
        parse(spec)[0],
        [answer for of_run in answers.values() for answer in of_run],
        any(row["captions"] for row in one.rows),
    )
    if form is None:
        return {"form": None, "notes": ["Its items are of a form that this page does not show; the scores are whole."]}
    found = [judge(of_run, form) for of_run in answers.values()]
    kinds = [KINDS[tuple(map(bool, right))] for right in zip(*(one.right for one in found), strict=True)]
    tied = np.any([one.tied for one in found], axis=0)
    chosen = sorted(random.Random(0).sample(range(len(one.rows)), share))
    tags = list(dict.fromkeys(tag for row in one.rows for tag in _tags(row)))
    right = [verdicts.right for verdicts in found]
    first, second = right if len(right) == 2 else (np.zeros_like(right[0]), right[0])
    album.unreadable.clear()
    texts = [row["captions"] or [row["tag"]] for row in one.rows]
    shown = _pictures([one.rows[number] for number in chosen], [kinds[number] for number in chosen], items, album)
    rows = [
        _row(
            one.rows[number], [_told(of_run[number], form) for of_run in answers.values()], found, number, tags, places
        )
        | {"kind": kinds[number]}
        for number, places in zip(chosen, shown, strict=True)
    ]
    return {
        "form": form,
        "total": len(one.rows),
        "kinds": Counter(kinds),
        "ties": int(tied.sum()),
        "tags": tags,
        "words": gain_and_lose(texts, first, second),
        "items": rows,
        "notes": list(_notes(rows, len(one.rows), bool(items), album)),
    }


def _tags(row: dict) -> list[str]:
    return [*filter(None, [row["tag"]]), *(row["labels"] or [])]


def _pictures(rows: list[dict], kinds: list[str], items: dict[str, Item], album: Album) -> list[list[int | None]]:
    """The places of each row's pictures in the album, filled in the order of what is looked at first."""
    shown: list[list[int | None]] = [[] for _ in rows]
    for number in sorted(range(len(rows)), key=lambda number: SHOWN_FIRST.index(kinds[number])):
        row, item = rows[number], items.get(rows[number]["item"])
        is_same = item is not None and list(item.captions) == row["captions"] and _names(item) == row["images"]
        shown[number] = [album.add(image) if is_same else None for image in item.images] if item else []
    return shown


def _names(item: Item) -> list[str]:
    """Of its pictures, as [`Answers`] writes them."""
    return [Path(picture_name(image)).name for image in item.images]


def _row(
    row: dict, answers: list[np.ndarray], found: list[Verdicts], number: int, tags: list[str], places: list[int | None]
) -> dict:
    return {
        "id": row["item"],
        "tags": [tags.index(tag) for tag in _tags(row)],
        "captions": row["captions"],
        "pictures": places,
        "answers": [[_short(value) for value in answer] for answer in answers],
        "margins": [_short(one.margin[number]) for one in found],
        "tied": [bool(one.tied[number]) for one in found],
    }


def _told(answer: np.ndarray, form: str) -> np.ndarray:
    """Scores caption by caption, those with pictures; of ranks those with ties counted against the model."""
    return answer[:, 0] if form in (*RANKED, TRIPLET) else answer.ravel()


def _short(value: float) -> float:
    return float(f"{np.clip(value, -1e30, 1e30):.6g}")  # json knows no infinity


def _notes(rows: list[dict], total: int, has_items: bool, album: Album):
    if len(rows) < total:
        yield f"{len(rows):,} of {total:,} items are in this page, a random sample. The scores and counts are of all."
    without = sum(not row["pictures"] or None in row["pictures"] for row in rows)
    if has_items and without:
        yield (
            f"{without:,} of {len(rows):,} items stand without their pictures: the page has no more room, the source has "
            "changed, or they cannot be read."
        )
        yield from album.unreadable[:1]
