"""A rehearsed step against one that the trainer makes: operations by torch's counter, memory by its profiler."""

import json
from pathlib import Path

import pytest
from operations import operations
from torch.profiler import ProfilerActivity, profile

from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer
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
QUICK = {"the paper's", "stop-gradient", "GradCache", "latents of half the size"}


@pytest.fixture
def make_run(tmp_path, pairs):
    """A trainer, and the plan of one of its steps with captions as long as its own."""

    data = pairs.remove_columns("caption").add_column("caption", ["a red cat on a blue mat"] * len(pairs))

    def make(**options):
        settings = {"output_dir": str(tmp_path / "run"), "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
        settings |= {"per_device_train_batch_size": 8, "health_steps": 0, "report_to": "none", "max_steps": 2}
        config = SDSCLIPConfig(**(settings | options))
        trainer = SDSCLIPTrainer(args=config, train_dataset=data, **MODELS)
        tokens = next(iter(trainer.get_train_dataloader()))["input_ids"].shape[1]
        return trainer, rehearse(MODELS["model"], MODELS["teacher"], config, tokens)

    return make


def peak(trainer: SDSCLIPTrainer, path: Path) -> int:
    """The most bytes that the run had from the CPU's allocator beyond those it began with."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.train()
    profiler.export_chrome_trace(str(path))
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event["name"] == "[memory]"]
    told = [event["args"] for event in sorted(events, key=lambda event: event["ts"])]
    taken = [one for one in told if one["Bytes"] > 0]
    before = taken[0]["Total Allocated"] - taken[0]["Bytes"]
    return max(one["Total Allocated"] for one in taken) - before


@pytest.mark.parametrize(
    "options", [pytest.param(RUNS[name], id=name, marks=[] if name in QUICK else pytest.mark.slow) for name in RUNS]
)
def test_operations_and_memory_are_those_of_real_steps(make_run, tmp_path, options):
    trainer, cost = make_run(**options)
    beyond_weights = sum(size for phase, size in cost.memory.items() if phase.stage != WEIGHTS)
    assert beyond_weights == pytest.approx(peak(trainer, tmp_path / "trace.json"), rel=0.05)
    assert sum(cost.flops.values()) == pytest.approx(operations(trainer), rel=0.01)
