"""The evaluation loss where a picture or a caption is lacking or a pair is left alone: as if those pairs were not there."""

import json
import math

import datasets
import pytest
import torch
from launching import launch

from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer
from sdsclip_hf.data.images import BAD_IMAGES_FILE
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
def evaluate(tmp_path, clip_folder, teacher_folder, pairs, monkeypatch):
    told = []
    monkeypatch.setattr(logger, "warning", told.append)

    def make(data, batch: int, **options) -> dict:
        options = {"lambda_sds": 1.0, "mapper_warmup_steps": 0} | options
        args = SDSCLIPConfig(
            output_dir=str(tmp_path / "run"),
            use_cpu=True,
            per_device_eval_batch_size=batch,
            disable_tqdm=True,
            dataloader_drop_last=False,
            **options,
        )
        torch.manual_seed(0)  # of the mapper
        teacher = teacher_folder if args.lambda_sds else None
        trainer = SDSCLIPTrainer(clip_folder, args, teacher=teacher, train_dataset=pairs, eval_dataset=data)
        found = trainer.evaluate()
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


def test_evaluation_data_of_which_nothing_is_left_costs_no_training(tmp_path, clip_folder, pairs, broken):
    args = SDSCLIPConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        lambda_sds=0.0,
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        per_device_train_batch_size=4,
        disable_tqdm=True,
    )
    data = broken.select([1, 4, 11])
    trainer = SDSCLIPTrainer(clip_folder, args, train_dataset=pairs, eval_dataset=data)
    trainer.train()
    assert trainer.state.global_step == 2
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert len(losses) == 2 and all(map(math.isnan, losses))


def test_a_pair_that_training_would_leave_alone_is_told_before_it_begins(tmp_path, clip_folder, pairs):
    options = {"lambda_sds": 0.0, "dataloader_drop_last": False, "use_cpu": True, "per_device_train_batch_size": 4}
    args = SDSCLIPConfig(output_dir=str(tmp_path), **options)
    with pytest.raises(ValueError, match=r"of 9 pairs in batches of 4 one is left.*--dataloader_drop_last"):
        SDSCLIPTrainer(clip_folder, args, train_dataset=pairs.select(range(9))).get_train_dataloader()
    SDSCLIPTrainer(clip_folder, args, train_dataset=pairs.select(range(10))).get_train_dataloader()


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
