"""Processes that were given different things are told so, all of them."""

import json

import pytest
import torch
from conftest import make_pipeline
from launching import launch

from sdsclip_hf.common.processes import check_agreement

TRAINERS = """
import json, os, sys
import datasets
from peft import LoraConfig
from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer
clip, teacher, other_teacher, data, out = sys.argv[1:]
second = os.environ["RANK"] == "1"
data, found = datasets.load_from_disk(data), {}

def told(case, teacher=teacher, train=data, adapter=None, **options):
    settings = {"output_dir": out + os.environ["RANK"], "max_steps": 2, "per_device_train_batch_size": 4}
    try:
        SDSCLIPTrainer(clip, SDSCLIPConfig(**settings, **options), teacher, train_dataset=train, peft_config=adapter)
        found[case] = None
    except ValueError as error:
        found[case] = str(error)

told("nothing", log_level="error" if second else "warning")
told("adapter", trainable="lora", adapter=LoraConfig(target_modules=["q_proj", "k_proj", "v_proj", "out_proj", "fc1"]))
told("folder", prompt_cache_dir=out + "prompts" if second else None)
told("options", learning_rate=2e-3 if second else 1e-3, lambda_sds=0.5 if second else 1.0)
told("terms", lambda_sds=0.0 if second else 1.0)
told("teacher", teacher=other_teacher if second else teacher)
told("rows", train=data.select(range(20)) if second else data)
told("kind", train=data.to_iterable_dataset() if second else data)
print(json.dumps(found))
"""


def test_every_process_names_what_differs_and_where(tmp_path, clip_folder, teacher_folder, pairs):
    pairs.save_to_disk(tmp_path / "data")
    torch.manual_seed(5)
    make_pipeline().save_pretrained(tmp_path / "other")
    words = clip_folder, teacher_folder, tmp_path / "other", tmp_path / "data", tmp_path / "run"
    printed = launch(TRAINERS, *words)
    found, of_second = (json.loads(text.splitlines()[-1]) for text in printed)
    assert found == of_second
    assert found["nothing"] is None and found["adapter"] is None
    assert "prompt_cache_dir is None on rank 0, " in found["folder"]
    assert "learning_rate is 0.001 on rank 0, 0.002 on rank 1; " in found["options"]
    assert "lambda_sds is 1.0 on rank 0, 0.5 on rank 1. Launch all of them" in found["options"]
    assert found["options"].count(" on rank 0") == 2
    assert "lambda_sds is 1.0 on rank 0, 0.0 on rank 1. Launch all of them" in found["terms"]
    assert "different options: teacher_fingerprint is " in found["teacher"]
    assert "different data: train_dataset is 24 on rank 0, 20 on rank 1. Give every process" in found["rows"]
    assert "train_dataset is 24 on rank 0, None on rank 1" in found["kind"]


def test_one_process_agrees_with_itself():
    check_agreement({"learning_rate": 1.0}, {"train_dataset": 3})


def test_ranks_of_the_same_value_are_named_together(monkeypatch):
    def of_four(everyone, own):
        everyone[:] = [({"seed": str(seed)}, {}) for seed in (1, 2, 1, 1)]

    for name, value in {"is_initialized": True, "get_world_size": 4}.items():
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    monkeypatch.setattr(torch.distributed, "all_gather_object", of_four)
    with pytest.raises(ValueError, match="seed is 1 on rank 0 and 2 and 3, 2 on rank 1"):
        check_agreement({"seed": 1}, {})
