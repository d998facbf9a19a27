"""Loader workers where /dev/shm is small: none are started, or what they cannot hand over is an error at once."""

import shutil
from collections import namedtuple

import pytest
import torch
from full_disk import files_up_to
from torch.utils.data import DataLoader

from sdsclip_hf import ClipScorer, SDSCLIPConfig, SDSCLIPTrainer
from sdsclip_hf.common import shared_memory
from sdsclip_hf.common.shared_memory import HandedOver, workers_with_room
from sdsclip_hf.common.writing import NoRoomError
from sdsclip_hf.students.sdsclip_model import load_clip

pytestmark = pytest.mark.skipif(not shared_memory.PLACE.is_dir(), reason="workers hand over by /dev/shm on Linux alone")
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def room(monkeypatch):
    """Sets how many bytes /dev/shm has left."""
    monkeypatch.setattr(shared_memory, "_told", set())
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    usage = shutil.disk_usage

    def leave(free: int) -> None:
        told = {shared_memory.PLACE: Usage(free, 0, free)}
        monkeypatch.setattr(shutil, "disk_usage", lambda path: told.get(path) or usage(path))

    return leave


def test_workers_start_where_their_batches_have_room(room, caplog, monkeypatch):
    batch = {"pixels": torch.zeros(2, 3, 100, 100), "ids": [torch.zeros(2, 5, dtype=torch.long), torch.zeros(0)]}
    page = 4096
    one = -(-16 * 3 * 100 * 100 * 4 // page) * page + page  # 16 pictures, and their tokens on a page
    for workers, prefetch, batches in ((2, None, 5), (3, 4, 13)):
        room(batches * one)
        assert workers_with_room(workers, batch, 8, prefetch, "--num_workers") == workers
        assert not caplog.records
        room(batches * one - 1)
        assert workers_with_room(workers, batch, 8, prefetch, "--num_workers") == 0
        assert "9.6 MB: going on without workers" in caplog.text if workers == 2 else not caplog.records  # once
        caplog.clear()
    room(13 * one)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert workers_with_room(3, batch, 8, 4, "--dataloader_num_workers", stream=True) == 0
    assert "in another order" in caplog.text and "--dataloader_num_workers 0" in caplog.text
    assert workers_with_room(0, batch, 8, None, "--num_workers") == 0


def test_a_batch_that_has_no_room_is_an_error_and_not_waited_for():
    data = [torch.full((3, 50, 50), float(number)) for number in range(4)]
    loader = DataLoader(data, 2, num_workers=1, collate_fn=HandedOver(torch.stack, "--num_workers"), timeout=60)
    told = r"/dev/shm has no room for a batch of a loader worker \(60 kB needed.*or set --num_workers 0"
    with pytest.raises(NoRoomError, match=told), files_up_to(20_000):
        next(iter(loader))
    torch.testing.assert_close(torch.cat(list(loader)), torch.stack(data))


def test_an_evaluation_goes_on_without_workers(room, clip_folder, pairs, caplog):
    pictures = pairs["image"][:6]
    without = ClipScorer(*load_clip(clip_folder), batch_size=4).embed_images(pictures)
    room(50_000)
    scorer = ClipScorer(*load_clip(clip_folder), batch_size=4, num_workers=2)
    torch.testing.assert_close(scorer.embed_images(pictures), without, rtol=0, atol=0)
    assert caplog.text.count("going on without workers") == 1
    room(10**9)
    torch.testing.assert_close(scorer.embed_images(pictures), without, rtol=0, atol=0)


@pytest.mark.parametrize("streaming", [False, True])
def test_training_goes_on_without_workers(room, clip_folder, pairs, tmp_path, caplog, streaming):
    data = pairs.to_iterable_dataset(num_shards=2) if streaming else pairs
    options = {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 3, "dataloader_persistent_workers": True}
    options |= {
        "lambda_sds": 0.0,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    args = SDSCLIPConfig(output_dir=str(tmp_path), save_strategy="no", **options)
    trainer = SDSCLIPTrainer(model=clip_folder, args=args, train_dataset=data)
    room(10**9)
    assert trainer.get_train_dataloader().num_workers == 2 and not caplog.records
    room(50_000)
    assert trainer.get_train_dataloader().num_workers == 0
    assert caplog.text.count("/dev/shm has 50 kB free") == 1 and ("another order" in caplog.text) == streaming
    assert {name: getattr(args, name) for name in options} == options
    trainer.train()
    assert trainer.state.global_step == 2
