"""The ranking term and its baselines in the trainer: against plain re-derivations, and what is refused."""

import math
from functools import partial
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_scores
from launching import launch
from transformers import CLIPModel

from sdsclip_hf import SDSCLIPConfig
from sdsclip_hf.common.checkpoints import fingerprint
from sdsclip_hf.data.captioned_images import ImageCaptionDataset
from sdsclip_hf.data.images import picture_digest
from sdsclip_hf.data.scores import CandidateScores
from sdsclip_hf.losses import calibrated_temperature
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher
from sdsclip_hf.training.terms import RankingTerm

pytestmark = pytest.mark.filterwarnings("ignore")
BATCH = 4


@pytest.fixture
def make_trainer(make_trainer, scores_folder):
    terms = {"lambda_sds": 0.0, "lambda_rank": 1.0, "ranking_scores": scores_folder}
    return partial(make_trainer, teacher=None, trainable="full", **terms)


@pytest.fixture
def embed(clip_folder):
    """Unit embeddings of pictures and captions by transformers' own calls."""
    clip = CLIPModel.from_pretrained(clip_folder).eval()

    def unit(vectors):
        return (vectors / vectors.norm(dim=-1, keepdim=True)).double().numpy()

    with torch.no_grad():
        yield (
            lambda pixels: unit(clip.get_image_features(pixel_values=pixels).pooler_output),
            lambda processor, captions: unit(
                clip.get_text_features(**processor.tokenizer(captions, padding=True, return_tensors="pt")).pooler_output
            ),
            clip.logit_scale.exp().item(),
        )


def softmax(values):
    values = np.exp(np.asarray(values, dtype=np.float64) - np.max(values))
    return values / values.sum()


def divergence(teacher_logits, student_logits) -> float:
    teacher, student = softmax(teacher_logits), softmax(student_logits)
    return float((teacher * (np.log(np.maximum(teacher, 1e-300)) - np.log(student))).sum())


def items_of(trainer) -> list[dict]:
    """The first batch's examples, with their candidates."""
    numbers = next(iter(trainer.get_train_dataloader().batch_sampler))
    return [trainer.train_dataset[number] for number in numbers]


def term_by_hand(
    trainer, embed, *, tau, scale=None, confidence=False, labels=False, evidence=False, lapse=0.0
) -> float:
    """L_rank of the first batch, image by image."""
    embed_pixels, embed_captions, own_scale = embed
    total, examples = 0.0, items_of(trainer)
    for example in examples:
        item = example["item"]
        pixels = trainer.processing_class.image_processor([example["image"]], return_tensors="pt").pixel_values
        cosines = embed_captions(trainer.processing_class, item.candidates) @ embed_pixels(pixels)[0]
        targets = -item.errors.astype(np.float64) / tau
        if labels:
            targets = [0.0 if candidate == item.caption else -1e9 for candidate in item.candidates]
        logits = (scale or own_scale) * cosines
        value = divergence(targets, logits)
        if evidence:
            value = -np.log(softmax(logits) @ softmax(targets))
        total += value * (item.confidence if confidence else 1.0)
    return total / len(examples)


@pytest.mark.parametrize(
    ("options", "by_hand"),
    [
        ({"ranking_temperature": 0.3, "ranking_form": "divergence"}, {"tau": 0.3}),
        ({"ranking_temperature": 0.3}, {"tau": 0.3, "evidence": True}),
        ({"ranking_temperature": 0.05, "ranking_logit_scale": 9.0}, {"tau": 0.05, "scale": 9.0, "evidence": True}),
        ({"ranking_temperature": 0.3, "ranking_confidence": True}, {"tau": 0.3, "confidence": True, "evidence": True}),
        ({"ranking_temperature": 0.3, "ranking_candidates": 1}, {"tau": 0.3, "evidence": True}),
        ({"ranking_temperature": 0.3, "ranking_targets": "labels"}, {"tau": 0.3, "labels": True}),
    ],
    ids=str,
)
def test_term_equals_the_one_worked_out_image_by_image(make_trainer, embed, options, by_hand):
    trainer = make_trainer(lambda_rank=2.5, **options)
    batch = trainer.data_collator(items_of(trainer))
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model.eval(), batch)
    notes = trainer.take_notes("eval")
    assert notes["ranking"] == pytest.approx(term_by_hand(trainer, embed, **by_hand), rel=1e-4)
    assert loss.item() == pytest.approx(notes["contrastive"] + 2.5 * notes["ranking"], rel=1e-5)


