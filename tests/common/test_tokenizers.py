"""Tokenizers whose files are not all there, and how long a caption may be: asked of teacher, student and evaluation."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from transformers import CLIPModel, CLIPProcessor, CLIPTokenizer

from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer
from sdsclip_hf.common.tokenizers import check_words, max_length
from sdsclip_hf.shapes import model_path
from sdsclip_hf.students.dual_encoder import load_dual_encoder
from sdsclip_hf.students.sdsclip_model import load_clip
from sdsclip_hf.teachers.conditions import as_captions
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher
from sdsclip_hf.training.terms import prompts_of

CAPTIONS = ["a red square above a blue star", "a green circle"]


def strip(folder: Path, kept: set[str]) -> None:
    """Leave of a tokenizer's files those of the slow form in ``kept``, out of its tokenizer.json."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    if "vocab" in kept:
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    if "merges" in kept:
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")


@pytest.mark.parametrize("kept", [set(), {"vocab"}, {"merges"}], ids=str)
def test_a_teacher_a_student_or_a_model_to_score_that_cannot_read_is_refused(kept, tmp_path):
    shutil.copytree(model_path("teacher"), tmp_path / "teacher")
    strip(tmp_path / "teacher" / "tokenizer", kept)
    shutil.copytree(model_path("student"), tmp_path / "student")
    strip(tmp_path / "student", kept)
    told = r"the tokenizer of .*(knows no words|spells every word|without the other).*complete its files"
    with pytest.raises(ValueError, match=told):
        DiffusionTeacher.from_pretrained(tmp_path / "teacher")
    with pytest.raises(ValueError, match=told):
        load_clip(tmp_path / "student")
    with pytest.raises(ValueError, match=told):
        load_dual_encoder(str(tmp_path / "student"))


def test_a_processor_given_through_python_has_to_know_words(tmp_path):
    shutil.copytree(model_path("student"), tmp_path / "student")
    strip(tmp_path / "student", set())
    processor = CLIPProcessor.from_pretrained(tmp_path / "student")
    args = SDSCLIPConfig(output_dir=str(tmp_path / "run"), lambda_sds=0.0)
    with pytest.raises(ValueError, match="knows no words"):
        SDSCLIPTrainer(CLIPModel.from_pretrained(model_path("student")), args, processing_class=processor)


def test_the_slow_form_with_all_its_files_reads_the_same(tmp_path):
    shutil.copytree(Path(model_path("teacher")) / "tokenizer", tmp_path / "tokenizer")
    strip(tmp_path / "tokenizer", {"vocab", "merges"})
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    check_words(tokenizer)
    whole = CLIPTokenizer.from_pretrained(Path(model_path("teacher")) / "tokenizer")
    assert tokenizer(CAPTIONS).input_ids == whole(CAPTIONS).input_ids


@pytest.mark.parametrize("told", [None, int(1e30), 5000, 7])
def test_captions_are_cut_at_what_both_allow(told, tmp_path):
    limits = {}
    for name, place in (("student", ""), ("teacher", "tokenizer")):
        folder = tmp_path / name
        shutil.copytree(model_path(name), folder)
        path = folder / place / "tokenizer_config.json"
        config = json.loads(path.read_text())
        limits[name] = config.pop("model_max_length")
        path.write_text(json.dumps(config if told is None else config | {"model_max_length": told}))
    expected = {name: min(limit, told or limit) for name, limit in limits.items()}
    long = ["red " * 300, "a dog"]
    teacher = DiffusionTeacher.from_pretrained(tmp_path / "teacher")
    assert teacher.tokenizers["tokenizer"].model_max_length == expected["teacher"]
    (words,) = teacher.encode_captions(long).values()
    assert words.shape[:2] == (2, expected["teacher"])
    assert words.isfinite().all()
    encoder = load_dual_encoder(str(tmp_path / "student"))
    assert len(encoder.tokenize(long)[0]) == expected["student"]
    clip, processor = load_clip(tmp_path / "student")
    args = SDSCLIPConfig(output_dir=str(tmp_path / "run"), lambda_sds=0.0, use_cpu=True)
    trainer = SDSCLIPTrainer(clip, args, processing_class=processor)
    image = torch.zeros(3, 32, 32)
    batch = trainer.data_collator([{"pixel_values": image, "caption": caption} for caption in long])
    assert batch["input_ids"].shape == (2, expected["student"]) and batch["caption_cut"].tolist() == [True, False]


def test_no_length_at_all_is_an_error():
    tokenizer = CLIPTokenizer.from_pretrained(Path(model_path("teacher")) / "tokenizer")
    tokenizer.model_max_length = int(1e30)
    with pytest.raises(ValueError, match=r"model_max_length.*tokenizer_config\.json"):
        max_length(tokenizer, None)


class WithoutTensors(pickle.Pickler):
    """Fails on a tensor."""

    def reducer_override(self, value):
        assert not isinstance(value, torch.Tensor), "loader workers would get weights"
        return NotImplemented


def test_loader_workers_get_none_of_the_teachers_weights(tmp_path, pairs, clip_folder, teacher_folder):
    args = SDSCLIPConfig(output_dir=str(tmp_path), use_cpu=True)
    trainer = SDSCLIPTrainer(clip_folder, args, teacher=teacher_folder, train_dataset=pairs)
    with (tmp_path / "pickled").open("wb") as file:
        WithoutTensors(file).dump(trainer.data_collator)
    with (tmp_path / "pickled").open("rb") as file:
        collate = pickle.load(file)
    examples = [trainer.train_dataset[number] for number in (0, 1)]
    assert as_captions(prompts_of(collate(examples))) == [example["caption"] for example in examples]
