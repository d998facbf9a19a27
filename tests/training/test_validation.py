"""Evaluation: terms, benchmark scores, and a loss as if pairs without picture, caption or other pair were not there."""

import json
import math

import datasets
import numpy as np
import pytest
import torch
from launching import launch
from safetensors.torch import load_file
from trainers import assert_same_weights
from transformers import CLIPModel, CLIPProcessor, EarlyStoppingCallback

from sdsclip_hf.benchmarks import load_benchmark
from sdsclip_hf.benchmarks.sugarcrepe import SUBSETS
from sdsclip_hf.data.images import BAD_IMAGES_FILE
from sdsclip_hf.evaluation.scorers import ClipScorer
from sdsclip_hf.shapes import model_path
from sdsclip_hf.training.validation import logger

BROKEN, CAPTIONLESS = [1, 4, 11], 4  # of twelve pairs, one in each four


@pytest.fixture(scope="module")
def broken(pairs) -> datasets.Dataset:
    """Twelve pairs, of which two pictures are cut off and a caption is missing."""
    rows = pairs.select(range(12)).cast_column("image", datasets.Image(decode=False)).to_list()
    for number in BROKEN:
        if number == CAPTIONLESS:
            rows[number]["caption"] = None
        else:
            rows[number]["image"]["bytes"] = rows[number]["image"]["bytes"][:40]
    return datasets.Dataset.from_list(rows, features=pairs.features)


@pytest.fixture
def evaluate(make_trainer, monkeypatch):
    told = []
    monkeypatch.setattr(logger, "warning", told.append)

    def make(data, batch: int, **options) -> dict:
        options |= {"eval_dataset": data, "per_device_eval_batch_size": batch, "dataloader_drop_last": False}
        found = make_trainer(**options).evaluate()
        return {name: value for name, value in found.items() if not name.endswith(("time", "second"))}

    make.told = told
    return make


