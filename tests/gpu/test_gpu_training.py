"""Training on a GPU: what the CPU computes, in the memory that is planned, and without a wait in its steps."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from trainers import first_batch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from gpu_speed.models import SIZES, Bench, training_step
from gpu_speed.rows import planned_bytes
from gpu_speed.timing import peak_bytes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.filterwarnings("ignore"),
]
IN_FLOAT32 = {"precision": "as_given", "teacher_dtype": "float32"}
CONTRASTIVE = {"lambda_sds": 0.0, "trainable": "full"}
RANKED = CONTRASTIVE | {"lambda_rank": 1.0, "ranking_symmetric": True}
FORMS = {
    "contrastive": CONTRASTIVE,
    "GradCache": CONTRASTIVE | {"per_device_train_batch_size": 2, "contrastive_batch_size": 4},
    "L_SDS": {"sds_gradient": "full", "distill_fraction": 0.5},
    "L_SDS, stop-gradient": {"sds_gradient": "stop_gradient"},
    "L_rank": RANKED,
    "hard negatives": RANKED | {"ranking_symmetric": False, "ranking_targets": "labels", "hard_negatives": True},
}


@pytest.fixture
def exact(monkeypatch):
    """Convolutions in float32, too, which a GPU otherwise rounds to TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def ready(make_trainer, scores_folder, tmp_path):
    """Makes trainers that are ready for steps, and a batch of each."""

    def make(folder, use_cpu=False, **options):
        ranked = {"ranking_scores": str(scores_folder)} if options.get("lambda_rank") else {}
        cached = {} if options.get("lambda_sds") == 0 else {"prompt_cache_dir": str(tmp_path / "prompts")}
        trainer = make_trainer(folder, use_cpu=use_cpu, health_steps=0, **ranked, **cached, **options)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        trainer.model = trainer.accelerator.prepare(trainer.model)
        trainer.create_optimizer_and_scheduler(10)
        trainer.optimizer = trainer.accelerator.prepare(trainer.optimizer)
        return trainer, first_batch(trainer)

    return make


def loss_and_gradient(trainer, batch) -> tuple[float, torch.Tensor]:
    loss = trainer.training_step(trainer.model, batch)
    found = [weight.grad.flatten().cpu() for weight in trainer.student.parameters() if weight.grad is not None]
    return loss.item(), torch.cat(found)


@pytest.mark.parametrize("form", FORMS)
def test_losses_and_gradients_are_those_of_the_cpu(ready, exact, form):
    expected, gradient = loss_and_gradient(*ready("cpu", use_cpu=True, **FORMS[form]))
    loss, found = loss_and_gradient(*ready("gpu", **IN_FLOAT32, **FORMS[form]))
    assert loss == pytest.approx(expected, rel=1e-4)
    assert (found - gradient).abs().max() < 1e-3 * gradient.abs().max()


@pytest.mark.parametrize("form", ["contrastive", "L_SDS"])
def test_in_half_precision_they_are_near(ready, form):
    expected, gradient = loss_and_gradient(*ready("cpu", use_cpu=True, **FORMS[form]))
    trainer, batch = ready("gpu", **FORMS[form])
    assert trainer.args.bf16 or trainer.args.fp16
    loss, found = loss_and_gradient(trainer, batch)
    found = found / (trainer.accelerator.scaler.get_scale() if trainer.accelerator.scaler else 1)
    assert loss == pytest.approx(expected, rel=0.02)
    assert torch.cosine_similarity(found, gradient, dim=0) > 0.98


@pytest.mark.parametrize("form", FORMS)
def test_a_step_waits_for_nothing(ready, form):
    trainer, batch = ready("gpu", precision="as_given", **FORMS[form])
    training_step(trainer, batch)  # the first looks whether GradCache can be replayed
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            training_step(trainer, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_compiled_teacher_gives_the_loss_of_a_plain_one(ready, exact):
    stopped = FORMS["L_SDS, stop-gradient"] | IN_FLOAT32
    expected, gradient = loss_and_gradient(*ready("plain", **stopped))
    loss, found = loss_and_gradient(*ready("compiled", teacher_compile=True, **stopped))
    assert loss == pytest.approx(expected, rel=1e-4)
    assert (found - gradient).abs().max() < 1e-3 * gradient.abs().max()


@pytest.mark.parametrize(
    ("form", "mode"),
    [(form, "default") for form in ("contrastive", "GradCache", "L_SDS, stop-gradient", "L_rank")]
    + [(form, "reduce-overhead") for form in ("contrastive", "L_SDS, stop-gradient", "L_rank")],  # by CUDA graphs
)
def test_a_compiled_student_gives_the_losses_of_a_plain_one(ready, exact, form, mode):
    expected, gradient = loss_and_gradient(*ready("plain", **FORMS[form] | IN_FLOAT32))
    compiled = {"torch_compile": True, "torch_compile_mode": mode, "tf32": False}
    loss, found = loss_and_gradient(*ready("compiled", **compiled, **FORMS[form] | IN_FLOAT32))
    assert loss == pytest.approx(expected, rel=1e-4)
    assert (found - gradient).abs().max() < 1e-3 * gradient.abs().max()


@pytest.mark.parametrize("with_teacher", [False, True])
def test_a_step_holds_the_memory_that_is_planned(tmp_path, with_teacher):
    bench = Bench(torch.device("cuda", 0), SIZES["real"], tmp_path, torch.float32, rate=1.0)
    teacher = bench.teacher(latent_size=32) if with_teacher else None
    trainer = bench.trainer(bench.student("ViT-B/32"), teacher, precision="as_given")
    pairs = 8 if with_teacher else 64
    step = partial(training_step, trainer, bench.batch(trainer, pairs))
    step()  # makes the optimiser's state
    assert peak_bytes(step, bench.device) == pytest.approx(planned_bytes(bench, trainer, pairs), rel=0.1)