def test_images_count_by_the_confidence_of_the_teacher(make_trainer, embed, scores_folder, tmp_path):
    rng = np.random.default_rng(3)
    items = [tuple(row.values()) for row in CandidateScores.load(scores_folder).data]
    unsure = [(*item[:3], rng.normal(size=(3, 4)).tolist()) for item in items]
    folder = str(make_scores(tmp_path / "unsure", unsure))
    trainer = make_trainer(
        ranking_scores=folder, ranking_temperature=0.5, ranking_confidence=True, ranking_form="divergence"
    )
    with torch.no_grad():
        trainer.compute_loss(trainer.model.eval(), trainer.data_collator(items_of(trainer)))
    found = trainer.take_notes("eval")["ranking"]
    assert found == pytest.approx(term_by_hand(trainer, embed, tau=0.5, confidence=True), rel=1e-4)
    assert found < 0.9 * term_by_hand(trainer, embed, tau=0.5)


def test_fitted_temperature_is_the_share_of_the_median_gap(make_trainer, scores_folder):
    gaps = np.diff(np.sort(CandidateScores.load(scores_folder).mean_errors, axis=1)[:, :2]).ravel()
    found = make_trainer(ranking_form="divergence", ranking_temperature_share=0.3).ranking.temperature
    assert found == pytest.approx(0.3 * np.sort(gaps)[(len(gaps) - 1) // 2], rel=1e-5)


def test_as_evidence_the_teacher_is_worth_what_the_own_captions_show(make_trainer, embed, scores_folder, tmp_path):
    items, own = [], []
    for number, row in enumerate(CandidateScores.load(scores_folder).data):
        own.append(row["candidates"].index(row["caption"]))
        chosen = (own[-1] + (number % 4 == 0)) % 3  # the teacher errs on every fourth, and is as sure there
        items.append((*list(row.values())[:3], [[0.0 if place == chosen else 1.0] for place in range(3)]))
    folder = str(make_scores(tmp_path / "erring", items))
    trainer = make_trainer(ranking_scores=folder)
    with torch.no_grad():
        trainer.compute_loss(trainer.model.eval(), trainer.data_collator(items_of(trainer)))
    errors = torch.tensor([[draws[0] for draws in item[3]] for item in items])
    tau = calibrated_temperature(errors, torch.tensor(own))
    by_hand = term_by_hand(trainer, embed, tau=tau, evidence=True)
    assert trainer.take_notes("eval")["ranking"] == pytest.approx(by_hand, rel=1e-4)
    assert 0.5 < 1 / (1 + 2 * math.exp(-1 / tau)) <= 0.75  # of 24 pictures, no more than they show for certain


def test_candidates_do_not_change_the_contrastive_term(make_trainer):
    notes = []
    for options in ({}, {"lambda_rank": 0.0}):
        trainer = make_trainer(**options)
        with torch.no_grad():
            trainer.compute_loss(trainer.model.eval(), trainer.data_collator(items_of(trainer)))
        notes.append(trainer.take_notes("eval")["contrastive"])
    assert notes[0] == pytest.approx(notes[1], rel=1e-5)


def test_over_images_each_caption_ranks_the_pictures_that_were_scored_with_it(make_trainer, embed):
    trainer = make_trainer(ranking_temperature=0.1, ranking_symmetric=True, ranking_form="divergence")
    examples = [trainer.train_dataset[number] for number in (0, 1, 2, 7)]  # neighbours share candidates
    with torch.no_grad():
        trainer.compute_loss(trainer.model.eval(), trainer.data_collator(examples))
    found = trainer.take_notes("eval")
    embed_pixels, embed_captions, scale = embed
    scored = {}  # caption -> [(image, error relative to the image's mean)]
    images, rows = [], 0.0
    for number, example in enumerate(examples):
        item = example["item"]
        pixels = trainer.processing_class.image_processor([example["image"]], return_tensors="pt").pixel_values
        images.append(embed_pixels(pixels)[0])
        cosines = embed_captions(trainer.processing_class, item.candidates) @ images[-1]
        rows += divergence(-item.errors / 0.1, scale * cosines)
        for candidate, error in zip(item.candidates, item.errors, strict=True):
            scored.setdefault(candidate, []).append((number, error - item.errors.mean()))
    shared = {caption: entries for caption, entries in scored.items() if len(entries) > 1}
    columns = 0.0
    for caption, entries in shared.items():
        vector = embed_captions(trainer.processing_class, [caption])[0]
        cosines = [vector @ images[number] for number, _ in entries]
        columns += divergence([-error / 0.1 for _, error in entries], [scale * cosine for cosine in cosines])
    assert found["ranking_shared_captions"] == len(shared) > 1
    assert found["ranking"] == pytest.approx((rows + columns) / 2 / 4, rel=1e-4)


def test_hard_negatives_stand_among_the_captions_of_every_image(make_trainer, embed):
    trainer = make_trainer(lambda_rank=0.0, hard_negatives=True)
    examples = items_of(trainer)
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model.eval(), trainer.data_collator(examples)).item()
    embed_pixels, embed_captions, scale = embed
    pixels = trainer.processing_class.image_processor([e["image"] for e in examples], return_tensors="pt").pixel_values
    images = embed_pixels(pixels)
    negatives = [c for e in examples for c in e["item"].candidates if c != e["item"].caption]
    assert len(negatives) == 2 * BATCH
    captions = [example["caption"] for example in examples]
    texts = embed_captions(trainer.processing_class, captions + negatives)
    of_images = [-math.log(softmax(scale * texts @ images[i])[i]) for i in range(BATCH)]
    of_texts = [-math.log(softmax(scale * images @ texts[i])[i]) for i in range(BATCH)]
    assert loss == pytest.approx((np.mean(of_images) + np.mean(of_texts)) / 2, rel=1e-4)


def test_cosine_term_is_one_minus_the_mean_cosine_of_the_pairs(make_trainer, embed):
    trainer = make_trainer(lambda_rank=0.0, lambda_cosine=3.0)
    examples = items_of(trainer)
    with torch.no_grad():
        trainer.compute_loss(trainer.model.eval(), trainer.data_collator(examples))
    embed_pixels, embed_captions, _ = embed
    pixels = trainer.processing_class.image_processor([e["image"] for e in examples], return_tensors="pt").pixel_values
    texts = embed_captions(trainer.processing_class, [e["caption"] for e in examples])
    expected = 1 - (embed_pixels(pixels) * texts).sum(1).mean()
    assert trainer.take_notes("eval")["cosine"] == pytest.approx(expected, rel=1e-4)


def test_no_teacher_is_in_memory_and_the_terms_are_logged(make_trainer):
    trainer = make_trainer(max_steps=3, teacher="/nowhere/at/all")
    trainer.train()
    assert trainer.teacher is None and trainer.student.mapper is None
    rows = [row for row in trainer.state.log_history if "loss" in row]
    for row in rows:
        assert row["loss"] == pytest.approx(row["contrastive"] + row["ranking"], abs=2e-3)
        assert 0 <= row["ranking_agreement"] <= 1 and row["ranking_confident_items"] == 1


def test_training_on_the_term_alone_orders_the_candidates_as_the_teacher_does(make_trainer):
    trainer = make_trainer(max_steps=60, learning_rate=3e-3, lambda_rank=10.0, logging_steps=60)
    trainer.train()
    first, last = (make_trainer(learning_rate=0.0, max_steps=6, logging_steps=6), trainer)
    first.train()
    agreement = [
        next(row for row in reversed(one.state.log_history) if "loss" in row)["ranking_agreement"]
        for one in (first, last)
    ]
    scorer_items = [last.train_dataset[number]["item"] for number in range(24)]
    batch = last.data_collator([last.train_dataset[number] for number in range(24)])
    with torch.no_grad():
        last.compute_loss(last.model.eval(), batch)
    assert last.take_notes("eval")["ranking_agreement"] > 0.8 > agreement[0] + 0.2
    assert all(item.candidates[int(np.argmin(item.errors))] == item.caption for item in scorer_items)


def test_both_terms_together(make_trainer, teacher_folder, scores_folder, pairs, tmp_path):
    teacher = DiffusionTeacher.from_pretrained(teacher_folder)
    items = [tuple(row.values()) for row in CandidateScores.load(scores_folder).data]
    mark = {"name": "tiny", "fingerprint": fingerprint(teacher.denoiser)}
    folder = str(make_scores(tmp_path / "same", items, teacher=mark))
    trainer = make_trainer(ranking_scores=folder, teacher=teacher, lambda_sds=0.5, eval_dataset=pairs.select(range(8)))
    trainer.train()
    row = next(row for row in trainer.state.log_history if "loss" in row)
    assert row["loss"] == pytest.approx(row["contrastive"] + 0.5 * row["sds"] + row["ranking"], abs=2e-3)
    assert "eval_ranking" not in (found := trainer.evaluate()) and "eval_sds" in found  # unseen pictures have no scores


def test_resumed_run_ends_bit_identical_to_the_uninterrupted_one(make_trainer, tmp_path):
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 1, "ranking_candidates": 1}
    whole = make_trainer("whole", **options)
    whole.train()
    resumed = make_trainer("resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-5"))
    one, other = whole.student.state_dict(), resumed.student.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_streaming_reads_the_same_scores(make_trainer, pairs):
    trainer = make_trainer(data=pairs.to_iterable_dataset())
    trainer.train()
    assert all(row["ranking"] > 0 for row in trainer.state.log_history if "loss" in row)


