"""Runs killed at random moments, once or several times, and gone on with: they end as one that nobody killed."""

import json
import os
import shutil
import time
from functools import cache
from pathlib import Path

import numpy as np
from forking import Forked
from launching import processes_env
from safetensors.torch import load_file

from sweeps import world

CODE = "import sys; from sdsclip_hf.commands.finetune import main; main(sys.argv[1:])"
EVERY = {
    **{"model_name_or_path": "{clip}", "dataset_name": "{pairs}", "trainable": "full", "use_cpu": "True"},
    **{"max_steps": "6", "save_strategy": "steps", "save_steps": "2", "save_total_limit": "2", "learning_rate": "1e-2"},
    **{"per_device_train_batch_size": "4", "test_benchmarks": "shapes:validation", "disable_tqdm": "True"},
    "health_steps": "0",
}
SDS, NOT_SDS = {"teacher_name_or_path": "{teacher}", "lambda_sds": "0.5"}, {"lambda_sds": "0"}
FORMS = {
    "L_SDS": SDS | {"mapper_warmup_steps": "2"},
    "L_rank": NOT_SDS | {"lambda_rank": "1", "ranking_scores": "{scores}"},
    "LoRA": SDS | {"trainable": "lora", "lora_dropout": "0.4"},
    "streaming": NOT_SDS | {"dataset_name": "{shards}", "streaming": "True", "shuffle_buffer_size": "9"},
    "GradCache": SDS | {"contrastive_batch_size": "8"},
    "accumulation": SDS | {"gradient_accumulation_steps": "2"},
    "comparison runs": NOT_SDS | {"compare": "{{other: {{learning_rate: 0.001}}, third: {{seed: 5}}}}"},
    "two processes": SDS,
}
OF_THE_CLOCK = {"README.md", "results.md", "trainer_state.json", "sdsclip_run.json", "run.yaml"}


def command(form: str, folder: Path) -> list[str]:
    world.pairs()
    places = {"clip": world.clip(), "teacher": world.teacher(), "scores": world.scores()}
    places |= {"pairs": world.root() / "pairs", "shards": world.root() / "shards"}
    options = EVERY | FORMS[form] | {"output_dir": str(folder)}
    return [word for name, value in options.items() for word in (f"--{name}", value.format(**places))]


def start(form: str, folder: Path, *more: str) -> list[Forked]:
    words = [*command(form, folder), *more]
    if form != "two processes":
        return [Forked(CODE, *words)]
    return [Forked(CODE, *words, env=os.environ | own) for own in processes_env(2)]


def end(processes: list[Forked]) -> None:
    for done in [process.finish(300) for process in processes]:
        assert done.returncode == 0, done.stderr[-2000:]


@cache
def unkilled(form: str) -> tuple[Path, float]:
    """The folder of a run that nobody kills, and how long it takes."""
    folder, began = world.root() / f"whole {form}", time.monotonic()
    end(start(form, folder))
    return folder, time.monotonic() - began


def content(path: Path):
    """What must be the same in a file: its bytes, or what does not tell of time and of what was typed."""
    if path.name == "results.json":
        results = json.loads(path.read_text())
        return {
            name: results[name] for name in ("before", "after", "compared", "steps", "captions_cut", "captions_empty")
        }
    if path.name == "compared.json":
        return {name: run.get("after", run) for name, run in json.loads(path.read_text()).items()}
    if path.suffix == ".safetensors":
        return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}
    return None if path.name in OF_THE_CLOCK or path.suffix in (".pt", ".pth", ".bin", ".png") else path.read_bytes()


def contents(folder: Path) -> dict:
    return {str(path.relative_to(folder)): content(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def of(form: str):
    """The trial of one form."""
    return lambda rng, folder: trial(form, rng, folder)


def trial(form: str, rng: np.random.Generator, folder: Path) -> str:
    whole, seconds = unkilled(form)
    run, more, kills = folder / "run", [], 0
    while kills == 0 or rng.random() < 0.3:
        processes = start(form, run, *more)
        time.sleep(float(rng.uniform(0, seconds)))
        for process in processes:
            process.kill()
        codes = [process.finish(60).returncode for process in processes]
        if all(code == 0 for code in codes):
            break
        kills, more = kills + 1, ["--resume_from_checkpoint", "last"]
    if kills:
        end(start(form, run, *more))
    expected, found = contents(whole), contents(run)
    assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())
    differing = [name for name in expected if found[name] != expected[name]]
    assert not differing, differing
    shutil.rmtree(run)
    return f"killed {min(kills, 2)}{'' if kills < 2 else ' or more'} times" if kills else "ended before"
