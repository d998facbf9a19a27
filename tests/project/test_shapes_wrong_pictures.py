"""tools/shapes_wrong_pictures.py: a wrong caption and its picture beside each right one."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from sdsclip_hf.benchmarks.items import Item
from sdsclip_hf.evaluation.scorers import DiffusionScorer
from sdsclip_hf.metrics.common.winoground import right_items
from sdsclip_hf.shapes import model_path
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher


@pytest.fixture(scope="module")
def rows():
    make = runpy.run_path(str(Path(__file__).parents[2] / "tools/shapes_wrong_pictures.py"))["rows"]
    return [row for row, _ in zip(make(per_scene=1, seed=0), range(24), strict=False)]


def test_wrong_captions_have_the_same_words_and_exchange_colours_or_things(rows):
    exchanged = set()
    for row in rows:
        words, wrong = row["caption"].split(), row["negative_caption"].split()
        assert words != wrong and sorted(words) == sorted(wrong)
        exchanged.add(sum(map(str.__ne__, words, wrong)))
    assert exchanged == {2, 4}  # colours; colours and shapes


def test_a_teacher_that_knows_tells_each_picture_s_own_caption(rows):
    teacher = DiffusionTeacher.from_pretrained(model_path("teacher"), load_vae=True)
    scorer = DiffusionScorer(teacher, num_draws=8, timestep_range=(100, 990))
    items = [
        Item(str(number), (row["image"], row["negative_image"]), (row["caption"], row["negative_caption"]), "")
        for number, row in enumerate(rows)
    ]
    assert right_items(np.stack(list(scorer.score(items))))["group"].mean() >= 0.95
