"""tools/study_card.py: the figures of a study in the tables that name its arms."""

import copy
import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def study_card():
    spec = importlib.util.spec_from_file_location("study_card", ROOT / "tools/study_card.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(group: float) -> dict:
    return {
        "group": group,
        "interval": [group - 1, group + 1],
        "gain": group - 10,
        "gain_interval": [group - 11.04, group - 9],
    }


@pytest.fixture
def results(study_card) -> dict:
    arms = ("before", "contrastive", "+ L_rank", "+ L_rank, untrained teacher")
    figures = {arm: row(10.0 + 20 * number) for number, arm in enumerate(arms)}
    study = {"settings": {"baseline": "contrastive"}, "arms": {}, "retained": {}}
    for arm, figure in figures.items():
        study["arms"][arm] = {"attribute": figure, "relation": row(figure["group"] / 2)}
        study["retained"][arm] = {study_card.RETAINED["which two colours"]: row(figure["group"] + 0.26)}
    return {"study_ranking": study, "study_sds": copy.deepcopy(study)}


CARD = """## The first: `study_ranking`

| arm | attribute | gain | relation | gain |
|---|---|---|---|---|
| before | 1.0 [0.0, 2.0] |  | 0.0 [0.0, 0.0] |  |
| contrastive | ? |  | ? |  |
| **+ L_rank** (2) | ? | ? | ? | ? |

Text stays, 12 | 13.

| alpha | gain |
|---|---|
| 0.8 | + 3 |

| arm | which two colours | gain |
|---|---|---|
| + L_rank | ? | ? |

## Another: `study_teachers`

| arm | attribute | gain |
|---|---|---|
| + L_rank | ? | ? |
"""

BEFORE_AND_AFTER = {
    "| before | 1.0 [0.0, 2.0] |  | 0.0 [0.0, 0.0] |  |": "| before | 10.0 [9.0, 11.0] |  | 5.0 [4.0, 6.0] |  |",
    "| contrastive | ? |  | ? |  |": "| contrastive | 30.0 [29.0, 31.0] |  | 15.0 [14.0, 16.0] |  |",
    "| **+ L_rank** (2) | ? | ? | ? | ? |": "| **+ L_rank** (2) | 50.0 [49.0, 51.0] | +40.0 [+39.0, +41.0] "
    "| 25.0 [24.0, 26.0] | +15.0 [+14.0, +16.0] |",
    "colours | gain |\n|---|---|---|\n| + L_rank | ? | ? |": "colours | gain |\n|---|---|---|\n"
    "| + L_rank | 50.3 [49.3, 51.3] | +40.3 [+39.2, +41.3] |",
}


def test_rows_get_the_figures_of_the_arms_that_they_name_and_nothing_else_changes(study_card, results):
    filled = CARD
    for before, after in BEFORE_AND_AFTER.items():
        assert filled.count(before) == 1
        filled = filled.replace(before, after)
    assert study_card.fill_card(CARD, results) == filled == study_card.fill_card(filled, results)


def test_a_row_of_an_arm_that_there_is_not_is_an_error(study_card, results):
    with pytest.raises(KeyError, match="L_dance"):
        study_card.fill_card(CARD.replace("**+ L_rank**", "+ L_dance"), results)


def test_the_page_has_a_column_of_each_of_two_studies(study_card, results):
    results["study_sds"]["arms"]["contrastive"]["relation"] = row(7.0)
    table = "| | student that binds nothing: x | student whose y |\n|---|---|---|\n"
    before = (
        table + "| contrastive loss alone | ? | ? (3) |\n| control: L_rank, untrained teacher | ? |  |\n\n| a | b | c |"
    )
    after = table + "| contrastive loss alone | 30.0 [29.0, 31.0] | 7.0 [6.0, 8.0] (3) |\n"
    after += "| control: L_rank, untrained teacher | 70.0 [69.0, 71.0] |  |\n\n| a | b | c |"
    assert study_card.fill_page(before, results) == after


def test_every_row_of_the_card_and_the_page_names_an_arm_of_its_study(study_card):
    results = {}
    for path in sorted((ROOT / "recipes/configs").glob("study_*.yaml")):
        settings = yaml.safe_load(path.read_text())
        points = [f"{curve}, {name}" for curve in settings.get("curves", ()) for name in settings.get("scores", ())]
        arms = ["before", *settings["arms"], *points]
        every = {
            name: row(12.3)
            for name in ("attribute", "attribute in relation", "relation", *study_card.RETAINED.values())
        }
        of_arms = dict.fromkeys(arms, every)
        results[path.stem] = {"settings": settings, "arms": of_arms, "retained": of_arms}
        results[path.stem]["figures"] = dict.fromkeys(("text", "image"), of_arms)
    card = study_card.fill_card((ROOT / study_card.CARD).read_text(), results)
    page = study_card.fill_page((ROOT / study_card.PAGE).read_text(), results)
    assert card.count("| 12.3 [11.3, 13.3] |") > 150 and page.count("| 12.3 [11.3, 13.3]") > 20


def test_the_published_tables_are_those_of_the_published_results(study_card):
    results = {path.stem: json.loads(path.read_text()) for path in (ROOT / study_card.RESULTS).glob("*.json")}
    headings = re.findall(r"^## .*$", (ROOT / study_card.CARD).read_text(), re.MULTILINE)
    assert set(results) == {name for heading in headings for name in re.findall(r"`(study_\w+)`", heading)}
    for path, fill in ((study_card.CARD, study_card.fill_card), (study_card.PAGE, study_card.fill_page)):
        published = (ROOT / path).read_text()
        assert fill(published, results) == published
