"""The prompts on disk: what is read is what the teacher encodes, and never another teacher's or another caption's."""

import json
import pickle

import pytest
import torch
from damage import DAMAGE
from folders import contents
from full_disk import files_up_to
from launching import launch

from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer
from sdsclip_hf.common.writing import NoRoomError
from sdsclip_hf.teachers import prompt_cache
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher
from sdsclip_hf.teachers.prompt_cache import PromptCache

pytestmark = pytest.mark.filterwarnings("ignore")
CAPTIONS = ["a red dog", "a blue cat", "", "a blue cat", "dog " * 40]


@pytest.fixture
def teacher(teacher_folder):
    return DiffusionTeacher.from_pretrained(teacher_folder)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(prompt_cache, "CHUNK", 2)


@pytest.fixture
def make_trainer(tmp_path, clip_folder, teacher_folder, pairs):
    def make(folder, teacher=teacher_folder, data=pairs, evaluation=None, **options):
        args = SDSCLIPConfig(
            output_dir=str(tmp_path / folder),
            use_cpu=True,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            max_steps=4,
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            health_steps=2,
            **options,
        )
        return SDSCLIPTrainer(
            model=clip_folder, args=args, teacher=teacher, train_dataset=data, eval_dataset=evaluation
        )

    return make


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_prompts_are_those_that_the_teacher_encodes(teacher_folder, tmp_path, dtype):
    teacher = DiffusionTeacher.from_pretrained(teacher_folder, dtype=dtype)
    cache = PromptCache.build(tmp_path / "prompts", teacher, CAPTIONS, batch_size=2)
    asked = [CAPTIONS[number] for number in (4, 0, 2, 0)]
    (found,), (expected,) = cache(asked).values(), teacher.encode_captions(asked).values()
    assert found.dtype == getattr(torch, dtype) and found.shape == (4, 16, 16)
    torch.testing.assert_close(found, expected, rtol=1e-2 if dtype != "float32" else 1e-5, atol=1e-5)
    assert not torch.equal(found[0], found[1]) and torch.equal(found[1], found[3])


def test_files_are_memory_mapped_and_outlive_pickling(teacher, tmp_path):
    cache = PromptCache.build(tmp_path, teacher, CAPTIONS)
    assert sorted(path.name for path in tmp_path.glob("*.arrow")) == ["prompts-000000.arrow", "prompts-000001.arrow"]
    assert cache.data.cache_files and len(pickle.dumps(cache)) < 3000  # for the loader's workers: names, not contents
    torch.testing.assert_close(pickle.loads(pickle.dumps(cache))(CAPTIONS), cache(CAPTIONS))


@pytest.fixture
def encoded(monkeypatch):
    """The captions that were encoded since."""
    captions, encode = [], DiffusionTeacher.encode_captions
    monkeypatch.setattr(
        DiffusionTeacher,
        "encode_captions",
        lambda self, texts: captions.extend(texts) or encode(self, texts),
    )
    return captions


def test_finished_cache_is_not_made_again_and_a_killed_one_goes_on(teacher, tmp_path, encoded):
    first = PromptCache.build(tmp_path, teacher, CAPTIONS)(CAPTIONS)["encoder_hidden_states"]
    encoded.clear()
    PromptCache.build(tmp_path, teacher, CAPTIONS)
    assert encoded == []
    (tmp_path / "prompts-000001.arrow").unlink()
    again = PromptCache.build(tmp_path, teacher, CAPTIONS)(CAPTIONS)
    assert torch.equal(again["encoder_hidden_states"], first)
    assert encoded == ["", "dog " * 40]


@pytest.mark.parametrize("kind", ["empty", "cut", "text"])
@pytest.mark.parametrize("name", ["prompts-000001.arrow", "prompts.json"])
def test_what_is_damaged_is_told_and_made_anew(teacher, tmp_path, caplog, name, kind):
    PromptCache.build(tmp_path, teacher, CAPTIONS)
    before = contents(tmp_path)
    DAMAGE[kind](tmp_path / name)
    PromptCache.build(tmp_path, teacher, CAPTIONS)
    assert contents(tmp_path) == before
    assert "made anew" in caplog.text and name.removesuffix(".json") in caplog.text


