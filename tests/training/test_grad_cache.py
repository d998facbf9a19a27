"""GradCache: the gradient of a large contrastive batch by mini-batches equals that of the batch at once."""

import pytest
import torch
import torch.nn.functional as F
from launching import launch
from trainers import assert_same, one_step
from transformers import CLIPModel

from sdsclip_hf.losses import contrastive_loss
from sdsclip_hf.training.grad_cache import RandomState

pytestmark = pytest.mark.filterwarnings("ignore")
RANK = {"lambda_sds": 0.0, "lambda_rank": 0.7, "ranking_temperature": 0.3}
TERMS = {
    "contrastive": {"lambda_sds": 0.0},
    "sds": {"lambda_sds": 0.5},
    "sds alone": {"lambda_clip": 0.0, "lambda_sds": 0.5},
    "contrastive, weighted": {"lambda_clip": 0.3, "lambda_sds": 0.0},
    "sds stop-gradient": {"lambda_sds": 0.5, "sds_gradient": "stop_gradient"},
    "sds of some images": {"lambda_sds": 0.5, "distill_fraction": 0.4},
    "ranking": RANK,
    "hard negatives": {"lambda_sds": 0.0, "hard_negatives": True},
    "all": RANK | {"lambda_sds": 0.5, "lambda_cosine": 0.3, "hard_negatives": True, "ranking_confidence": True},
}


@pytest.fixture
def make_trainer(make_trainer, scores_folder):
    def make(mini, **options):
        settings = {"health_steps": 0, "trainable": "full", "train_logit_scale": True}
        if {"lambda_rank", "hard_negatives"} & set(options):
            settings["ranking_scores"] = scores_folder
        return make_trainer(per_device_train_batch_size=mini, **(settings | options))

    return make


@pytest.mark.parametrize("mini", [2, 4, 12])
@pytest.mark.parametrize("options", TERMS.values(), ids=TERMS)
def test_gradient_is_that_of_the_whole_batch(make_trainer, options, mini):
    loss, expected = one_step(make_trainer(12, **options))
    cached_loss, found = one_step(make_trainer(mini, contrastive_batch_size=12, **options))
    assert cached_loss == pytest.approx(loss, rel=1e-5)
    assert_same(found, expected, 2e-5)
    assert (expected["clip.logit_scale"].abs() > 0) == (options.get("lambda_clip") != 0)


@pytest.mark.parametrize("options", [{"lambda_sds": 0.0}, {"lambda_sds": 0.0, "hard_negatives": True}], ids=str)
def test_duplicates_in_other_mini_batches_are_no_negatives(make_trainer, options):
    rows = [0, 1, 2, 3, 0, 5, 6, 1, 8, 9, 2, 0]
    loss, expected = one_step(make_trainer(12, **options), rows)
    cached_loss, found = one_step(make_trainer(4, contrastive_batch_size=12, **options), rows)
    assert cached_loss == pytest.approx(loss, rel=1e-5)
    assert_same(found, expected, 2e-5)
    assert one_step(make_trainer(12, mask_duplicates=False, **options), rows)[0] > loss + 0.01


@pytest.mark.parametrize("trainable", ["layernorm", "lora"])
def test_gradient_of_what_trains_alone(make_trainer, trainable):
    options = {"trainable": trainable, "lambda_sds": 0.5}
    _, expected = one_step(make_trainer(12, **options))
    _, found = one_step(make_trainer(4, contrastive_batch_size=12, **options))
    assert_same(found, expected, 2e-5)


def test_gradient_is_another_than_that_of_accumulated_small_batches(make_trainer):
    """The comparison above could not fail if negatives did not matter."""
    _, whole = one_step(make_trainer(12, lambda_sds=0.0))
    trainer = make_trainer(4, lambda_sds=0.0)
    _, small = one_step(trainer, rows=range(4))
    name = "clip.visual_projection.weight"
    assert (whole[name] - small[name]).norm() > 0.1 * whole[name].norm()


