"""Students of other kinds than CLIP through the whole trainer: their losses, mini-batches, processes, resuming, exports."""

import datasets
import pytest
import torch
from dual_encoders import STUDENTS, make_dual_encoder
from launching import launch
from operations import operations
from peft import PeftModel
from trainers import assert_same, assert_same_weights, first_batch, one_step, tiny_trainer, weights
from transformers import AutoModel

from sdsclip_hf import SDSCLIPConfig
from sdsclip_hf.planning.rehearsal import rehearse
from sdsclip_hf.students.dual_encoder import load_dual_encoder

pytestmark = pytest.mark.filterwarnings("ignore")
FEW = ("siglip", "siglip2", "altclip")  # a sigmoid, several tensors a picture, other names of layers


def others_slow(quick: tuple[str, ...]) -> list:
    """All kinds but CLIP, of which all other tests are."""
    return [
        kind if kind in quick else pytest.param(kind, marks=pytest.mark.slow) for kind in STUDENTS if kind != "clip"
    ]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    made = {}

    def folder(kind: str) -> str:
        if kind not in made:
            torch.manual_seed(3)
            made[kind] = str(tmp_path_factory.mktemp(kind))
            for part in make_dual_encoder(kind):
                part.save_pretrained(made[kind])
        return made[kind]

    return folder


@pytest.fixture
def make(folder_of, make_trainer, scores_folder):
    """A trainer of two steps of all terms."""

    def trainer(kind, folder="run", **options):
        terms = {"lambda_sds": 0.5, "lambda_rank": 0.5, "ranking_scores": scores_folder, "health_steps": 0}
        return make_trainer(folder, model=folder_of(kind), **(terms | options))

    return trainer


@pytest.mark.parametrize("kind", others_slow(FEW))
def test_a_run_trains_resumes_exports_and_is_evaluated(make, folder_of, kind, tmp_path):
    options = {"trainable": "lora", "save_strategy": "steps", "save_steps": 1, "benchmarks": ["shapes:validation"]}
    options |= {"keep_images_in_memory": kind == "siglip2", "wise_ft_alpha": 0.9}
    trainer = make(kind, **options)
    start = {name: weight.clone() for name, weight in trainer.student.clip.named_parameters()}
    trainer.train()
    moved = [name for name, weight in trainer.student.clip.named_parameters() if not torch.equal(weight, start[name])]
    assert {name.split(".")[2] for name in moved} >= {"text_model"} and all("lora_" in name for name in moved)
    trainer.save_model(str(tmp_path / "export"))
    exported, told = AutoModel.from_pretrained(tmp_path / "export", output_loading_info=True)
    assert type(exported) is type(trainer.student.base_clip) and not any(told.values())
    encoder = load_dual_encoder(tmp_path / "export")
    captions = ["a Red cat", "dog"]
    with torch.no_grad():
        own = trainer.student.eval().encode_texts(**trainer.reader(captions))
    torch.testing.assert_close(encoder.embed_tokens(encoder.tokenize(captions)), own, rtol=0, atol=1e-5)
    base = AutoModel.from_pretrained(folder_of(kind))
    encoder.model = PeftModel.from_pretrained(base, tmp_path / "export", subfolder="adapter").merge_and_unload().eval()
    torch.testing.assert_close(encoder.embed_tokens(encoder.tokenize(captions)), own, rtol=0, atol=1e-5)
    card = (tmp_path / "export" / "README.md").read_text()
    assert f"`{type(exported).__name__}`" in card and "from transformers import AutoModel, AutoProcessor" in card
    resumed = make(kind, "again", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert_same_weights(trainer, resumed)


@pytest.mark.parametrize("kind", FEW)
def test_gradients_by_mini_batches_are_those_of_the_whole_batch(make, kind):
    options = {"trainable": "full", "train_logit_scale": True, "hard_negatives": True, "contrastive_chunk_size": 5}
    loss, expected = one_step(make(kind, per_device_train_batch_size=12, **options))
    cached_loss, found = one_step(make(kind, per_device_train_batch_size=4, contrastive_batch_size=12, **options))
    assert cached_loss == pytest.approx(loss, rel=1e-5)
    assert_same(found, expected, 5e-5)
    assert ("clip.logit_bias" in found) == kind.startswith("siglip")


@pytest.mark.parametrize("kind", [kind for kind in STUDENTS if kind != "aimv2"])
def test_the_trainer_s_loss_is_the_model_s_own(make, kind):
    trainer = make(kind, lambda_sds=0.0, lambda_rank=0.0, ranking_scores=None, mask_duplicates=False)
    batch = first_batch(trainer)
    names = (*trainer.student.image_inputs, "input_ids", *([] if kind.startswith("siglip") else ["attention_mask"]))
    model = trainer.student.base_clip
    with torch.no_grad():
        expected = model(**{name: batch[name] for name in names if name in batch}, return_loss=True).loss
        assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected.item(), rel=1e-5)
    if kind.startswith("siglip"):
        assert batch["input_ids"].shape[1] == 12, "SigLIP's captions are padded to the full length"


