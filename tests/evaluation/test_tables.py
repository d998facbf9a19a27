"""The scores that count most, as a table that fits a terminal and as a line."""

import pytest

from sdsclip_hf.evaluation.tables import main_line, main_scores, main_table, markdown


def row(score: str, subset: str = "all", value: float = 0.5, headline: bool = True) -> dict:
    return {"score": score, "subset": subset, "value": value, "interval": (value - 0.1, value + 0.1), "n": 1200, "ties": 0,
            "headline": headline}  # fmt: skip


KINDS = [row(score, kind, value) for kind, value in (("all", 0.2), ("attribute", 0.3), ("relation", 0.1))
         for score in ("text", "image", "group")]  # fmt: skip
RANKS = [row(f"recall@{k}", way) for way in ("image to text", "text to image") for k in (1, 5, 10)]
CHOICES = [row("micro accuracy"), row("macro accuracy", value=0.4), row("accuracy", "on", headline=False)]
RESULTS = {"shapes:test": KINDS, "retrieval=x": RANKS, "aro_relation": CHOICES}


def test_each_benchmark_has_the_score_that_its_readers_ask_for():
    found = [(one.title, one.score) for one in main_scores(RESULTS)]
    assert found == [
        *(("attribute", "group"), ("relation", "group")),
        *(("image to text", "recall@1"), ("text to image", "recall@1")),
        ("aro_relation", "macro accuracy"),
    ]
    assert main_line({"aro_relation": CHOICES}) == "aro_relation 40.0 (macro accuracy)"


def test_many_kinds_are_one_score():
    many = [row("accuracy", kind) for kind in ("all", *"abcde")]
    assert [(one.title, one.place) for one in main_scores({"sugarcrepe": many})] == [("sugarcrepe", 0)]


@pytest.mark.parametrize("width", [100, 60])
def test_the_table_fits_and_holds_every_score_once(width):
    text = main_table({"before": RESULTS, "+ L_rank": RESULTS}, width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("before") == text.count("\n\n") + 1
    values = [" 30.0 [20.0, 40.0]", " 10.0 [ 0.0, 20.0]", " 50.0 [40.0, 60.0]", " 40.0 [30.0, 50.0]"]
    assert [text.count(value) for value in values] == [2, 2, 4, 2]


def test_markdown_has_all_headline_scores():
    head, rule, *lines = markdown({"one": RESULTS}).splitlines()
    assert head == "| benchmark | subset | score | items | ties | one |" and rule.count("---") == 6
    assert len(lines) == len(KINDS) + len(RANKS) + 2
    assert "| aro_relation | all | macro accuracy | 1200 | 0 |  40.0 [30.0, 50.0] |" in lines
