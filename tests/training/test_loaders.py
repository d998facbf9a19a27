"""Batches of the training data: always full, shuffled, and shared by workers; errors that tell why there are none."""

import datasets
import pytest
import torch
from dual_encoders import make_dual_encoder
from PIL import Image
from trainers import assert_same_weights

from sdsclip_hf.data.decoded import check_preparing, packed, unpacked


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is something to pin memory for")
def test_no_loader_pins_memory_where_there_is_no_device_to_copy_to(make_trainer, pairs, recwarn):
    trainer = make_trainer(eval_dataset=pairs, use_cpu=False)
    assert trainer.args.dataloader_pin_memory
    for loader in (trainer.get_train_dataloader(), trainer.get_eval_dataloader()):
        next(iter(loader))
    assert not [warning for warning in recwarn if "pin_memory" in str(warning.message)]


def test_dataset_smaller_than_a_batch_raises_with_both_numbers(make_trainer, pairs):
    trainer = make_trainer(data=pairs.select(range(3)))
    with pytest.raises(ValueError, match=r"3 pairs, fewer than one batch of 4 .*--per_device_train_batch_size"):
        trainer.train()
    single = make_trainer(data=pairs.select(range(1)))
    with pytest.raises(ValueError, match=r"at least two pairs.*the dataset has 1"):
        single.train()


def test_batches_of_a_stream_are_full_although_a_pass_ends_within_one(make_trainer, pairs):
    sizes = []
    trainer = make_trainer(data=pairs.select(range(9)).to_iterable_dataset(), max_steps=4)
    forward = trainer.model.forward
    trainer.model.forward = lambda **inputs: sizes.append(len(inputs["input_ids"])) or forward(**inputs)
    trainer.train()
    assert sizes == [4, 4, 4, 4]


@pytest.mark.parametrize("warmup", [0, 2])
def test_stream_without_a_full_batch_raises(make_trainer, pairs, warmup):
    trainer = make_trainer(data=pairs.select(range(3)).to_iterable_dataset(), mapper_warmup_steps=warmup)
    with pytest.raises(ValueError, match=r"no full batch.*--per_device_train_batch_size"):
        trainer.train()


def test_loader_workers_without_a_shard_are_refused(make_trainer, pairs):
    trainer = make_trainer(data=pairs.to_iterable_dataset(num_shards=2), dataloader_num_workers=3)
    with pytest.raises(ValueError, match=r"num_workers is 3, but the stream has 2 shards .* to at most 2, or spread"):
        trainer.train()


def test_accelerate_is_not_to_deal_out_a_stream(make_trainer, pairs):
    trainer = make_trainer(data=pairs.to_iterable_dataset(), accelerator_config={"dispatch_batches": True})
    with pytest.raises(ValueError, match="accelerator_config cannot have dispatch_batches"):
        trainer.train()


def test_stream_is_shuffled_unless_told_otherwise(make_trainer, pairs):
    def order(**options):
        trainer = make_trainer(data=pairs.to_iterable_dataset(), **options)
        return next(iter(trainer.get_train_dataloader()))["input_ids"].tolist()

    assert order(shuffle_buffer_size=0) != order(shuffle_buffer_size=24)
    assert order(shuffle_buffer_size=24) == order(shuffle_buffer_size=24)


def test_packed_pictures_come_back(pairs):
    images = [pairs[0]["image"].resize(size) for size in ((7, 3), (3, 5), (1, 1))]
    for image, found in zip(images, unpacked(*packed(images).values()), strict=True):
        assert found.shape == (3, image.height, image.width) and found[:, -1, -1].tolist() == [
            *image.getpixel((-1, -1))
        ]


@pytest.mark.parametrize("kind", ["clip", "siglip2"])
def test_pictures_that_workers_only_decode_train_alike(make_trainer, pairs, tmp_path, kind):
    for part in make_dual_encoder(kind):
        part.save_pretrained(tmp_path / "model")
    pictures = [Image.effect_noise((20 + row, 44 - row), 90).convert("RGB") for row in range(24)]  # no two sizes alike
    rows = [{"image": pictures[row], "caption": pairs[row]["caption"], "wrong": pictures[row - 1]} for row in range(24)]
    data = datasets.Dataset.from_list(rows, features=datasets.Features(pairs.features | {"wrong": datasets.Image()}))
    options = {
        "model": str(tmp_path / "model"),
        "data": data,
        "eval_dataset": data.remove_columns("wrong"),
        "eval_strategy": "steps",
        "eval_steps": 2,
    }
    options |= {"lambda_sds": 0.0, "trainable": "full", "contrastive_batch_size": 8, "negative_image_column": "wrong"}
    options |= {"lambda_images": 1.0, "dataloader_num_workers": 1}
    trainers = [make_trainer(str(on), **options, preprocess_on_device=on) for on in (False, True)]
    for trainer in trainers:
        trainer.train()
    losses = [[log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log] for trainer in trainers]
    assert losses[0] == losses[1] and losses[0]
    assert_same_weights(*trainers)
    keys = [
        trainer.data_collator([trainer.train_dataset[row] for row in (0, 1, 0)])["picture_keys"] for trainer in trainers
    ]
    assert all(own[0] == own[2] != own[1] for own in keys)


def test_pictures_are_prepared_where_and_when_they_can_be(make_trainer):
    processor = make_dual_encoder("clip")[1].image_processor
    check_preparing(processor, torch.device("cpu"))
    if getattr(processor, "backend", "pil") == "pil":
        with pytest.raises(
            ValueError, match=r"prepares pictures on the CPU alone\. Install torchvision .*--preprocess_on_device"
        ):
            check_preparing(processor, torch.device("cuda"))
    with pytest.raises(ValueError, match=r"leave --preprocess_on_device out beside it"):
        make_trainer(preprocess_on_device=True, keep_images_in_memory=True)
