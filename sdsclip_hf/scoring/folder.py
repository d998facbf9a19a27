"""A folder of scores: finished chunks while the scoring goes on, then the data, its card, and ``scores.json`` at last."""

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sdsclip_hf.common.checkpoints import write_json
from sdsclip_hf.data.scores import FEATURES, SCORES_FILE, CandidateScores, content_fingerprint
from sdsclip_hf.scoring.caption_items import CaptionItem
from sdsclip_hf.scoring.card import render_card

PARTS, SETTINGS_FILE, ITEMS_FILE = "parts", "settings.json", "items.parquet"
CARD_FILE, DATA = "README.md", "data"
ITEMS_PER_SHARD = 200_000
SURE = 0.9
ITEMS_SCHEMA = pa.schema(
    {"picture": pa.string(), "row": pa.int64(), "caption": pa.string(), "candidates": pa.list_(pa.string())}
)


class ScoreFolder:
    """The files of one scoring, written so that a killed run loses no more than the chunks it was at.

    Args:
        folder: is made by [`claim`].
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.parts = self.folder / PARTS

    def finished(self) -> dict | None:
        """What ``scores.json`` holds, or None as long as there is none."""
        path = self.folder / SCORES_FILE
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def claim(self, settings: dict) -> None:
        """Make the folder that of a scoring by ``settings``, or see that it is.

        Raises:
            ValueError: it holds other scores, or other files.
        """
        finished, path = self.finished(), self.parts / SETTINGS_FILE
        begun = any(self.parts.glob("chunk-*.parquet"))
        if finished or begun:
            _check_same(self.folder, finished or json.loads(path.read_text(encoding="utf-8")), settings)
        elif not path.is_file() and any((self.folder / name).exists() for name in (CARD_FILE, DATA)):
            raise ValueError(f"{self.folder} holds files that are no scores. Choose another --output_dir.")
        if finished or not begun:  # left by a run that was killed at its very end, or failed at its start
            shutil.rmtree(self.parts, ignore_errors=True)
        if not (finished or begun):
            self.parts.mkdir(parents=True)
            write_json(path, settings)

    def has_items(self) -> bool:
        """Whether the items are on disk already."""
        return (self.parts / ITEMS_FILE).is_file()

    def write_items(self, items: Sequence[CaptionItem]) -> None:
        """Keep the items for the other processes, and for going on."""
        table = pa.Table.from_pylist([item._asdict() for item in items], schema=ITEMS_SCHEMA)
        _write_whole(table, self.parts / ITEMS_FILE)

    def read_items(self) -> list[CaptionItem]:
        """The items that [`write_items`] wrote."""
        return [CaptionItem(**row) for row in pq.read_table(self.parts / ITEMS_FILE).to_pylist()]

    def missing(self, chunks: int) -> list[int]:
        """Which of the chunks are not on disk."""
        return [chunk for chunk in range(chunks) if not self._chunk(chunk).is_file()]

    def write_chunk(self, chunk: int, items: Iterable[CaptionItem], errors: Iterable[np.ndarray]) -> None:
        """Keep a finished chunk, at once or not at all: its items and the errors (K, r) of each."""
        rows = [
            {"picture": item.picture, "caption": item.caption, "candidates": item.candidates, "errors": found.tolist()}
            for item, found in zip(items, errors, strict=True)
        ]
        _write_whole(pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema), self._chunk(chunk))

    def _chunk(self, chunk: int) -> Path:
        return self.parts / f"chunk-{chunk:09d}.parquet"

    def finish(self, settings: dict, chunks: int) -> None:
        """Write data, card and ``scores.json`` of the finished chunks, and drop these.

        Raises:
            ValueError: no item has two candidates.
        """
        table = pa.concat_tables([pq.read_table(self._chunk(chunk)) for chunk in range(chunks)])
        data = datasets.Dataset(table)
        settings = settings | _sum_up(data, settings)
        settings["fingerprint"] = content_fingerprint(data, settings)
        shutil.rmtree(self.folder / DATA, ignore_errors=True)
        (self.folder / DATA).mkdir()
        starts = range(0, len(table), ITEMS_PER_SHARD)
        for number, start in enumerate(starts):
            shard = table.slice(start, ITEMS_PER_SHARD).combine_chunks()
            _write_whole(shard, self.folder / DATA / f"train-{number:05d}-of-{len(starts):05d}.parquet")
        (self.folder / CARD_FILE).write_text(render_card(settings), encoding="utf-8")
        write_json(self.folder / SCORES_FILE, settings)
        shutil.rmtree(self.parts)


def _check_same(folder: Path, then: dict, now: dict) -> None:
    now = json.loads(json.dumps(now))
    changed = [name for name, value in now.items() if then.get(name) != value]
    if changed:
        name = changed[0]
        raise ValueError(
            f"{folder} holds scores of other settings: its {name} is {_difference(then.get(name), now[name])}. Choose "
            "another --output_dir."
        )


def _difference(then, now) -> str:
    if isinstance(then, dict) and isinstance(now, dict):
        key = next(key for key in {**then, **now} if then.get(key) != now.get(key))
        return f"of {key} {then.get(key)!r:.200}, not {now.get(key)!r:.200}"
    return f"{then!r:.200}, not {now!r:.200}"


def _write_whole(table: pa.Table, path: Path) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    pq.write_table(table, partial)
    partial.replace(path)


def _sum_up(data: datasets.Dataset, settings: dict) -> dict:
    """How many items there are and are ranked, how sure the teacher is of them and how often right, and what they took."""
    counts = np.array([len(row) for row in data["candidates"]])
    if counts.max(initial=0) < 2:
        raise ValueError(
            f"none of the {len(counts)} items has a candidate beside its caption, so there is nothing to rank; choose "
            "other --candidates."
        )
    found = {"items": len(counts), "ranked_share": round(float((counts >= 2).mean()), 4)}
    if settings["teacher"] is None:
        return found
    scores = CandidateScores(data, settings)
    certain = scores.confidence[scores.ranked]
    first = [scores.item(number) for number in np.flatnonzero(scores.ranked)]
    own_first = [item.candidates[item.errors.argmin()] == item.caption for item in first]
    calls = int((~np.isnan(scores.errors)).sum())
    return found | {
        "mean_confidence": round(float(certain.mean()), 4),
        "sure_share": round(float((certain > SURE).mean()), 4),
        "own_first_share": round(float(np.mean(own_first)), 4),
        "own_first_by_chance": round(float((1 / counts[counts >= 2]).mean()), 4),
        "denoiser_calls": calls,
        "denoiser_calls_saved": int(counts[counts >= 2].sum()) * settings["num_draws"] - calls,
    }