def test_flipped_bytes_of_a_prompt_are_named_by_their_file(teacher, tmp_path):
    cache = PromptCache.build(tmp_path, teacher, CAPTIONS)
    stored = bytearray((tmp_path / "prompts-000001.arrow").read_bytes())
    place = stored.find(cache.data[3]["prompt"]) + 200
    stored[place] ^= 1
    (tmp_path / "prompts-000001.arrow").write_bytes(stored)
    with pytest.raises(ValueError, match=r"prompts-000001\.arrow is not what was written: delete it"):
        PromptCache.build(tmp_path, teacher, CAPTIONS)(CAPTIONS)


def test_a_full_disk_keeps_what_is_encoded(teacher, tmp_path, encoded):
    (tmp_path / "whole").mkdir()
    PromptCache.build(tmp_path / "whole", teacher, CAPTIONS)
    sizes = sorted(len(content) for content in contents(tmp_path / "whole").values())
    told = r"prompts-000001\.arrow could not be written: File too large \(some \d.* needed"
    with pytest.raises(NoRoomError, match=told), files_up_to(sizes[-1] - 1):
        PromptCache.build(tmp_path / "cache", teacher, CAPTIONS)
    assert list(contents(tmp_path / "cache")) == ["prompts-000000.arrow", "prompts.json"]
    encoded.clear()
    PromptCache.build(tmp_path / "cache", teacher, CAPTIONS)
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole") and encoded == ["", "dog " * 40]


def changed_encoder(teacher):
    with torch.no_grad():
        next(teacher.text_encoder.parameters()).add_(1)
    return CAPTIONS, "teacher"


def changed_tokenizer(teacher):
    teacher.tokenizers["tokenizer"].add_tokens(["zebra"])
    return CAPTIONS, "tokenizer"


def changed_captions(teacher):
    return [*CAPTIONS[:2], "a dog"], "captions"


def changed_dtype(teacher):
    teacher.to(torch.float16)
    return CAPTIONS, "dtype"


@pytest.mark.parametrize("change", [changed_encoder, changed_tokenizer, changed_captions, changed_dtype])
def test_cache_of_others_is_named_and_made_anew(teacher, tmp_path, caplog, encoded, change):
    PromptCache.build(tmp_path, teacher, CAPTIONS)
    encoded.clear()
    captions, what = change(teacher)
    cache = PromptCache.build(tmp_path, teacher, captions)
    assert f"of another {what}" in caplog.text and "made anew" in caplog.text
    assert encoded == list(dict.fromkeys(captions))
    torch.testing.assert_close(cache(captions), teacher.encode_captions(captions), rtol=1e-2, atol=1e-4)
    assert len(list(tmp_path.glob("*.arrow"))) == -(-len(set(captions)) // 2)


def test_renamed_teacher_is_the_same(teacher, tmp_path, encoded, caplog):
    PromptCache.build(tmp_path, teacher, CAPTIONS)
    encoded.clear()
    teacher.name_or_path = "org/other"
    PromptCache.build(tmp_path, teacher, CAPTIONS)
    assert encoded == [] and caplog.text == ""


def test_unknown_caption_is_named(teacher, tmp_path):
    cache = PromptCache.build(tmp_path, teacher, CAPTIONS)
    with pytest.raises(ValueError, match=r"lack the caption 'a green dog'.*--prompt_cache_dir"):
        cache(["a red dog", "a green dog"])


def test_foreign_arrow_files_are_left_alone(teacher, tmp_path):
    (tmp_path / "data.arrow").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"data\.arrow.*--prompt_cache_dir"):
        PromptCache.build(tmp_path, teacher, CAPTIONS)
    assert (tmp_path / "data.arrow").read_bytes() == b"mine"


def test_part_that_another_machine_wrote_out_of_sight_is_named(teacher, tmp_path):
    PromptCache.build(tmp_path, teacher, CAPTIONS)
    (tmp_path / "prompts-000001.arrow").unlink()
    with pytest.raises(OSError, match=r"lack prompts-000001.arrow; all processes must see one folder"):
        PromptCache(tmp_path)