def test_pictures_kept_in_memory_change_no_figure_of_a_run(make_trainer, scores_folder, pairs):
    runs = []
    for kept in (False, True):
        trainer = make_trainer(str(kept), ranking_scores=scores_folder, max_steps=8, keep_images_in_memory=kept)
        trainer.train()
        rows = [row for row in trainer.state.log_history if "loss" in row]
        runs.append([(row["loss"], row["ranking"], row["contrastive"]) for row in rows])
        assert bool(getattr(trainer.train_dataset, "_kept", None)) == kept
    assert runs[0] == runs[1] and len(runs[0]) == 8
    with pytest.raises(ValueError, match=r"keep_images_in_memory .*--streaming"):
        make_trainer(data=pairs.to_iterable_dataset(), lambda_rank=0.0, keep_images_in_memory=True)


def test_images_with_fewer_than_two_scored_candidates_count_as_images_and_for_nothing_else(tmp_path):
    """The mean is over all images; one candidate alone orders nothing, and neither agrees nor disagrees."""
    options = {"ranking_temperature": 0.1, "ranking_form": "divergence"}
    args = SDSCLIPConfig(output_dir=str(tmp_path), use_cpu=True, lambda_sds=0.0, **options)
    term = RankingTerm(SimpleNamespace(), args)
    torch.manual_seed(0)
    images = F.normalize(torch.randn(4, 5), dim=-1).requires_grad_()
    candidates = F.normalize(torch.randn(4, 3, 5), dim=-1)
    nan = math.nan
    errors = torch.tensor([[0.3, 0.1, 0.2], [0.2, 0.3, nan], [0.4, nan, nan], [nan] * 3])
    batch = {"candidate_errors": errors, "candidate_confidence": torch.ones(4)}
    found, figures = term(images, candidates, torch.tensor(7.0), batch, torch.zeros(4, 3, dtype=torch.long))
    expected, agreed = 0.0, 0
    for row, count in ((0, 3), (1, 2)):
        cosines = (images[row] @ candidates[row, :count].T).detach().double().numpy()
        wanted = np.exp(-errors[row, :count].double().numpy() / 0.1)
        wanted /= wanted.sum()
        got = np.exp(7 * cosines)
        expected += (wanted * np.log(wanted * got.sum() / got)).sum() / 4
        agreed += cosines.argmax() == wanted.argmax()
    assert found.item() == pytest.approx(expected, rel=1e-4)
    assert agreed < 2 and figures["ranking_agreement"].item() == pytest.approx(agreed / 2)
    found.backward()
    assert images.grad[:2].abs().sum() > 0 and not images.grad[2:].any()


