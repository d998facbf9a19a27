"""Which checkpoint is the last, and what tells one model from another."""

import json

import torch

from sdsclip_hf.common.checkpoints import RUN_FILE, fingerprint, last_checkpoint


def test_last_checkpoint_compares_steps_as_numbers(tmp_path):
    for step in (9, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    mark = json.dumps(
        {"base_fingerprint": "0", "teacher_fingerprint": None, "settings": {}}
    )  # before they were numbered
    for name in (9, 10, "best"):
        (tmp_path / f"checkpoint-{name}" / RUN_FILE).write_text(mark)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert last_checkpoint(tmp_path / "nowhere") is None


def test_fingerprint_does_not_depend_on_the_number_of_threads():
    model = torch.nn.Linear(3000, 4000)
    threads = torch.get_num_threads()
    seen = set()
    for count in (1, 2):
        torch.set_num_threads(count)
        seen.add(fingerprint(model))
    torch.set_num_threads(threads)
    assert len(seen) == 1
    with torch.no_grad():
        model.weight[0, 0] += 1
    assert fingerprint(model) not in seen
