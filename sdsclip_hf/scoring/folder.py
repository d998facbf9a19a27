"""A folder of scores: finished chunks while the scoring goes on, then the data, its card, and ``scores.json`` at last."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sdsclip_hf.common.chunks import Chunks
from sdsclip_hf.common.errors import read_json
from sdsclip_hf.common.writing import sweep, whole_file, write_json, write_text
from sdsclip_hf.data.scores import FEATURES, SCORES_FILE, CandidateScores, content_fingerprint, ranked_by
from sdsclip_hf.scoring.caption_errors import visiting_order
from sdsclip_hf.scoring.caption_items import CaptionItem
from sdsclip_hf.scoring.card import render_card
from sdsclip_hf.scoring.labels import LabelledGaps, check_draws
from sdsclip_hf.scoring.timestep_weights import fit_timestep_weights

PARTS, SETTINGS_FILE = "parts", "settings.json"
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
        self._items, self._chunks = Chunks(self.parts, "items"), Chunks(self.parts, "chunk")

    def finished(self) -> dict | None:
        """What ``scores.json`` holds, or None as long as there is none.

        Raises:
            ValueError: it is damaged.
        """
        path = self.folder / SCORES_FILE
        return read_json(path, f"Delete {self.folder}, or choose another --output_dir.") if path.is_file() else None

    def claim(self, settings: dict) -> None:
        """Make the folder that of a scoring by ``settings``, or see that it is. No other process works there.

        Raises:
            ValueError: it holds other scores, or other files, or what is begun there is damaged.
        """
        sweep(self.folder, alone=True)
        finished, path = self.finished(), self.parts / SETTINGS_FILE
        begun = bool(self._chunks.paths())
        if finished or begun:
            _check_same(self.folder, finished or self._begun_settings(), settings)
        elif not path.is_file() and any((self.folder / name).exists() for name in (CARD_FILE, DATA)):
            raise ValueError(f"{self.folder} holds files that are no scores. Choose another --output_dir.")
        if finished or not begun:  # left by a run that was killed at its very end, or failed at its start
            shutil.rmtree(self.parts, ignore_errors=True)
        if not (finished or begun):
            self.parts.mkdir(parents=True)
            write_json(path, settings | {"seal": _digest(settings)})

    def _begun_settings(self) -> dict:
        """What the finished chunks were scored by."""
        path = self.parts / SETTINGS_FILE
        remedy = f"The scores that were begun cannot be told from others: delete {self.parts} to score anew."
        settings = read_json(path, remedy) if path.is_file() else {}
        if settings.pop("seal", None) != _digest(settings):
            raise ValueError(f"{path} is missing or is not what was written. {remedy}")
        return settings

    def has_items(self) -> bool:
        """Whether the items are on disk already, and whole."""
        return bool(self._items.numbers())

    def write_items(self, items: Sequence[CaptionItem]) -> None:
        """Keep the items for the other processes, and for going on."""
        table = pa.Table.from_pylist([item._asdict() for item in items], schema=ITEMS_SCHEMA)
        self._items.write(0, table)

    def read_items(self) -> list[CaptionItem]:
        """The items that [`write_items`] wrote.

        Raises:
            OSError: they are damaged.
        """
        return [CaptionItem(**row) for row in self._items.read([0])[0].to_pylist()]

    def missing(self, chunks: int) -> list[int]:
        """Which of the chunks are not on disk. Those that are damaged are told, and go."""
        there = self._chunks.numbers()
        return [chunk for chunk in range(chunks) if chunk not in there]

    def write_chunk(self, chunk: int, items: Iterable[CaptionItem], errors: Iterable[np.ndarray]) -> None:
        """Keep a finished chunk, at once or not at all: its items and the errors (K, r) of each."""
        rows = [
            {"picture": item.picture, "caption": item.caption, "candidates": item.candidates, "errors": found.tolist()}
            for item, found in zip(items, errors, strict=True)
        ]
        self._chunks.write(chunk, pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema))

    def finish(self, settings: dict, chunks: int) -> None:
        """Write data, card and ``scores.json`` of the finished chunks, and drop these.

        Raises:
            ValueError: no item has two candidates.
            OSError: a chunk is damaged.
            NoRoomError: the disk is full; the chunks stay.
        """
        table = pa.concat_tables(self._chunks.read(range(chunks)))
        data = datasets.Dataset(table)
        settings = settings | _sum_up(data, settings)
        settings["fingerprint"] = content_fingerprint(data, settings)
        shutil.rmtree(self.folder / DATA, ignore_errors=True)
        (self.folder / DATA).mkdir()
        starts = range(0, len(table), ITEMS_PER_SHARD)
        for number, start in enumerate(starts):
            shard = table.slice(start, ITEMS_PER_SHARD).combine_chunks()
            path = self.folder / DATA / f"train-{number:05d}-of-{len(starts):05d}.parquet"
            with whole_file(path, shard.nbytes) as partial:
                pq.write_table(shard, partial)
        write_text(self.folder / CARD_FILE, render_card(settings))
        write_json(self.folder / SCORES_FILE, settings)
        shutil.rmtree(self.parts)

    def fit_weights(self, find_gaps: Callable[[CandidateScores], LabelledGaps]) -> None:
        """Weigh the finished scores' draws by what labelled pairs tell, in place of weights before.

        The errors stay as they are: card and ``scores.json`` alone are written.

        Args:
            find_gaps: the pairs, given the unweighted scores.

        Raises:
            ValueError: the scores lack draws, or the pairs are too few.
            OSError: the scores are damaged.
        """
        loaded = CandidateScores.load(self.folder)
        data, settings = loaded.data, dict(loaded.settings)
        settings.pop("timestep_weights", None)
        scores = CandidateScores(data, settings, str(self.folder))
        check_draws(scores)
        labelled = find_gaps(scores)
        fitted, draws = fit_timestep_weights(labelled.gaps, labelled.groups), settings["num_draws"]
        timesteps = np.linspace(*settings["timestep_range"], draws).round().astype(int)
        settings["timestep_weights"] = fitted.told() | {
            "timesteps": timesteps[visiting_order(draws)].tolist(),
            "source": labelled.source,
        }
        settings |= _sum_up(data, settings)
        settings["fingerprint"] = content_fingerprint(data, settings)
        write_text(self.folder / CARD_FILE, render_card(settings))
        write_json(self.folder / SCORES_FILE, settings)


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
        keys = sorted({**then, **now}, key="fingerprint".__eq__)  # that one tells least
        key = next(key for key in keys if then.get(key) != now.get(key))
        return f"of {key} {then.get(key)!r:.200}, not {now.get(key)!r:.200}"
    return f"{then!r:.200}, not {now!r:.200}"


def _digest(settings: dict) -> str:
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()


def _sum_up(data: datasets.Dataset, settings: dict) -> dict:
    """How many items there are and are ranked, how sure the teacher is of them and how often right, and what they took."""
    counts = np.array([len(row) for row in data["candidates"]])
    if counts.max(initial=0) < 2:
        raise ValueError(
            f"none of the {len(counts)} items has a candidate beside its caption, so there is nothing to rank; choose "
            "other --candidates."
        )
    found = {"items": len(counts), "ranked_share": round(float((counts >= 2).mean()), 4)}
    if ranked_by(settings) is None:
        return found
    scores = CandidateScores(data, settings)
    first = [scores.item(number) for number in np.flatnonzero(scores.ranked)]
    own_first = [item.candidates[item.errors.argmin()] == item.caption for item in first]
    if not first:
        raise ValueError(
            f"the ranker {ranked_by(settings)!r} scored all candidates of each of the {len(counts)} items alike, so that it "
            "ranks nothing. Give another ranker or other --candidates."
        )
    found |= {
        "own_first_share": round(float(np.mean(own_first)), 4),
        "own_first_by_chance": round(float((1 / counts[scores.ranked]).mean()), 4),
    }
    if settings["teacher"] is None:
        return found | {"tied_items": int((counts >= 2).sum()) - len(first)}
    certain, calls = scores.confidence[scores.ranked], int((~np.isnan(scores.errors)).sum())
    return found | {
        "mean_confidence": round(float(certain.mean()), 4),
        "sure_share": round(float((certain > SURE).mean()), 4),
        "denoiser_calls": calls,
        "denoiser_calls_saved": int(counts[counts >= 2].sum()) * settings["num_draws"] - calls,
    }
