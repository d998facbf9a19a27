"""Which caption each picture is scored with, and which candidates: never one that is true of it."""

from pathlib import Path

import datasets
import pytest
from scorings import png, rows_of

from sdsclip_hf.data.duplicates import plain_words
from sdsclip_hf.evaluation.scorers import ClipScorer
from sdsclip_hf.scoring.score_captions import score_captions
from sdsclip_hf.students.sdsclip_model import load_clip


def test_sources_are_mixed_and_no_true_caption_is_among_them(several, tmp_path, clip_folder):
    clip = ClipScorer(*load_clip(clip_folder))
    sources = ["swap:2", "column:3", "nearest:2", "batch:4"]
    options = {"candidates": sources, "candidates_column": "given", "model_name_or_path": clip_folder}
    settings = score_captions(None, several, clip, captions_per_image=2, output_dir=tmp_path, **options)
    assert settings["candidates"] == sources
    assert settings["nearest_by"]["name"] == Path(clip_folder).name
    rows = rows_of(tmp_path)
    assert len(rows) == 18
    corpus = [row["caption"] for row in rows]
    for place, row in enumerate(rows):
        true = {plain_words(text) for text in several[place // 2]["caption"]}
        if place >= 14:
            true |= {plain_words(text) for number in (7, 8) for text in several[number]["caption"]}
        others = [text for text in row["candidates"] if text != row["caption"]]
        words = [plain_words(text) for text in others]
        assert len(others) == len(row["candidates"]) - 1 and len(set(words)) == len(words)
        assert not true & set(words)
        given = [text for text in others if text in several[place // 2]["given"]]
        assert sorted(given) == sorted(["a chair", "A red chair on a blue dog!", f"a dog {place // 2}"])
        swaps = [text for text in others if sorted(text.split()) == sorted(row["caption"].split())]
        assert len(swaps) == 2
        assert 2 <= sum(text in corpus for text in others) <= 6
        assert len(others) <= 2 + 3 + 2 + 4


def test_what_is_true_of_a_picture_is_no_candidate_of_it(tmp_path):
    true = [["a cat", "a dog"], ["a dog", "a cat"], ["a bird"], ["a fish"], ["a tree", "an oak"], ["a bush", "a shrub"]]
    given = [[], [], [], [], ["a bush", "a SHRUB", "a wolf"], ["A Tree!", "an oak", "a fox"]]
    rows = [
        {"image": {"bytes": png((min(number, 4), 0, 0))}, "caption": captions, "given": others}
        for number, (captions, others) in enumerate(zip(true, given, strict=True))
    ]
    data = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    options = {"candidates": ["column", "batch:2"], "candidates_column": "given"}
    for seed in range(5):
        score_captions(None, data, seed=seed, output_dir=tmp_path / str(seed), **options)
        found = [set(row["candidates"]) - {row["caption"]} for row in rows_of(tmp_path / str(seed))]
        assert not {"a cat", "a dog"} & (found[0] | found[1])
        for place, own in ((4, "a wolf"), (5, "a fox")):  # the same picture twice
            assert own in found[place] and len(found[place]) == 3
            assert not {"a tree", "an oak", "a bush", "a shrub"} & {plain_words(text) for text in found[place]}


def test_captions_are_drawn_by_seed_and_row(several, tmp_path):
    def drawn(seed, rows=9, count=2):
        folder = tmp_path / f"{seed}-{rows}-{count}"
        data = several.select(range(rows))
        score_captions(None, data, output_dir=folder, seed=seed, captions_per_image=count, candidates=["batch:1"])
        return [row["caption"] for row in rows_of(folder)]

    assert drawn(0)[:8] == drawn(0, rows=4)
    places = [several[number]["caption"].index(text) for number, text in enumerate(drawn(0, count=1))]
    assert len(set(places)) > 1
    assert drawn(0) != drawn(1)
    assert sorted(drawn(0, count=9)) == sorted(text for row in several for text in row["caption"])


def test_the_nearest_are_by_the_clip_s_own_embeddings(pairs, tmp_path, clip_folder):
    clip = ClipScorer(*load_clip(clip_folder))
    score_captions(None, pairs, clip, candidates=["nearest:1"], model_name_or_path=clip_folder, output_dir=tmp_path)
    embeds = clip.embed_captions(pairs["caption"][:])
    similar = (embeds @ embeds.T).fill_diagonal_(-2)
    for row, best in zip(rows_of(tmp_path), similar.argmax(1).tolist(), strict=True):
        assert set(row["candidates"]) == {row["caption"], pairs["caption"][best]}


def test_nearest_needs_an_embedder(pairs, tmp_path):
    with pytest.raises(ValueError, match="'nearest' needs an embedder"):
        score_captions(None, pairs, candidates=["nearest"], model_name_or_path="a", output_dir=tmp_path)


def test_a_given_candidate_that_is_the_caption_is_an_error_that_names_both(several, tmp_path):
    given = several["given"][:]
    given[3].append(several["caption"][3][1].upper())
    data = several.remove_columns("given").add_column("given", given)
    options = {"candidates": ["column"], "candidates_column": "given", "output_dir": tmp_path}
    with pytest.raises(ValueError, match=r"row 3: the candidate 'A RED .*' of column 'given' is the picture's own"):
        score_captions(None, data, **options)
