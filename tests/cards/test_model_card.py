"""The model card and the scores in the Hub's formats."""

import ast
import dataclasses
import re

import pytest
import yaml
from huggingface_hub import EvalResultEntry, ModelCard, parse_eval_result_entries

from sdsclip_hf.cards.model_card import MODEL_NAME, RunFacts, eval_results_files, find_licence, model_card, write_card
from sdsclip_hf.cards.report_link import link_report
from sdsclip_hf.cards.student_facts import StudentFacts
from sdsclip_hf.config import SDSCLIPConfig
from sdsclip_hf.students.exports import FORMS

ROWS = [
    {"subset": "all", "score": score, "value": value, "interval": (value - 0.05, value + 0.05), "n": 400, "ties": 0}
    | {"groups": None, "headline": True}
    for score, value in (("text", 0.3125), ("image", 0.1), ("group", 0.07519))
]
HIDDEN = ROWS[0] | {"subset": "Object", "headline": False}
RELATION = ROWS[2] | {"subset": "Relation", "value": 0.5}
WINOGROUND = {"name": "facebook/winoground", "revision": "a" * 40, "split": "test", "items": 400}


@pytest.fixture
def facts(tmp_path):
    return RunFacts(
        config=SDSCLIPConfig(
            output_dir=str(tmp_path / "out"), lambda_sds=0.5, lambda_rank=2.0, ranking_scores="org/scores"
        ),
        base_name="org/base-clip",
        base_revision="b" * 40,
        teacher_name="org/diffusion",
        scores_teacher="org/other-diffusion",
        counts={"clip_trained": 1234, "mapper_trained": 5, "clip_all": 99999},
        steps=50,
        max_steps=50,
        processes=1,
        has_adapter=True,
        has_mapper=True,
        dataset_name="org/pictures",
        dataset_revision="c" * 40,
        scores={
            "before": {"winoground": ROWS, "shapes:test": ROWS},
            "after": {"winoground": [*ROWS, RELATION, HIDDEN], "shapes:test": ROWS},
        },
        sources={"winoground": WINOGROUND, "shapes:test": {"name": "sdsclip_hf.shapes", "revision": None}},
        commands=("sdsclip finetune --lambda_sds 0.5",),
        licence={"license": "mit"},
        train_seconds=90,
    )


@pytest.mark.parametrize("model_class", ["CLIPModel", "SiglipModel"])
def test_a_clip_s_card_has_the_lines_for_each_library(facts, model_class):
    student = StudentFacts(model_class, model_class.removesuffix("Model").lower())
    text = model_card(dataclasses.replace(facts, student=student)).text
    blocks = re.findall(r"```python\n(.+?)```", text, re.DOTALL)
    told = {
        form for form in FORMS if f"sdsclip export {MODEL_NAME} --format {form} --output_dir exported-{form}\n" in text
    }
    if model_class != "CLIPModel":
        assert not told and len(blocks) == 1
        return
    assert told == {"open_clip", "sentence_transformers", "onnx"} and len(blocks) == 4
    for block in blocks:
        ast.parse(block)
    assert [FORMS[form].loading.replace("FOLDER", f"exported-{form}") + "\n" in blocks for form in told] == [True] * 3


def test_the_front_matter(facts):
    data = ModelCard(str(model_card(facts))).data  # as it reads after it was written
    assert (data.base_model, data.base_model_relation, data.datasets) == ("org/base-clip", "finetune", ["org/pictures"])
    assert (data["library_name"], data.pipeline_tag, data.license) == (
        "transformers",
        "zero-shot-image-classification",
        "mit",
    )
    assert {"clip", "sdsclip_hf"} <= set(data.tags)
    assert data.metrics == ["winoground_text_score", "winoground_image_score", "winoground_group_score"]
    results = [result for result in data.eval_results if result.dataset_type == "facebook/winoground"]
    assert [result.metric_value for result in results] == [31.25, 10.0, 7.52, 50.0]
    assert [(r.dataset_name, r.dataset_config, r.dataset_split) for r in results[2:]] == [
        ("winoground", "all", "test"),
        ("winoground", "Relation", "test"),
    ]
    assert {result.dataset_revision for result in results} == {"a" * 40}
    assert len(data.eval_results) == 7