def test_dropout_is_replayed(make_trainer):
    """Against the batch at once, in which each mini-batch drops the same elements."""
    options = {"lambda_sds": 0.0, "trainable": "lora", "lora_dropout": 0.4, "contrastive_batch_size": 12}
    trainer = make_trainer(4, **options)
    for name, parameter in trainer.student.named_parameters():  # B of LoRA begins at zero
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    batch = trainer.data_collator([trainer.train_dataset[number] for number in range(12)])
    trainer.model.train()
    torch.manual_seed(5)
    parts = [{name: value[start : start + 4] for name, value in batch.items()} for start in (0, 4, 8)]
    encoded = [trainer.encode(trainer.model, part)[1] for part in parts]
    images, captions = (torch.cat([getattr(part, name) for part in encoded]) for name in ("images", "captions"))
    contrastive_loss(images, captions, encoded[0].logit_scale).backward()
    expected = {name: p.grad.clone() for name, p in trainer.student.named_parameters() if p.grad is not None}
    after = torch.rand(1)
    torch.manual_seed(5)
    _, found = one_step(trainer)
    assert_same(found, expected, 2e-5)
    assert torch.rand(1) == after  # the random numbers go on as if the mini-batches had been encoded once


def test_what_cannot_be_replayed_is_refused(make_trainer, monkeypatch):
    trainer = make_trainer(4, lambda_sds=0.0, contrastive_batch_size=12)
    own, encode = torch.Generator().manual_seed(0), trainer.student.encode_images
    monkeypatch.setattr(
        trainer.student, "encode_images", lambda pixels: encode(pixels + torch.randn(pixels.shape, generator=own))
    )
    with pytest.raises(ValueError, match=r"cannot be replayed .*--lora_dropout 0.*leave --contrastive_batch_size out"):
        one_step(trainer)


@pytest.mark.slow
def test_mapper_is_prepared_by_mini_batches_too(make_trainer, monkeypatch):
    warm = {"mapper_warmup_steps": 5, "mapper_whitening": True, "lambda_sds": 0.5}
    seen = {}
    for name, options in {"plain": {}, "cached": {"contrastive_batch_size": 12}}.items():
        trainer, rows = make_trainer(4, **warm, **options), []
        term, whiten = trainer.distillation, trainer.student.mapper.whiten
        monkeypatch.setattr(
            trainer, "distillation", lambda z0, *rest, term=term, rows=rows: rows.append(len(z0)) or term(z0, *rest)
        )
        monkeypatch.setattr(
            trainer.student.mapper,
            "whiten",
            lambda sample, whiten=whiten, rows=rows: rows.append(len(sample)) or whiten(sample),
        )
        trainer._prepare_mapper()
        seen[name] = rows
    assert seen["plain"] == seen["cached"] == [2048, 4, 4, 4, 4, 4]


def test_random_state_replays_and_goes_on():
    torch.manual_seed(3)
    state = RandomState(torch.device("cpu"))
    first, second = torch.rand(2), torch.rand(2)
    with state.replayed():
        assert torch.equal(torch.rand(2), first)
    torch.manual_seed(3)
    torch.rand(2)
    assert torch.equal(torch.rand(2), second)


def test_training_sees_whole_batches_and_logs_their_loss(make_trainer):
    plain, cached = make_trainer(12, lambda_sds=0.5), make_trainer(3, lambda_sds=0.5, contrastive_batch_size=12)
    for trainer in (plain, cached):
        trainer.train()
    for then, now in zip(plain.state.log_history[:2], cached.state.log_history[:2], strict=True):
        for name in ("loss", "contrastive", "sds", "grad_norm", "captions_cut", "epoch"):
            assert now[name] == pytest.approx(then[name], rel=1e-3), name
    moved = plain.student.state_dict()
    for name, tensor in cached.student.state_dict().items():
        assert torch.allclose(tensor, moved[name], atol=2e-3), name


