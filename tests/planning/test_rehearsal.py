"""A rehearsed step against one that the trainer makes: operations by torch's counter, memory by its profiler."""

import pytest
import tiny_pipelines
from memory import peak
from operations import operations

from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer
from sdsclip_hf.planning import rehearsal
from sdsclip_hf.planning.rehearsal import CHECKPOINTING, WEIGHTS, rehearse

pytestmark = pytest.mark.filterwarnings("ignore")
MODELS = {"model": "shapes/student", "teacher": "shapes/teacher"}
RUNS = {
    "the paper's": {},
    "stop-gradient": {"sds_gradient": "stop_gradient"},
    "health": {"health_steps": 1},
    "full, AdamW in a loop": {"trainable": "full", "optim": "adamw_torch"},
    "full, momentum": {"trainable": "full", "optim": "sgd", "optim_args": "momentum=0.9"},
    "lora": {"trainable": "lora", "lora_r": 4},
    "image tower alone": {"trainable": "full", "train_text": False},
    "activations computed again": {"trainable": "full", CHECKPOINTING: True},
    "of a tower that is frozen": {"trainable": "full", "train_text": False, CHECKPOINTING: True},
    "accumulated": {"gradient_accumulation_steps": 3, "trainable": "full", "per_device_train_batch_size": 4},
    "GradCache": {"contrastive_batch_size": 12, "per_device_train_batch_size": 4},
    "GradCache, accumulated": {
        "contrastive_batch_size": 12,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
    },
    "bfloat16": {"bf16": True, "teacher_dtype": "bfloat16"},
    "latents of half the size": {"latent_size": 4},
    "contrastive": {"lambda_sds": 0.0, "trainable": "full"},
    "contrastive in chunks": {"lambda_sds": 0.0, "contrastive_chunk_size": 3},
}
QUICK = {"stop-gradient"}


@pytest.fixture
def make_run(tmp_path, pairs, monkeypatch):
    """A trainer, and the plan of one of its steps with captions as long as its own."""

    data = pairs.remove_columns("caption").add_column("caption", ["a red cat on a blue mat"] * len(pairs))

    def make(teacher=MODELS["teacher"], **options):
        settings = {"output_dir": str(tmp_path / "run"), "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
        settings |= {"per_device_train_batch_size": 8, "health_steps": 0, "report_to": "none", "max_steps": 2}
        config = SDSCLIPConfig(**(settings | options))
        trainer = SDSCLIPTrainer(args=config, train_dataset=data, model=MODELS["model"], teacher=teacher)
        batch = next(iter(trainer.get_train_dataloader()))
        mask = trainer.teacher and trainer.teacher.family.mask
        if mask and f"prompts.{mask}" in batch:
            monkeypatch.setattr(rehearsal, "CAPTION_WORDS", batch[f"prompts.{mask}"].shape[1])
        cost = rehearse(MODELS["model"], str(teacher), config, batch["input_ids"].shape[1])
        # accelerate reads a batch ahead, which waits on the CPU, here where all is
        return trainer, cost, sum(value.nbytes for value in batch.values())

    return make


@pytest.mark.parametrize(
    "options", [pytest.param(RUNS[name], id=name, marks=[] if name in QUICK else pytest.mark.slow) for name in RUNS]
)
def test_operations_and_memory_are_those_of_real_steps(make_run, tmp_path, options):
    trainer, cost, waiting = make_run(**options)
    beyond_weights = sum(size for phase, size in cost.memory.items() if phase.stage != WEIGHTS)
    assert beyond_weights + waiting == pytest.approx(peak(trainer.train, tmp_path / "trace.json"), rel=0.05)
    assert sum(cost.flops.values()) == pytest.approx(operations(trainer), rel=0.01)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "stable_diffusion_3" else pytest.mark.slow)
        for name in tiny_pipelines.MAKERS
    ],
)
def test_they_are_with_a_teacher_of_any_family(make_run, tmp_path, name):
    folder = tiny_pipelines.save(name, tmp_path / "teacher")
    options = {"sds_gradient": "full", "latent_size": 8, "prompt_cache_dir": str(tmp_path / "prompts")}
    trainer, cost, waiting = make_run(folder, **options)
    beyond_weights = sum(size for phase, size in cost.memory.items() if phase.stage != WEIGHTS)
    assert beyond_weights + waiting == pytest.approx(peak(trainer.train, tmp_path / "trace.json"), rel=0.05)
    assert sum(cost.flops.values()) == pytest.approx(operations(trainer), rel=0.01)