def test_names_that_are_not_on_the_hub_stay_out_of_the_front_matter(facts, tmp_path):
    (tmp_path / "base").mkdir()
    local = dataclasses.replace(facts, base_name=str(tmp_path / "base"), dataset_name="shapes")
    card = model_card(local)
    assert card.data.base_model is None and card.data.datasets is None and card.data.get("base_model_relation") is None
    assert str(tmp_path) not in str(card)  # the card tells nothing of the machine
    assert "`base`" in card.text


def test_the_text_tells_the_run(facts):
    text = model_card(facts).text
    assert "L = L_CLIP + 0.5 * L_SDS + 2 * L_rank" in text
    for told in (
        "1,234 of 99,999",
        "sdsclip finetune --lambda_sds 0.5",
        "b" * 40,
        "org/other-diffusion",
        "arXiv:2307.09233",
    ):
        assert told in text
    assert "| winoground | all | group | 400 | 7.5 [2.5, 12.5] | 7.5 [2.5, 12.5] |" in text
    assert "Not scored: ARO, SugarCrepe" in text and "in 90 s" in text
    assert text.count(MODEL_NAME) >= 3  # title, snippet, adapter


@pytest.mark.parametrize(
    "weight, formula",
    [
        (1, "L = L_CLIP + 0.5 * L_SDS + 2 * L_rank"),
        (0.1, "L = 0.1 * L_CLIP + 0.5 * L_SDS + 2 * L_rank"),
        (0, "L = 0.5 * L_SDS + 2 * L_rank"),
    ],
)
def test_the_formula_has_the_terms_that_are_on(facts, weight, formula):
    facts.config.lambda_clip = weight
    text = model_card(facts).text
    assert formula in text
    assert ("the contrastive loss" in text) == ("`L_CLIP`: the symmetric" in text) == (weight > 0)


def test_the_pairs_of_a_step_are_those_of_the_contrastive_batch(facts):
    facts.config.contrastive_batch_size = 512
    assert "50 of 512 pairs" in model_card(facts).text


def test_weights_between_two_are_told_of_once_they_are(facts):
    facts.config.wise_ft_alpha = 0.6
    assert "0.6 of the way from" in model_card(facts).text
    assert "0.6 of the way from" not in model_card(dataclasses.replace(facts, unfinished=True)).text


def test_a_card_in_mid_training_says_so(facts):
    text = model_card(dataclasses.replace(facts, steps=10, scores={}, sources={}, unfinished=True)).text
    assert "after step 10 of 50" in text and "None yet." in text
    assert "In training" not in model_card(facts).text
    stopped_early = model_card(dataclasses.replace(facts, steps=10, scores={})).text
    assert "In training" not in stopped_early and "scored no benchmarks" in stopped_early


def test_the_best_step_is_told(facts):
    assert "| steps | 20 (the best of 50) of 32 pairs" in model_card(dataclasses.replace(facts, best_step=20)).text


def test_a_run_that_was_resumed_tells_all_its_commands(facts):
    resumed = dataclasses.replace(
        facts, commands=("sdsclip finetune", "sdsclip finetune --resume_from_checkpoint last")
    )
    assert "```bash\nsdsclip finetune\nsdsclip finetune --resume_from_checkpoint last\n```" in model_card(resumed).text


def test_checkpoints_are_said_to_hold_pickles(facts):
    assert "Nothing here is a pickle" in model_card(facts).text
    facts.config.hub_strategy = "checkpoint"
    assert "Nothing else is a pickle" in model_card(facts).text


def test_a_control_says_that_it_is_one(facts):
    facts.config.shuffle_captions = True
    assert "**A control**" in model_card(facts).text


@pytest.mark.parametrize(
    "of_base, given, front, told",
    [
        ({"license": "mit"}, None, "mit", "That of the base model `org/base-clip`: mit."),
        ({}, None, "unknown", "Unknown: the card of the base model `org/base-clip` could not be read, or names none."),
        (None, None, "unknown", "Ask its authors"),
        ({"license": "mit"}, "cc-by-4.0", "cc-by-4.0", "The base model `org/base-clip` has its own: mit."),
        ({"license": "other", "license_name": "openrail"}, None, "other", "openrail"),
    ],
)
def test_the_licence(facts, of_base, given, front, told):
    facts.licence, facts.config.hub_license = of_base, given
    card = model_card(facts)
    assert card.data.license == front and told in card.text
    assert facts.licence_is_known == (front != "unknown")
    assert card.data.get("license_name") == (of_base or {}).get("license_name")


