"""Models as rankers, against the models called on one picture with one caption at a time; and what is no ranker."""

import json

import numpy as np
import pytest
import ranker_models
import torch
import transformers
from conftest import make_rows
from dual_encoders import make_dual_encoder
from scorings import refuse, run
from transformers import AutoProcessor

from sdsclip_hf.data.scores import CandidateScores
from sdsclip_hf.rankers.loading import RankerOptions, load_ranker
from sdsclip_hf.students.dual_encoder import load_dual_encoder
from sdsclip_hf.students.exports import export

pytestmark = pytest.mark.filterwarnings("ignore")
IMAGES = [row["image"] for row in make_rows(3)]
CANDIDATES = [
    ["a red cat", "a dog on a blue mat on a red chair"],
    ["a photo", "dog", "a red cat on a mat"],
    ["a", "cat"],
]
QUESTION = 'Does this figure show "{}"? Please answer yes or no.'
DESCRIBE = "Describe this picture in one sentence."


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each kind of model, and of some that do not rank."""
    torch.manual_seed(3)
    place = tmp_path_factory.mktemp("rankers")
    made = ("blip", "llava", "gemma3", "captioner", "bert")
    found = {name: getattr(ranker_models, name)(place / name) for name in made}
    for name in ("clip", "siglip"):
        for part in make_dual_encoder(name):
            part.save_pretrained(place / name)
        found[name] = str(place / name)
    return found


def pair_loop(model, processor, one_score):
    """A table of scores by one call of the model for each picture and caption."""
    with torch.no_grad():
        return [[one_score(image, text) for text in texts] for image, texts in zip(IMAGES, CANDIDATES, strict=True)]


def matching(folder):
    model = transformers.BlipForImageTextRetrieval.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)

    def one(image, text):
        chances = model(**processor(images=image, text=text, return_tensors="pt")).itm_score.softmax(-1)[0]
        return (chances[1].log() - chances[0].log()).item()

    return pair_loop(model, processor, one)


def likelihood(folder, of_class, asked, answered):
    """log P of what ``answered`` adds to ``asked``, both as text that the template would make, token by token."""
    model, processor = of_class.from_pretrained(folder), AutoProcessor.from_pretrained(folder)

    def one(image, text):
        before = processor(text=asked.replace("{}", text), images=image, return_tensors="pt")["input_ids"].shape[1]
        inputs = processor(text=(asked + answered).replace("{}", text), images=image, return_tensors="pt")
        ids, logits = inputs["input_ids"][0], model(**inputs).logits[0]
        return sum(logits[place - 1].log_softmax(-1)[ids[place]].item() for place in range(before, len(ids)))

    return pair_loop(model, processor, one)


def llava(question, answer):
    asked = f"USER: <image>\n{question} ASSISTANT:"
    return lambda folder: likelihood(folder, transformers.LlavaForConditionalGeneration, asked, f" {answer}")


def gemma(folder):
    asked = f"<start_of_turn>user\n<start_of_image>{QUESTION}<end_of_turn>\n<start_of_turn>model\n"
    return likelihood(folder, transformers.Gemma3ForConditionalGeneration, f"<bos>{asked}", "Yes")


def dual_encoder(folder):
    model, processor = transformers.AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    text = {"padding": "max_length", "max_length": 12 if "siglip" in folder else 20}

    def one(image, caption):
        logit = model(**processor(text=[caption], images=image, return_tensors="pt", **text)).logits_per_image.item()
        return logit - getattr(model, "logit_bias", torch.zeros(1)).item()  # the same for all candidates

    return pair_loop(model, processor, one)


@pytest.mark.parametrize(
    ("name", "spec", "kind", "plainly"),
    [
        ("blip", "{}", "itm", matching),
        ("llava", "{}", "vlm", llava(QUESTION, "Yes")),
        ("llava", "vlm_caption={}", "vlm_caption", llava(DESCRIBE, "{}")),
        pytest.param("gemma3", "vlm={}", "vlm", gemma, marks=pytest.mark.slow),
        ("clip", "{}", "dual_encoder", dual_encoder),
        ("siglip", "dual_encoder={}", "dual_encoder", dual_encoder),
    ],
)
def test_scores_are_those_of_single_pairs(folders, name, spec, kind, plainly):
    """Whatever stands beside a caption in its batch, and however much it is padded for it."""
    ranker = load_ranker(spec.format(folders[name]), RankerOptions(batch_size=4))
    assert ranker.kind == kind and ranker.settings()["name"] == name
    expected = plainly(folders[name])
    found = ranker.scores(IMAGES, CANDIDATES)
    for scores, one_by_one in zip(found, expected, strict=True):
        np.testing.assert_allclose(scores, one_by_one, rtol=1e-4, atol=1e-4)
        assert np.ptp(one_by_one) > 2e-3  # or captions of one picture could not be told apart
    (alone,) = ranker.scores(IMAGES[1:2], [["dog", "a photo"]])
    np.testing.assert_allclose(alone, [expected[1][1], expected[1][0]], rtol=1e-4, atol=1e-4)


def test_a_picture_is_encoded_once_by_the_matching_head(folders):
    ranker, seen = load_ranker(folders["blip"], RankerOptions(batch_size=2)), []
    ranker.model.vision_model.register_forward_hook(lambda module, inputs, found: seen.append(len(found[0])))
    ranker.scores([IMAGES[0], IMAGES[1], IMAGES[0]], CANDIDATES)
    assert sum(seen) == 2


def test_open_clip_s_form_ranks_as_the_model_itself(folders, tmp_path):
    export(load_dual_encoder(folders["clip"]), tmp_path / "o", "open_clip")
    ours, theirs = (load_ranker(str(place)).scores(IMAGES, CANDIDATES) for place in (tmp_path / "o", folders["clip"]))
    np.testing.assert_allclose(np.concatenate(ours), np.concatenate(theirs), rtol=1e-5)


def test_the_command_scores_by_a_model_and_tells_it(folders, numbered, tmp_path, capsys):
    words = ["--dataset_name", numbered, "--output_dir", tmp_path / "s", "--batch_size", 5, "--max_samples", 8]
    asking = ["--ranker", f"vlm={folders['llava']}", "--ranker_question", "Is it {}?", "--ranker_dtype", "bfloat16"]
    run(*words, *asking)
    settings = json.loads((tmp_path / "s/scores.json").read_text())
    told = settings["ranker"]
    assert settings["teacher"] is None and len(told["fingerprint"]) == 25
    assert (told["kind"], told["name"], told["question"]) == ("vlm", "llava", "Is it {}?")
    card = (tmp_path / "s/README.md").read_text()
    assert "scored by llava" in card and "| question | Is it {}? |" in card and told["fingerprint"] in card
    assert str(tmp_path) not in card + json.dumps(settings)
    assert CandidateScores.load(tmp_path / "s").ranked.all()
    assert "of revision" not in refuse(capsys, *words, "--ranker", folders["blip"])
    said = refuse(capsys, *words, *asking[:2], "--ranker_question", "Does one see {}?")
    assert "its ranker is of fingerprint" in said or "of question 'Is it {}?', not 'Does one see {}?'" in said


@pytest.mark.parametrize(
    ("spec", "options", "said"),
    [
        (
            "clip_score=some/model",
            {},
            "unknown kind of ranker 'clip_score' in 'clip_score=some/.*dual_encoder, itm",
        ),
        ("vlm=", {}, "unknown kind of ranker 'vlm'"),
        ("no/such-model", {}, "could not load the ranker 'no/such-model'"),
        (
            "bert",
            {},
            "holds a BertModel, which cannot rank captions here; give --ranker a dual encoder .*BlipForImageT",
        ),
        ("itm=llava", {}, "holds a LlavaForConditionalGeneration, which cannot rank captions as itm here"),
        ("dual_encoder=blip", {}, "holds a BlipForImageTextRetrieval, which cannot rank captions as dual_encoder here"),
        ("captioner", {}, "has no chat template, by which the question is put"),
        ("llava", {"question": "Is it a cat?"}, "the question 'Is it a cat\\?' has no {} where the caption goes"),
        ("vlm_caption=llava", {"question": "Is it {}?"}, "has {} for the caption, which is the answer"),
        (
            "blip",
            {"question": "Is it {}?"},
            "--ranker_question is given, but .* of the kind itm, which is asked nothing",
        ),
    ],
)
def test_what_is_no_ranker_is_told_with_what_is(folders, spec, options, said):
    kind, equals, name = spec.rpartition("=")
    with pytest.raises((ValueError, OSError), match=said):
        load_ranker(f"{kind}{equals}{folders.get(name, name)}", RankerOptions(**options))


def test_an_empty_caption_has_no_likelihood(folders):
    with pytest.raises(ValueError, match="a caption is empty"):
        load_ranker(f"vlm_caption={folders['llava']}").scores(IMAGES[:1], [["a dog", " "]])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ranker", "a/b", "--teacher_name_or_path", "c/d"], "both --ranker a/b and --teacher_name_or_path c/d"),
        (["--ranker_question", "{}"], "--ranker_question is given, but no ranker; add --ranker"),
        (["--ranker", "shapes/student", "--fit_weights", "own", "--stop_confidence", 0], "weighs a teacher's errors"),
    ],
)
def test_options_that_do_not_fit_are_refused(capsys, numbered, tmp_path, words, said):
    assert said in refuse(capsys, "--dataset_name", numbered, "--output_dir", tmp_path / "s", *words)