def test_accumulated_steps_are_a_mean(make_trainer):
    trainers = [make_trainer(mini, lambda_sds=0.0, contrastive_batch_size=size) for mini, size in ((12, None), (4, 12))]
    gradients = []
    for trainer in trainers:
        trainer.create_optimizer()
        trainer.current_gradient_accumulation_steps = 2
        for start in (0, 12):
            batch = trainer.data_collator([trainer.train_dataset[number] for number in range(start, start + 12)])
            trainer.training_step(trainer.model, batch)
        gradients.append({name: p.grad for name, p in trainer.student.named_parameters() if p.grad is not None})
    assert_same(gradients[1], gradients[0], 2e-5)


def test_what_does_not_fit_is_refused(make_trainer, pairs):
    with pytest.raises(ValueError, match=r"contrastive_batch_size 10 is no multiple of 4.* to 8, for instance"):
        make_trainer(4, contrastive_batch_size=10)
    with pytest.raises(ValueError, match="gradient_norm_steps needs the whole batch"):
        make_trainer(4, contrastive_batch_size=8, gradient_norm_steps=5)
    with pytest.raises(ValueError, match=r"fewer than one batch of 400 .* lower --contrastive_batch_size"):
        make_trainer(4, lambda_sds=0.0, contrastive_batch_size=400).train()


@pytest.mark.parametrize("chunk", [1, 5, 12, 100])
def test_chunked_loss_is_the_loss(chunk):
    torch.manual_seed(0)
    images, captions, negatives = (F.normalize(torch.randn(rows, 6), dim=-1).double() for rows in (12, 12, 7))
    results = []
    for size in (None, chunk):
        leaves = [
            tensor.clone().requires_grad_() for tensor in (images, captions, negatives, torch.tensor(9.0).double())
        ]
        loss = contrastive_loss(leaves[0], leaves[1], leaves[3], negative_embeds=leaves[2], chunk_size=size)
        results.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


PROCESSES = """
import sys, torch, datasets
from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer
model, teacher, scores, data, out, options = sys.argv[1:]
args = SDSCLIPConfig(output_dir=out + "_run", use_cpu=True, max_steps=20, learning_rate=1e-3, save_strategy="no",
    disable_tqdm=True, report_to="none", health_steps=0, **eval(options))
trainer = SDSCLIPTrainer(model, args, teacher=teacher, train_dataset=datasets.load_from_disk(data))
trainer.train()
if trainer.is_world_process_zero():
    torch.save(trainer.student.state_dict(), out)
"""


@pytest.mark.parametrize(
    ("processes", "terms", "trainable"),
    [
        (2, "sds", "lora"),
        pytest.param(4, "sds", "lora", marks=pytest.mark.slow),
        pytest.param(4, "sds", "layernorm", marks=pytest.mark.slow),
        pytest.param(4, "sds alone", "lora", marks=pytest.mark.slow),
        pytest.param(4, "sds alone", "layernorm", marks=pytest.mark.slow),
        pytest.param(4, "contrastive", "lora", marks=pytest.mark.slow),
        pytest.param(4, "contrastive", "layernorm", marks=pytest.mark.slow),
    ],
)
def test_processes_end_with_the_weights_of_one(
    tmp_path, clip_folder, teacher_folder, pairs, processes, terms, trainable
):
    pairs.save_to_disk(tmp_path / "data")
    states = []
    for world, mini in ((1, 8), (processes, 2)):
        options = TERMS[terms] | {"trainable": trainable, "per_device_train_batch_size": mini}
        options |= {"contrastive_batch_size": 8} if mini * world < 8 else {}
        out = tmp_path / f"{world}.pt"
        words = [clip_folder, teacher_folder, "none", tmp_path / "data", out, repr(options)]
        launch(PROCESSES, *words, processes=world)
        states.append(torch.load(out, weights_only=True))
    start = CLIPModel.from_pretrained(clip_folder).state_dict()
    one, several = states
    for name, tensor in one.items():
        # As far as 20 steps of Adam reach, which are as long where a gradient is mere rounding.
        reach = 20 * 1e-3 * tensor.numel() ** 0.5
        assert (tensor - several[name]).norm() <= 1e-5 * max(tensor.norm(), reach), name
    moved = {name for name in one if name.removeprefix("clip.") in start}
    moved = [name for name in moved if not torch.equal(one[name], start[name.removeprefix("clip.")])]
    assert moved or trainable == "lora"