def test_licences_are_read_from_cards(tmp_path):
    assert find_licence("shapes/student") == {"license": "apache-2.0"}
    assert find_licence(str(tmp_path)) == {}
    broken = "---\nlicense: other\nlicense_name: mine\nmodel-index: nonsense\n---\n"
    (tmp_path / "README.md").write_text(broken)
    assert find_licence(str(tmp_path)) == {"license": "other", "license_name": "mine"}
    assert find_licence("org/not-to-be-had") is None  # no network here: not the same as a card without a licence


@pytest.mark.parametrize("licence", ["Apache 2.0", "MIT", "", "a b"])
def test_a_licence_is_an_identifier(tmp_path, licence):
    with pytest.raises(ValueError, match="no identifier of a licence; set --hub_license"):
        SDSCLIPConfig(output_dir=str(tmp_path), hub_license=licence)


def test_what_is_given_takes_the_place_of_what_is_found(facts):
    facts.overrides = {"license": "cc0-1.0", "tags": ["mine"], "language": "en"}
    data = model_card(facts).data
    assert (data.license, data.tags, data.language) == ("cc0-1.0", ["mine"], "en")
    facts.overrides = {"base_model": "a/b", "datasets": ["c/d", "e/f"]}
    assert (model_card(facts).data.base_model, model_card(facts).data.datasets) == ("a/b", ["c/d", "e/f"])


def test_eval_results_are_what_the_hub_parses(facts):
    files = eval_results_files(facts)
    assert list(files) == ["facebook__winoground.yaml"]  # shapes has no place on the Hub
    entries = parse_eval_result_entries(yaml.safe_load(files["facebook__winoground.yaml"]))
    assert all(isinstance(entry, EvalResultEntry) for entry in entries)
    assert [(entry.task_id, entry.value) for entry in entries] == [
        ("winoground_text_score", 31.25),
        ("winoground_image_score", 10.0),
        ("winoground_group_score", 7.52),
        ("winoground_group_score_Relation", 50.0),
    ]
    assert {(entry.dataset_id, entry.dataset_revision) for entry in entries} == {("facebook/winoground", "a" * 40)}
    assert "400 items" in entries[0].notes and "[26.2, 36.2]" in entries[0].notes


def test_the_report_of_the_items_is_linked_where_there_is_one(facts, tmp_path):
    path = tmp_path / "README.md"
    write_card(tmp_path, facts)
    without = path.read_text()
    link_report(tmp_path)
    linked = path.read_text()
    (line,) = set(linked.splitlines()) - set(without.splitlines())
    assert line.startswith("[report.html](report.html)") and linked.index("## Scores") < linked.index(line)
    link_report(tmp_path)
    assert path.read_text() == linked
    (tmp_path / "report.html").write_text("<!doctype html>")
    write_card(tmp_path, facts)
    assert path.read_text() == linked  # as though it had been written with it
    path.write_text("# Mine\n")
    link_report(tmp_path)
    assert path.read_text() == f"# Mine\n\n## Scores\n\n{line}\n"


def test_plots_are_shown_where_there_are_some(facts, tmp_path):
    write_card(tmp_path, facts)
    assert "scores.png" not in (tmp_path / "README.md").read_text()
    (tmp_path / "scores.png").write_bytes(b"a picture")
    (tmp_path / ".eval_results/of_another_run.yaml").write_text("[]")
    write_card(tmp_path, facts)
    assert "](scores.png)" in (tmp_path / "README.md").read_text()
    assert not (tmp_path / ".eval_results/of_another_run.yaml").exists()
    assert "scores.png" not in str(model_card(dataclasses.replace(facts, scores={}), tmp_path))
    assert (tmp_path / ".eval_results/facebook__winoground.yaml").exists()
