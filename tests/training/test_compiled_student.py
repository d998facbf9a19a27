"""--torch_compile: a student whose towers are compiled learns the same, in few graphs, and saves under plain names."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from conftest import make_clip, make_processor, make_rows
from launching import launch
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from trainers import weights

from sdsclip_hf.common.reading import CaptionReader
from sdsclip_hf.data.collator import ImageCaptionCollator
from sdsclip_hf.data.scores import RankedItem
from sdsclip_hf.students.sdsclip_model import SDSCLIPModel
from sdsclip_hf.training.terms import distinct_texts

pytestmark = pytest.mark.filterwarnings("ignore")
CONTRASTIVE = {"lambda_sds": 0.0, "trainable": "full", "train_logit_scale": True}
RANKED = {"lambda_sds": 0.0, "lambda_rank": 1.0, "ranking_temperature": 0.3}
FORMS = {
    "contrastive": CONTRASTIVE | {"dataloader_drop_last": False, "per_device_train_batch_size": 10},  # and one of 4
    "L_rank": RANKED | {"gradient_norm_steps": 1},
    "L_SDS, stop-gradient": {"sds_gradient": "stop_gradient", "health_steps": 0},
    "GradCache": CONTRASTIVE | {"contrastive_batch_size": 8},
}
OF_INDUCTOR = {
    "L_rank": FORMS["L_rank"] | {"gradient_checkpointing": True},
    "L_SDS": {"health_steps": 0, "trainable": "lora"},
    "GradCache": FORMS["GradCache"],
}


@pytest.fixture(autouse=True)
def _anew():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    """How many torch.compile has made in this test."""
    return counters["stats"]["unique_graphs"]


@pytest.fixture
def make_trainer(make_trainer, scores_folder):
    """By plain gradient descent: Adam would make steps of what is nothing but rounding, the gradient of keys' biases."""

    def make(folder, **options):
        ranked = {"ranking_scores": str(scores_folder)} if "lambda_rank" in options else {}
        return make_trainer(folder, **{"optim": "sgd", "max_steps": 3} | ranked | options)

    return make


def assert_compiled_learns_the_same(make_trainer, backend, options):
    plain, compiled = make_trainer("plain", **options), make_trainer("run", torch_compile_backend=backend, **options)
    before = weights(plain)
    plain.train()
    assert graphs() == 0
    compiled.train()
    expected, found = weights(plain), weights(compiled)
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(
            found[name], weight, rtol=1e-4, atol=1e-6, msg=lambda told, name=name: f"{name}: {told}"
        )
    assert any((expected[name] - before[name]).abs().max() > 1e-4 for name in expected)


@pytest.mark.parametrize("form", FORMS)
def test_a_compiled_student_learns_the_same_in_few_graphs(make_trainer, form):
    assert_compiled_learns_the_same(make_trainer, "eager", FORMS[form])
    assert 2 <= graphs() <= 4 and not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize("form", OF_INDUCTOR)
def test_by_the_compiler_itself_too(make_trainer, form):
    assert_compiled_learns_the_same(make_trainer, "inductor", OF_INDUCTOR[form])


PROCESSES = """
import sys
import datasets, torch
from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer
model, data, out = sys.argv[1:]
found = []
for backend in (None, "aot_eager"):
    args = SDSCLIPConfig(out, lambda_sds=0.0, use_cpu=True, per_device_train_batch_size=4, max_steps=3, optim="sgd",
        learning_rate=1e-2, trainable="full", disable_tqdm=True, report_to="none", save_strategy="no",
        gradient_checkpointing=True, torch_compile_backend=backend)
    trainer = SDSCLIPTrainer(model, args, train_dataset=datasets.load_from_disk(data))
    trainer.train()
    found.append({name: weight.clone() for name, weight in trainer.student.state_dict().items()})
torch.save((found, torch._dynamo.utils.counters["stats"]["unique_graphs"]), f"{out}-{args.process_index}.pt")
"""