@pytest.mark.parametrize(
    ("options", "streaming"),
    [
        ({}, False),
        ({}, True),
        ({"lambda_cosine": 1.0, "lambda_sds": 0.0}, False),
        ({"lambda_cosine": 1.0, "lambda_sds": 0.0}, True),
        ({"keep_images_in_memory": True}, False),
        ({"prompt_cache_dir": "prompts"}, False),
    ],
    ids=str,
)
def test_what_lacks_a_picture_or_a_caption_leaves_the_loss_of_the_others(
    evaluate, broken, tmp_path, options, streaming, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    whole = broken.select([number for number in range(12) if number not in BROKEN])
    expected = evaluate(whole, 3, **options)  # the same pairs stand in each batch
    found = evaluate(broken.to_iterable_dataset() if streaming else broken, 4, **options)
    assert found.pop("eval_left_out") == 3
    assert found == pytest.approx(expected, rel=1e-6)
    lines = (tmp_path / "run" / BAD_IMAGES_FILE).read_text().splitlines()
    assert len(lines) == 3 and sum("column 'caption' holds None" in line for line in lines) == 1
    (message,) = evaluate.told
    assert "3 of 12 evaluation pairs were left out" in message and BAD_IMAGES_FILE in message


def test_batches_of_unequal_rest_are_weighed_by_their_pairs(evaluate, broken):
    """In the contrastive term alone, since L_SDS draws its noise by the batch's number."""
    rests = [(0, 2, 3), (5, 6, 7), (8, 9)]
    losses = [evaluate(broken.select(rows), 4, lambda_sds=0.0)["eval_loss"] for rows in rests]
    found = evaluate(broken.select([0, 1, 2, 3, 5, 4, 6, 7, 8, 9]), 4, lambda_sds=0.0)
    assert found["eval_left_out"] == 2
    expected = sum(len(rows) * loss for rows, loss in zip(rests, losses, strict=True)) / 8
    assert found["eval_loss"] == pytest.approx(expected, rel=1e-6)


def test_a_pair_that_is_left_alone_is_left_out(evaluate, pairs, broken):
    expected = evaluate(pairs.select(range(8)), 4)
    found = evaluate(pairs.select(range(9)), 4)  # the last batch is of one
    assert found.pop("eval_left_out") == 1
    assert found == pytest.approx(expected, rel=1e-6)
    found = evaluate(broken.select([0, 1, 2, 3, 4, 5]), 2, lambda_sds=0.0)  # one is left of each of two batches
    assert found["eval_left_out"] == 4
    assert found["eval_loss"] == pytest.approx(
        evaluate(broken.select([2, 3]), 2, lambda_sds=0.0)["eval_loss"], rel=1e-6
    )


def test_evaluation_data_of_which_nothing_is_left_costs_no_training(make_trainer, broken):
    data = broken.select([1, 4, 11])
    trainer = make_trainer(lambda_sds=0.0, eval_dataset=data, eval_strategy="steps", eval_steps=1)
    trainer.train()
    assert trainer.state.global_step == 2
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert len(losses) == 2 and all(map(math.isnan, losses))


def test_a_pair_that_training_would_leave_alone_is_told_before_it_begins(make_trainer, pairs):
    with pytest.raises(ValueError, match=r"of 9 pairs in batches of 4 one is left.*--dataloader_drop_last"):
        make_trainer(data=pairs.select(range(9)), lambda_sds=0.0, dataloader_drop_last=False).get_train_dataloader()
    make_trainer(data=pairs.select(range(10)), lambda_sds=0.0, dataloader_drop_last=False).get_train_dataloader()


PROCESSES = """
import sys, json, datasets
from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer
clip, train, data, out, batch = sys.argv[1:]
args = SDSCLIPConfig(output_dir=out, use_cpu=True, lambda_sds=0.0, lambda_cosine=1.0, per_device_eval_batch_size=int(batch),
    disable_tqdm=True)
data = datasets.load_from_disk(data)
trainer = SDSCLIPTrainer(clip, args, train_dataset=datasets.load_from_disk(train), eval_dataset=data)
found = trainer.evaluate()
if trainer.is_world_process_zero():
    print("FOUND" + json.dumps([found["eval_loss"], found["eval_left_out"]]))
"""


def test_processes_that_leave_out_different_numbers_agree(evaluate, broken, pairs, clip_folder, tmp_path):
    pairs.save_to_disk(tmp_path / "train")
    broken.save_to_disk(tmp_path / "data")
    words = clip_folder, tmp_path / "train", tmp_path / "data", tmp_path / "out", 2
    printed = "".join(launch(PROCESSES, *words))
    loss, left_out = json.loads(printed.partition("FOUND")[2].splitlines()[0])
    alone = evaluate(broken, 4, lambda_sds=0.0, lambda_cosine=1.0)
    assert left_out == 3 == alone["eval_left_out"]
    assert loss == pytest.approx(alone["eval_loss"], rel=1e-5)


def test_evaluating_and_measuring_do_not_change_the_training(make_trainer, pairs):
    plain = make_trainer("plain", max_steps=4, health_steps=0)
    plain.train()
    watched = make_trainer(
        "watched",
        max_steps=4,
        health_steps=1,
        gradient_norm_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        eval_dataset=pairs.select(range(8)),
        benchmarks=["shapes:validation"],
    )
    watched.train()
    assert_same_weights(plain, watched)


def test_evaluation_gives_each_term_apart_and_the_same_each_time(make_trainer, pairs):
    trainer = make_trainer(lambda_sds=2.5, eval_dataset=pairs.select(range(8)))
    metrics = trainer.evaluate()
    total = metrics["eval_contrastive"] + 2.5 * metrics["eval_sds"]
    assert metrics["eval_loss"] == pytest.approx(total, rel=1e-5)
    again = trainer.evaluate()
    assert [again[name] for name in ("eval_loss", "eval_sds")] == [metrics[name] for name in ("eval_loss", "eval_sds")]


def test_several_evaluation_sets_are_logged_under_their_names(make_trainer, pairs):
    trainer = make_trainer(eval_dataset={"near": pairs.select(range(4)), "far": pairs.select(range(4, 8))})
    metrics = trainer.evaluate()
    assert metrics["eval_near_contrastive"] != metrics["eval_far_contrastive"]


def test_best_checkpoint_by_a_benchmark_score_is_loaded_and_the_run_stops_early(
    make_trainer, pairs, tmp_path, monkeypatch
):
    scores = iter([0.2, 0.5, 0.3, 0.1, 0.9])

    def scripted(scorer, names, keep):
        row = {"subset": "relation", "score": "group", "value": next(scores), "headline": True}
        return {names[0]: [row]}

    monkeypatch.setattr("sdsclip_hf.training.validation.evaluate_benchmarks", scripted)
    trainer = make_trainer(
        max_steps=5,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        eval_dataset=pairs.select(range(4)),
        benchmarks=["shapes:validation"],
        load_best_model_at_end=True,
        metric_for_best_model="eval_shapes:validation/relation/group",
        greater_is_better=True,
        callbacks=[EarlyStoppingCallback(2)],
    )
    trainer.train()
    assert trainer.state.global_step == 4
    assert trainer.state.best_model_checkpoint == str(tmp_path / "run/checkpoint-2")
    best = load_file(tmp_path / "run/checkpoint-2/model.safetensors")
    last = load_file(tmp_path / "run/checkpoint-4/model.safetensors")
    student = trainer.student.state_dict()
    assert all(torch.equal(student[name], tensor) for name, tensor in best.items())
    assert not all(torch.equal(student[name], tensor) for name, tensor in last.items())


@pytest.fixture
def sugarcrepe(tmp_path, pairs):
    """Three items of each subset in the authors' format."""
    for subset in SUBSETS:
        items = {}
        for number, row in enumerate(pairs.select(range(3))):
            row["image"].save(tmp_path / f"{number}.jpg")
            items[number] = {"filename": f"{number}.jpg", "caption": row["caption"], "negative_caption": "a red mat"}
        (tmp_path / f"{subset}.json").write_text(json.dumps(items))
    return str(tmp_path)


def test_benchmark_scores_are_logged_with_the_evaluation(make_trainer, pairs, sugarcrepe):
    benchmarks = ["shapes:validation", f"sugarcrepe={sugarcrepe}", "retrieval:validation=shapes"]
    trainer = make_trainer(eval_dataset=pairs.select(range(4)), benchmarks=benchmarks, model=model_path("student"))
    metrics = trainer.evaluate()
    clip = CLIPModel.from_pretrained(model_path("student"))
    scorer = ClipScorer(clip, CLIPProcessor.from_pretrained(model_path("student")))
    parts = ("text", "image", "group")
    tags = ("all", "attribute", "attribute_in_relation", "relation")
    keys = {f"shapes:validation/{tag}/{part}" for tag in tags for part in parts}
    keys |= {"sugarcrepe/all/macro_accuracy", "sugarcrepe/all/micro_accuracy"}
    keys |= {f"sugarcrepe/{subset}/accuracy" for subset in SUBSETS}
    keys |= {f"retrieval:validation/{way}/recall@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    assert {name.removeprefix("eval_") for name in metrics if "/" in name} == keys
    items = load_benchmark("shapes:validation").items
    right = [(s[0, 0] > s[0, 1] and s[1, 1] > s[1, 0]) for s in scorer.score(items)]
    assert metrics["eval_shapes:validation/all/image"] == np.mean(right) > 0.1
    items = load_benchmark(benchmarks[1]).items
    right = [s[0, 0] > s[1, 0] for s in scorer.score(items)]
    assert metrics["eval_sugarcrepe/all/micro_accuracy"] == np.mean(right)
    (logged,) = [row for row in trainer.state.log_history if "eval_loss" in row]
    assert {name: logged[f"eval_{name}"] for name in keys} == {name: metrics[f"eval_{name}"] for name in keys}


def test_evaluation_set_smaller_than_a_batch_is_measured_whole(make_trainer, pairs):
    trainer = make_trainer(eval_dataset=pairs.select(range(3)))
    assert math.isfinite(trainer.evaluate()["eval_contrastive"])
    with pytest.raises(ValueError, match="at least two pairs"):
        make_trainer(eval_dataset=pairs.select(range(1))).evaluate()
