"""What several GPUs will do, as it is computed: the bytes are those that processes hand to one another."""

import json
import sys
from pathlib import Path

import pytest
from launching import launch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import many_gpus

COUNTING = """
import json, sys
from collections import Counter
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer
from sdsclip_hf.shapes import load_shapes

folder, *terms = sys.argv[1:]
given = {"contrastive": {"lambda_sds": 0.0}, "sds": {"sds_gradient": "stop_gradient"}}
given["ranking"] = {"lambda_sds": 0.0, "lambda_rank": 1.0, "ranking_scores": "shapes/scores"}
sent = Counter()

def counting(name, of):
    plain = getattr(dist, name)
    def counted(*args, **kwargs):
        sent["keys" if not args[of].is_floating_point() else "embeddings"] += args[of].nbytes
        return plain(*args, **kwargs)
    setattr(dist, name, counted)

def of_gradients(state, bucket):
    sent["gradients"] += bucket.buffer().nbytes
    return allreduce_hook(state, bucket)

found = {}
for term in terms:
    config = SDSCLIPConfig(output_dir=folder, use_cpu=True, per_device_train_batch_size=4, max_steps=9, health_steps=0,
                           report_to="none", **given[term])
    teacher = "shapes/teacher" if term == "sds" else None
    trainer = SDSCLIPTrainer("shapes/student", config, teacher, load_shapes("train"))
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    model = trainer.accelerator.prepare(trainer.model)
    model.register_comm_hook(None, of_gradients)
    if not found:
        counting("all_gather", 1), counting("all_gather_into_tensor", 1)
    trainer.training_step(model, batch)  # the first also settles DDP's buckets
    sent.clear()
    trainer.training_step(model, batch)
    trained = sum(weight.numel() for weight in trainer.student.parameters() if weight.requires_grad)
    width, captions = trainer.student.config.projection_dim, batch["caption_keys"].shape[1]
    found[term] = dict(sent) | {"trained": trained, "width": width, "captions": captions}
print("FOUND" + json.dumps(found))
"""


@pytest.mark.slow
def test_eight_processes_hand_over_what_is_computed(tmp_path):
    printed = launch(COUNTING, str(tmp_path), "contrastive", "sds", "ranking", processes=8)
    (of_first, *others) = [json.loads(text.partition("FOUND")[2].splitlines()[0]) for text in printed]
    assert all(other == of_first for other in others)
    for found in of_first.values():
        told = many_gpus.sent_bytes(found["trained"], 4, found["width"], 8, found["captions"])
        assert told["gradients"] == 2 * 7 / 8 * found["gradients"]
        assert told["embeddings"] == 2 * 7 * found["embeddings"]  # there, and their gradients back
        assert told["keys"] == 7 * found["keys"]


def test_what_is_lost_grows_with_the_bytes_and_falls_with_the_links_speed(tmp_path, capsys):
    point = {"seconds": 0.3, "pairs": 100, "images/s": 333.3, "trained": 10**8, "width": 512}
    # 8 GPUs: 700 MB of gradients, 5,734,400 bytes of embeddings and 11,200 of keys
    assert sum(many_gpus.sent_bytes(10**8, 100, 512, 8).values()) == 700_000_000 + 5_734_400 + 11_200
    found = many_gpus.projected(point, 8, within=1e10, between=1e9)
    assert found["images/s at worst"] == pytest.approx(800 / (0.3 + 0.07057456))
    assert found["images/s at best"] == pytest.approx(800 / (0.3 + 0.00057456))  # within the backward pass of 0.2 s
    slow = many_gpus.projected(point, 64, within=1e10, between=1e9)
    assert slow["images/s at best"] == pytest.approx(6400 / (0.3 + (787.5e6 + 51_609_600 + 100_800) / 1.25e8 - 0.2))
    results = {"machine": {"device": "a card", "rehearsed": False}, "rows": {"training/x": [point], "scoring/y": []}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    many_gpus.main(["--results", str(tmp_path / "results.json"), "--gb_per_second", "10", "--between_nodes", "1"])
    assert "| training/x | 8 | 705.7 | 2159 | 2662 | 19.0% |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        many_gpus.main(["--results", str(tmp_path / "no.json"), "--gb_per_second", "10", "--between_nodes", "1"])
    assert "python benchmarks/gpu.py" in capsys.readouterr().err