def test_two_processes_with_a_compiled_student_learn_the_same(tmp_path, clip_folder, pairs):
    pairs.save_to_disk(tmp_path / "data")
    launch(PROCESSES, clip_folder, tmp_path / "data", tmp_path / "run")
    for process in range(2):
        (expected, found), made = torch.load(tmp_path / f"run-{process}.pt", weights_only=True)
        assert made == 2
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-6)


def test_checkpoints_of_compiled_and_plain_runs_are_interchangeable(make_trainer, pairs, tmp_path):
    options = CONTRASTIVE | {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "eval_strategy": "steps"}
    options |= {"eval_steps": 1, "eval_dataset": pairs.select(range(6))}
    make = partial(make_trainer, **options)
    plain = make("plain")
    plain.train()
    compiled = make("compiled", torch_compile=True, torch_compile_backend="eager")
    compiled.train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-1"))
    again = make("plain_again")
    again.train(resume_from_checkpoint=str(tmp_path / "compiled" / "checkpoint-2"))
    for other in (compiled, again):
        for name, weight in weights(plain).items():
            torch.testing.assert_close(weights(other)[name], weight, rtol=1e-4, atol=1e-6)
    assert graphs() == 2  # evaluation, with a last batch of its own, needs none
    compiled.save_model(str(tmp_path / "export"))
    assert load_file(tmp_path / "export" / "model.safetensors").keys() == make_clip().state_dict().keys()


def test_captions_of_many_lengths_and_numbers_make_few_graphs():
    processor, student = make_processor(), SDSCLIPModel(make_clip(), trainable="full").train()
    reader = CaptionReader(processor.tokenizer, 20)
    collate = ImageCaptionCollator(processor, max_candidates=3, reader=reader)
    rows = make_rows(4)
    student.compile_towers(backend="eager")
    shapes, exact_shapes = set(), set()
    for length in range(1, 19):
        captions = [" ".join("abcdefghijklmnopqr"[first:length]) for first in range(4)]
        candidates = [captions[place:][: 1 + (length + place) % 3] for place in range(4)]
        items = [RankedItem(texts[0], texts, np.zeros(len(texts)), 1.0) for texts in candidates]
        told = zip(rows, captions, items, strict=True)
        batch = collate([row | {"caption": caption, "item": item} for row, caption, item in told])
        few, exact = distinct_texts(batch, reader), distinct_texts(batch)
        exact_shapes.add(tuple(exact.input_ids.shape))
        shapes.add(tuple(few.input_ids.shape))
        pixels = batch["pixel_values"]
        found = student(pixels, few.input_ids, few.attention_mask)
        expected = student.eval()(pixels, exact.input_ids, exact.attention_mask)
        student.train()
        assert (found.text_embeds[: len(exact.input_ids)] - expected.text_embeds).abs().max() < 1e-6
        assert (found.image_embeds - expected.image_embeds).abs().max() < 1e-6
    assert len(exact_shapes) == 18 and {rows % 4 for rows, _ in exact_shapes} > {0}
    assert {length for _, length in shapes} == {16, 20} and {rows % 4 for rows, _ in shapes} == {0}
    assert graphs() == 1 + len(shapes) <= 5
    changed = copy.deepcopy(student)
    with torch.no_grad():
        changed.base_clip.visual_projection.weight.mul_(-1)
    assert not changed.is_compiled
    torch.testing.assert_close(changed(pixels, few.input_ids).image_embeds, -found.image_embeds)


def test_a_left_padding_tokenizer_is_padded_on_at_the_left():
    reader = CaptionReader(make_processor().tokenizer, 20, padding_side="left")
    tokens = reader(["a cat", "a red cat on a mat"])
    ids, mask = reader.to_few_lengths(**tokens)
    assert ids.shape == (2, 16) and torch.equal(ids[:, -tokens["input_ids"].shape[1] :], tokens["input_ids"])
    assert torch.equal(mask.sum(1), tokens["attention_mask"].sum(1)) and mask[:, -1].all()