def test_the_form_of_the_loss_is_chosen_or_refused(make, tmp_path):
    trainer = make("siglip", contrastive_form="softmax", train_logit_scale=True, lambda_sds=0.0, lambda_rank=0.0)
    assert trainer.contrastive.form == "softmax"
    assert not trainer.student.base_clip.logit_bias.requires_grad  # it would have no gradient
    batch = first_batch(trainer)
    with torch.no_grad():
        output, pairs = trainer.encode(trainer.model, batch)
        logits = output.logit_scale * pairs.images @ pairs.captions.T
        labels = torch.arange(len(logits))
        expected = (torch.nn.functional.cross_entropy(one, labels) for one in (logits, logits.T))
        assert trainer.contrastive_term(pairs).item() == pytest.approx(sum(expected).item() / 2, rel=1e-5)
    with pytest.raises(ValueError, match=r"which a AltCLIPModel has not; leave --contrastive_form out"):
        make("altclip", contrastive_form="sigmoid")
    with pytest.raises(ValueError, match=r"contrastive_form is 'hinge'; it must be one of auto, softmax, sigmoid"):
        SDSCLIPConfig(output_dir=str(tmp_path), contrastive_form="hinge")


@pytest.mark.parametrize("kind", others_slow(FEW))
def test_a_compiled_student_learns_the_same(make, kind):
    found = []
    for options in ({}, {"torch_compile_backend": "eager"}):
        torch._dynamo.reset()
        trainer = make(kind, trainable="full", optim="sgd", **options)
        for layer in trainer.student.modules():  # what they drop hangs on padding, of which a compiled student has more
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0.0
            elif hasattr(layer, "attention_dropout"):
                layer.attention_dropout = 0.0
        trainer.train()
        assert trainer.student.is_compiled == bool(options)
        found.append(weights(trainer))
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, rtol=1e-4, atol=1e-6)


PROCESSES = """
import json, sys
import datasets, torch
from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer
model, data, out = sys.argv[1:]
args = SDSCLIPConfig(out, lambda_sds=0.0, use_cpu=True, per_device_train_batch_size=4, mask_duplicates=False, max_steps=1,
    train_logit_scale=True, trainable="full", disable_tqdm=True, report_to="none", contrastive_chunk_size=3)
trainer = SDSCLIPTrainer(model, args, train_dataset=datasets.load_from_disk(data))
loader = trainer.get_train_dataloader()
trainer.model = trainer.accelerator.prepare(trainer.model).train()
rank = args.process_index
rows = [trainer.train_dataset[number] for number in range(4 * rank, 4 * rank + 4)]
loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
trainer.accelerator.backward(loss)
loss = trainer.accelerator.gather(loss.detach()[None]).mean().item()
found = {name: weight.grad for name, weight in trainer.student.named_parameters() if weight.grad is not None}
if rank == 0:
    torch.save((loss, found), out + ".pt")
"""


def test_two_processes_have_the_loss_and_gradient_of_the_model_s_own_over_both(tmp_path, folder_of, pairs):
    pairs.select(range(8)).save_to_disk(tmp_path / "data")
    folder = folder_of("siglip")
    launch(PROCESSES, folder, tmp_path / "data", tmp_path / "two")
    loss, found = torch.load(tmp_path / "two.pt", weights_only=True)
    options = {"trainable": "full", "train_logit_scale": True, "lambda_sds": 0.0, "per_device_train_batch_size": 8}
    data = datasets.load_from_disk(str(tmp_path / "data"))
    trainer = tiny_trainer(tmp_path / "one", folder, None, data, **options)
    batch = trainer.data_collator([trainer.train_dataset[number] for number in range(8)])
    model = trainer.student.base_clip.train()
    expected = model(pixel_values=batch["pixel_values"], input_ids=batch["input_ids"], return_loss=True).loss
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    whole = {f"clip.{name}": weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert_same(found, whole, 1e-4)
    assert {"clip.logit_scale", "clip.logit_bias"} <= set(found)


@pytest.mark.parametrize("kind", others_slow(FEW[1:]))
def test_a_plan_of_its_step_counts_what_the_step_computes(make, folder_of, kind, pairs):
    data = pairs.remove_columns("caption").add_column("caption", ["a red cat on a blue mat"] * len(pairs))
    terms = {"lambda_sds": 0.0, "lambda_rank": 0.0, "ranking_scores": None}
    trainer = make(kind, trainable="full", mask_duplicates=False, data=data, **terms)
    tokens = first_batch(trainer)["input_ids"].shape[1]
    cost = rehearse(folder_of(kind), None, trainer.args, tokens)
    assert cost.weights == {"student": sum(weight.numel() for weight in trainer.student.parameters())}
    assert sum(cost.flops.values()) == pytest.approx(operations(trainer), rel=0.01)
