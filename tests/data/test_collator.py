"""Batches: captions and prompts cut and padded to what each tower reads, pixels by the processor."""

import numpy as np
import pytest
import torch
from conftest import make_clip, make_processor
from image_captions import picture

from sdsclip_hf.data.collator import ImageCaptionCollator
from sdsclip_hf.data.streams import PASSED_OVER
from sdsclip_hf.teachers.conditions import as_bytes, as_captions, rolled, rows_of
from sdsclip_hf.training.terms import prompts_of


def test_rows_that_are_passed_over_make_a_batch_of_nothing():
    assert ImageCaptionCollator(make_processor())([PASSED_OVER] * 2) == {}


def batch_of(captions: list[str], **options) -> dict[str, torch.Tensor]:
    examples = [{"image": picture(number), "caption": caption} for number, caption in enumerate(captions)]
    return ImageCaptionCollator(make_processor(), **options)(examples)


def test_captions_longer_than_the_text_tower_reads_are_cut_and_marked():
    tokenizer = make_processor().tokenizer  # reads 20 tokens: 18 words, a beginning and an end
    batch = batch_of([" ".join(["cat"] * words) for words in (2, 18, 19, 60)])
    assert batch["caption_cut"].tolist() == [False, False, True, True]
    assert batch["input_ids"].shape == (4, 20)
    cat = tokenizer("cat").input_ids[1]
    assert batch["input_ids"][3].tolist() == [tokenizer.bos_token_id, *[cat] * 18, tokenizer.eos_token_id]
    assert batch["attention_mask"].sum(1).tolist() == [4, 20, 20, 20]
    clip = make_clip()
    clip(**{name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")})


def test_a_batch_is_padded_to_its_longest_caption():
    batch = batch_of(["a cat", "a cat on a mat"])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 7)
    assert not batch["caption_cut"].any() and not any(name.startswith("prompts.") for name in batch)


def test_captions_for_the_teacher_travel_as_bytes_and_come_back_as_they_were():
    captions = ["a cat", "", "日本の猫 🐈\0.", "a cat " * 60]
    prompts = prompts_of(batch_of(captions, prompts=as_bytes))
    assert prompts["captions"].dtype == torch.uint8 and len(prompts["captions"]) == 4
    assert as_captions(prompts) == captions
    assert as_captions(rows_of(rolled(prompts), torch.tensor([1, 3]))) == [captions[0], captions[2]]


def test_pixels_of_a_batch_are_those_of_the_processor():
    processor = make_processor()
    values = batch_of(["a cat"] * 3)["pixel_values"]
    assert values.shape == (3, 3, 16, 16) and values.dtype == torch.float32
    expected = (np.array([80, 7, 0]) / 255 - processor.image_processor.image_mean) / processor.image_processor.image_std
    assert values[2, :, 8, 8].numpy() == pytest.approx(expected, abs=1e-5)