TWO_PROCESSES = """
import sys
import torch
from datasets import load_from_disk
from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer
clip, data, scores, out, batch, options = sys.argv[1:]
torch.set_num_threads(1)
args = SDSCLIPConfig(output_dir=out + "-run", use_cpu=True, per_device_train_batch_size=int(batch), learning_rate=1e-3,
    max_steps=6, save_strategy="no", logging_steps=1, disable_tqdm=True, lambda_sds=0.0, ranking_scores=scores,
    trainable="full", optim="sgd", report_to="none", **eval(options))
trainer = SDSCLIPTrainer(model=clip, args=args, train_dataset=load_from_disk(data))
trainer.train()
if trainer.is_world_process_zero():
    torch.save(trainer.student.state_dict(), out)
"""


@pytest.mark.parametrize(
    "options",
    [
        {"lambda_rank": 1.0, "ranking_confidence": True, "hard_negatives": True},
        pytest.param({"lambda_rank": 1.0, "ranking_confidence": True}, marks=pytest.mark.slow),
        pytest.param({"hard_negatives": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_two_processes_end_with_the_weights_of_one(tmp_path, clip_folder, scores_folder, pairs, options):
    # One batch, whose rows are dealt out differently. The last shares its picture and a caption with the first, and others'
    # candidates are its captions.
    rows = [pairs[number] for number in (0, 1, 2, 3, 4, 5, 6, 0)]
    captions = [[row["caption"], *["a dog", "another"][: number % 3]] for number, row in enumerate(rows)]
    data = datasets.Dataset.from_dict({"image": [row["image"] for row in rows], "caption": captions})
    data.save_to_disk(tmp_path / "data")
    states = []
    for world in (1, 2):
        out = tmp_path / f"{world}.pt"
        words = [clip_folder, tmp_path / "data", scores_folder, out, 8 // world, repr(options)]
        launch(TWO_PROCESSES, *words, processes=world)
        states.append(torch.load(out, weights_only=True))
    start = CLIPModel.from_pretrained(clip_folder).state_dict()
    for name in states[0]:
        moved = (states[0][name] - start[name.removeprefix("clip.")]).abs().max()
        assert (states[0][name] - states[1][name]).abs().max() <= max(1e-6, 1e-2 * moved.item()), name


@pytest.mark.parametrize("options", [{"lambda_rank": 1.0}, {"lambda_rank": 0.0, "hard_negatives": True}], ids=str)
def test_terms_that_need_candidates_say_how_to_give_them(options):
    with pytest.raises(ValueError, match=r"no candidate captions; give --ranking_scores"):
        SDSCLIPConfig(output_dir="x", use_cpu=True, **options)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("ranking_temperature", 0.0),
        ("ranking_temperature", -1.0),
        ("ranking_temperature_share", 0.0),
        ("ranking_logit_scale", 0.0),
        ("ranking_form", "guess"),
        ("ranking_candidates", 0),
        ("lambda_rank", -1.0),
        ("lambda_cosine", -1.0),
        ("ranking_targets", "guess"),
    ],
)
def test_values_out_of_range_are_named(option, value):
    with pytest.raises(ValueError, match=f"{option} is {value!r}; it must be .*--{option}"):
        SDSCLIPConfig(output_dir="x", use_cpu=True, **{option: value})


def test_batches_without_candidates_are_refused_in_training(make_trainer, pairs):
    trainer = make_trainer(data=ImageCaptionDataset(pairs))
    with pytest.raises(ValueError, match="the batch has no candidates, which lambda_rank"):
        trainer.train()


def test_a_candidate_that_is_cut_to_the_caption_itself_is_no_negative(make_trainer, pairs, tmp_path):
    long = " ".join(["red", "cat", "on", "a", "blue", "mat"] * 4)
    digest, other = picture_digest(pairs[0]["image"]), picture_digest(pairs[1]["image"])
    items = [
        (digest, long + " dog", [long + " dog", long + " chair", "a dog"], [[0.1, 0.1], [0.2, 0.2], [0.3, 0.3]]),
        (other, "a mat", ["a mat", "a cat"], [[0.1, 0.1], [0.2, 0.2]]),
    ]
    data = pairs.select([0, 1]).remove_columns("caption").add_column("caption", [items[0][1], items[1][1]])
    folder = str(make_scores(tmp_path / "long", items))
    trainer = make_trainer(
        data=data, ranking_scores=folder, lambda_rank=0.0, hard_negatives=True, per_device_train_batch_size=2
    )
    batch = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])
    _, pairs = trainer.encode(trainer.model, batch)
    assert pairs.is_negative.tolist() == [[False, False, True], [False, True, False]]


def test_gradient_of_the_symmetric_form_equals_finite_differences():
    torch.manual_seed(0)
    vectors = torch.randn(4, 5, dtype=torch.float64)  # of four distinct captions
    images = F.normalize(torch.randn(3, 5, dtype=torch.float64), dim=-1)
    identities = torch.tensor([[0, 1, 2], [1, 0, 3], [2, 3, 0]])
    batch = {"candidate_errors": torch.rand(3, 3), "candidate_confidence": torch.ones(3)}
    args = SDSCLIPConfig(
        output_dir="x",
        use_cpu=True,
        lambda_rank=1.0,
        ranking_scores="x",
        ranking_temperature=0.3,
        ranking_symmetric=True,
    )
    term = RankingTerm(None, args)

    def loss(vectors):
        return term(images, vectors[identities], torch.tensor(3.0), batch, identities)[0]

    leaf = vectors.clone().requires_grad_(True)
    loss(leaf).backward()
    for place in [(0, 0), (1, 3), (2, 2), (3, 4)]:
        step = torch.zeros_like(vectors)
        step[place] = 1e-2  # the divergence itself is in float32
        slope = (loss(vectors + step) - loss(vectors - step)).item() / 2e-2
        assert leaf.grad[place].item() == pytest.approx(slope, rel=2e-2, abs=2e-3)