def test_training_with_it_is_the_same_training_without_a_text_encoder(make_trainer, pairs, tmp_path):
    several = pairs.remove_columns("caption").add_column(
        "caption", [[text, f"{text} cat"] for text in pairs["caption"]]
    )
    options = {"data": several, "evaluation": {"some": pairs.select(range(8))}, "mapper_warmup_steps": 2}
    plain = make_trainer("plain", **options)
    cached = make_trainer("cached", prompt_cache_dir=str(tmp_path / "prompts"), **options)
    assert cached.teacher.text_encoder is None and plain.teacher.text_encoder is not None
    for trainer in (plain, cached):
        trainer.train()
    rows = [[row for row in trainer.state.log_history if "sds_gap" in row] for trainer in (plain, cached)]
    assert rows[0] and [row["sds_gap"] for row in rows[1]] == pytest.approx(
        [row["sds_gap"] for row in rows[0]], abs=1e-4
    )
    state = cached.student.state_dict()
    for name, tensor in plain.student.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-4)
    assert cached.evaluate()["eval_some_sds"] == pytest.approx(plain.evaluate()["eval_some_sds"], rel=1e-4)
    assert len(cached._identity()["settings"]) == len(plain._identity()["settings"])
    assert cached._identity() == plain._identity()  # either goes on from the other's checkpoints


def test_given_teacher_keeps_its_text_encoder(make_trainer, teacher, tmp_path):
    make_trainer("given", teacher=teacher, prompt_cache_dir=str(tmp_path / "prompts"))
    assert teacher.text_encoder is not None


def test_freed_encoder_says_why_it_is_missing(teacher):
    teacher.free_text_encoders()
    with pytest.raises(ValueError, match=r"was freed.*--prompt_cache_dir"):
        teacher.encode_captions(CAPTIONS)


@pytest.mark.parametrize("what", ["data", "evaluation"])
def test_streams_are_refused_with_the_reason(make_trainer, pairs, tmp_path, what):
    with pytest.raises(ValueError, match="which a stream does not tell"):
        make_trainer("run", prompt_cache_dir=str(tmp_path / "prompts"), **{what: pairs.to_iterable_dataset()})


def test_without_the_term_it_is_refused(tmp_path):
    with pytest.raises(ValueError, match="prompt_cache_dir needs the distillation term"):
        SDSCLIPConfig(output_dir=str(tmp_path), lambda_sds=0.0, prompt_cache_dir="prompts")


PROCESSES = """
import sys, json
from pathlib import Path
from accelerate import PartialState
from sdsclip_hf.teachers import prompt_cache
from sdsclip_hf.teachers.prompt_cache import PromptCache
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher
state, (folder, out, captions) = PartialState(cpu=True), sys.argv[1:]
prompt_cache.CHUNK, captions = 2, json.loads(captions)
teacher = DiffusionTeacher.from_pretrained(folder)
encoded, encode = [], teacher.encode_captions
teacher.encode_captions = lambda texts: encoded.extend(texts) or encode(texts)
cache = PromptCache.build(out, teacher, captions)
found = cache(captions)["encoder_hidden_states"].tolist()
Path(f"{out}/{state.process_index}.json").write_text(json.dumps([encoded, found]))
"""


def test_processes_share_the_work(teacher_folder, teacher, tmp_path):
    captions = [f"a dog {'x' * number}" for number in range(7)]
    launch(PROCESSES, teacher_folder, tmp_path / "prompts", json.dumps(captions))
    found = [json.loads((tmp_path / "prompts" / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [encoded for encoded, _ in found] == [[captions[n] for n in (0, 1, 4, 5)], [captions[n] for n in (2, 3, 6)]]
    expected = teacher.encode_captions(captions)["encoder_hidden_states"]
    for _, prompts in found:
        torch.testing.assert_close(torch.tensor(prompts), expected, rtol=1e-4, atol=1e-5)
