"""Attributes by a model's answers and by a list of words: in order, once each, and as a dataset that can be learned from."""

import datasets
import pytest
import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    CLIPImageProcessorPil,
    CLIPTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from sdsclip_hf.commands import describe_attributes
from sdsclip_hf.prompts.data.attributes import SETTINGS_FILE, describe
from sdsclip_hf.prompts.data.describers import Answers, BestWords, clean
from sdsclip_hf.prompts.data.shapes import load_labelled_shapes
from sdsclip_hf.prompts.data.sources import load_labelled
from sdsclip_hf.shapes import model_path
from sdsclip_hf.shapes.scenes import COLORS

CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


@pytest.fixture(scope="module")
def pictures():
    return load_labelled_shapes("train", per_class=5)


def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(model_path("student"), model_max_length=77, extra_special_tokens=["<image>"])


def image_processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


def text_config(words: int) -> dict:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return sizes | {"vocab_size": words, "num_key_value_heads": 2, "max_position_embeddings": 128}


def save_llava(folder) -> None:
    """A tiny random LLaVA with a chat template, as the Hub's are laid out."""
    words = tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**text_config(len(words))),
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    parts = {"patch_size": 8, "vision_feature_select_strategy": "default", "chat_template": CHAT}
    LlavaProcessor(image_processor(), words, num_additional_image_tokens=1, **parts).save_pretrained(folder)


def save_blip2(folder) -> None:
    """A tiny random BLIP-2, which has no chat template."""
    words = tokenizer()
    opt = {"model_type": "opt", "vocab_size": len(words), "hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1}
    opt |= {"num_attention_heads": 2, "word_embed_proj_dim": 16, "max_position_embeddings": 128}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    qformer = {**vision, "encoder_hidden_size": 16, "vocab_size": 30}
    config = Blip2Config(
        vision_config=vision | {"image_size": 16, "patch_size": 8},
        qformer_config=qformer,
        text_config=opt,
        num_query_tokens=2,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    Blip2ForConditionalGeneration(config).save_pretrained(folder)
    Blip2Processor(image_processor(), words, num_query_tokens=2).save_pretrained(folder)


@pytest.mark.parametrize("save", [save_llava, save_blip2])
def test_a_model_answers_about_each_picture(tmp_path, pictures, save):
    """Against the model's own generate on the processor's own inputs: of the right picture, without the question."""
    save(tmp_path)
    answers = Answers(str(tmp_path), "what of the {}", max_words=3)
    names = pictures.features["label"].names
    rows = pictures.select([0, 20])
    found = answers(rows["image"][:], [names[label] for label in rows["label"]])
    model, processor = answers.pipe.model, answers.pipe.processor
    for told, row in zip(found, rows, strict=True):
        question = f"what of the {names[row['label']]}"
        text = f"<image>{question}" if save is save_llava else f"Question: {question} Answer:"
        inputs = processor(images=row["image"], text=text, return_tensors="pt")
        made = model.generate(**inputs, max_new_tokens=10, do_sample=False)
        new = made[0, inputs["input_ids"].shape[1] :] if made.shape[1] > 10 else made[0]
        assert told == clean(processor.decode(new, skip_special_tokens=True), 3)


def test_answers_become_a_word_or_two():
    told = ["It is bright red.\nYes", "A striped, orange cat", "  ", "Answer: blue!", "the long-haired and brown dog"]
    assert [clean(answer, 2) for answer in told] == ["bright red", "striped", "", "blue", "long-haired and"]


def test_clip_picks_the_word_that_fits(pictures):
    """The student finds the colour of one of the two things, against a plain loop over the texts."""
    best = BestWords("shapes/student", [*COLORS, "red"])
    names = [pictures.features["label"].names[label] for label in pictures["label"]]
    found = best(pictures["image"][:], names)
    clip, processor = best.clip, best.processor
    for picture, name, word in list(zip(pictures["image"], names, found, strict=True))[::17]:
        texts = processor(text=[f"a photo of a {one} {name}." for one in COLORS], return_tensors="pt", padding=True)
        pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            logits = clip(**texts, pixel_values=pixels).logits_per_image
        assert list(COLORS)[int(logits.argmax())] == word
    right = sum(told == own for told, own in zip(found, pictures["attribute"], strict=True))
    assert right > 1.5 * len(found) / len(COLORS)


class Told:
    """Says a word and what number of call it is; dies at one of them."""

    def __init__(self, dies_at: int = 99, word: str = "red"):
        self.calls, self.dies_at, self.settings = 0, dies_at, {"kind": word}

    def __call__(self, images, class_names):
        self.calls += 1
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        return ["" if number == 1 else f"{self.settings['kind']} {name}" for number, name in enumerate(class_names)]


def test_a_killed_describing_goes_on_and_leaves_a_dataset(tmp_path, pictures, caplog):
    """50 pictures in two parts: the first is not asked for again; what is written is read as any labelled data."""
    folder, without = tmp_path / "described", pictures.remove_columns("attribute")
    with pytest.raises(KeyboardInterrupt):
        describe(without, Told(dies_at=2), folder, "mine", "train")
    with pytest.raises(ValueError, match=r"holds attributes of other settings: its kind is 'red', not 'blue'"):
        describe(without, Told(word="blue"), folder, "mine", "train")
    second = Told()
    described = describe(without, second, folder, "mine", "train")
    assert second.calls == 1 and "2 of 50 pictures have got no attribute" in caplog.text
    read = load_labelled(str(folder))
    names = read.features["label"].names
    assert names == pictures.features["label"].names and read["label"][:] == pictures["label"][:]
    assert read["attribute"][:] == described["attribute"][:]
    told = [f"red {names[label]}" for label in pictures["label"]]
    assert [a or b for a, b in zip(read["attribute"], told, strict=True)] == told
    assert [one.tobytes() for one in read["image"]] == [one.tobytes() for one in pictures["image"]]
    card = (folder / "README.md").read_text()
    assert "50 pictures, 10 classes" in card and "2 pictures have none" in card and (folder / SETTINGS_FILE).is_file()
    with pytest.raises(ValueError, match=r"2 of 50 rows of .* have no attribute: 1, 33\. "):
        load_labelled(str(folder), attribute_column="attribute")


def test_the_command_describes_by_words(tmp_path, capsys, monkeypatch):
    """One split after another in one folder."""
    monkeypatch.setattr("sdsclip_hf.prompts.data.shapes.PER_CLASS", 2)
    words = tmp_path / "words.txt"
    words.write_text("red\nblue\n\ngreen\n")
    for split in ("train", "validation"):
        describe_attributes.main(
            ["--words", str(words), "--split", split, "--shots", "1", "--output_dir", str(tmp_path / "out")]
        )
    printed = capsys.readouterr().out
    following = f"prompt-tune --method intcoop --dataset_name {tmp_path / 'out'} --test_dataset_name shapes"
    assert "10 pictures with attributes, such as" in printed and f"Next: sdsclip {following}\n" in printed
    assert "--dataset_name FOLDER_OR_HUB_ID --test_dataset_name shapes\n" in (tmp_path / "out/README.md").read_text()
    read = datasets.load_dataset(str(tmp_path / "out"))
    assert {split: len(rows) for split, rows in read.items()} == {"train": 10, "validation": 10}
    assert set(read["train"]["attribute"]) <= {"red", "blue", "green"}
    with pytest.raises(SystemExit, match="there is 1 word to pick an attribute from"):
        describe_attributes.main(["--words", "red", "--output_dir", str(tmp_path / "other")])
