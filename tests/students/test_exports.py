"""Exports for other libraries, loaded by them: the same embeddings."""

import json
from pathlib import Path

import onnxruntime
import pytest
import torch
from conftest import make_rows
from dual_encoders import make_dual_encoder
from evaluations import SHAPES, run
from forking import run_forked
from huggingface_hub import ModelCard
from open_clip_package import CAPTIONS
from PIL import Image

from sdsclip_hf.commands.export import main
from sdsclip_hf.common.reading import picture_backend
from sdsclip_hf.students.dual_encoder import DualEncoder, load_dual_encoder
from sdsclip_hf.students.exports import FORMS, export, loading_lines
from sdsclip_hf.students.open_clip_checkpoints import OpenClipOptions
from sdsclip_hf.students.sdsclip_model import SDSCLIPModel

WORDS = ["a red cat", "dog", "a photo of a blue chair on a mat"]
PICTURES = [row["image"] for row in make_rows(3)]

pytestmark = pytest.mark.usefixtures("work_folder")


def embeds_of(encoder: DualEncoder, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    return encoder.embed_pixels(encoder.preprocess(PICTURES)), encoder.embed_tokens(encoder.tokenize(captions))


LOAD = """
import json, open_clip
folder, out, *captions = sys.argv[1:]
model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
pixels, ids = torch.randn(2, 3, 32, 32), open_clip.get_tokenizer(f"local-dir:{folder}")(captions)
with torch.no_grad():
    embeds = {"images": model.eval().encode_image(pixels), "texts": model.encode_text(ids)}
torch.save({"pixels": pixels, "prepared": model.visual.preprocess_cfg, "weights": model.state_dict(), **embeds}, out)
"""


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_open_clip_loads_what_it_wrote_itself(open_clip, open_clip_models, activation, capsys):
    place = open_clip_models / activation
    words = ["--architecture", place / "architecture.json", "--processor", open_clip_models / "tokenizer"]
    main(list(map(str, [place / "plain.pt", "--format", "open_clip", "--output_dir", "out", *words])))
    assert 'open_clip.create_model_and_transforms("local-dir:out")' in capsys.readouterr().out
    open_clip(LOAD, "out", "found.pt", *CAPTIONS)
    found, first = torch.load("found.pt"), torch.load(place / "plain.pt")
    assert found["weights"].keys() == first.keys()
    assert all(torch.equal(found["weights"][name], weight) for name, weight in first.items())
    expected = torch.load(place / "expected.pt")["texts"]
    torch.testing.assert_close(found["texts"], expected, rtol=1e-5, atol=1e-5)  # so activation and tokenizer are right
    assert found["prepared"]["interpolation"] == "bicubic" and found["prepared"]["resize_mode"] == "shortest"


def test_a_repository_goes_through_unchanged(open_clip_models):
    place = open_clip_models / "quick_gelu/repository"
    tokenizer = OpenClipOptions(processor=str(open_clip_models / "tokenizer"))
    export(load_dual_encoder(place, options=tokenizer), Path("out"), "open_clip")
    first, found = (json.loads((folder / "open_clip_config.json").read_text()) for folder in (place, Path("out")))
    first["model_cfg"]["text_cfg"]["mlp_ratio"] = 4.0  # its default
    assert found == first
    assert load_dual_encoder("out").fingerprint() == load_dual_encoder(place, options=tokenizer).fingerprint()


@pytest.fixture
def fused(clip_folder) -> Path:
    """The export of a LoRA run, merged."""
    encoder = load_dual_encoder(clip_folder)
    student = SDSCLIPModel(encoder.model, trainable="lora")
    with torch.no_grad():
        for name, weight in student.named_parameters():
            if ".lora_B." in name:
                weight.normal_(0, 0.5)
    student.export("fused", encoder.processor)
    return Path("fused")


def test_a_fused_lora_scores_the_same_in_every_form_that_is_read_here(fused, clip_folder):
    for form in ("open_clip", "transformers"):
        main([str(fused), "--format", form])
    for name, library in (("fused-open_clip", "open_clip"), ("fused-transformers", "transformers")):
        card = ModelCard.load(Path(name, "README.md"))
        assert card.data.to_dict()["library_name"] == library and "`fused` in the form of" in card.text
        assert FORMS[library].loading in card.text
    results = run("--model", clip_folder, fused, "fused-open_clip", "fused-transformers", "--benchmark", SHAPES)
    base, *scores = (results["benchmarks"][SHAPES]["scores"][name] for name in results["models"])
    assert scores[0] == scores[2] != base
    if (
        picture_backend(load_dual_encoder(fused).processor.image_processor) == "pil"
    ):  # by which open_clip's form is prepared
        assert scores[0] == scores[1]
    assert len({model["fingerprint"].partition("-")[0] for model in results["models"].values()}) == 2


def test_open_clip_reads_captions_by_a_tokenizer_of_the_model_s_own(fused, open_clip):
    main([str(fused), "--format", "open_clip"])
    code = LOAD.replace("3, 32, 32", "3, 16, 16")
    open_clip(code, "fused-open_clip", "found.pt", *WORDS)
    found, encoder = torch.load("found.pt"), load_dual_encoder(fused)
    for embeds, own in (
        (found["images"], encoder.embed_pixels({"pixel_values": found["pixels"]})),
        (found["texts"], embeds_of(encoder, WORDS)[1]),
    ):
        torch.testing.assert_close(torch.nn.functional.normalize(embeds, dim=-1), own, rtol=0, atol=1e-5)


SENTENCES = """
import sys, torch
from sentence_transformers import SentenceTransformer
folder, pictures, *captions = sys.argv[1:]
model = SentenceTransformer(folder)
images = model.encode(torch.load(pictures, weights_only=False), convert_to_tensor=True)
torch.save([images, model.encode(captions, convert_to_tensor=True)], "found.pt")
"""
COMPARED = """
images, captions = torch.as_tensor(images), torch.as_tensor(captions)
torch.save(images @ captions.T, "cosines.pt")
"""
SQUARES = ["a red square", "a blue square"]


def cosines(encoder: DualEncoder) -> torch.Tensor:
    """Of the picture and the captions that the lines which load an export have, as the card has them."""
    red = encoder.embed_pixels(encoder.preprocess([Image.new("RGB", (224, 224), "red")]))
    return red @ encoder.embed_tokens(encoder.tokenize(SQUARES)).T


def test_sentence_transformers_gives_the_same_embeddings(fused):
    main([str(fused), "--format", "sentence_transformers"])
    torch.save(PICTURES, "pictures.pt")
    lines = loading_lines("sentence_transformers", "fused-sentence_transformers")
    code = f"{SENTENCES}\n{lines}\n{COMPARED}"
    done = run_forked(code, "fused-sentence_transformers", "pictures.pt", *WORDS)
    assert done.returncode == 0, done.stderr[-3000:]
    torch.testing.assert_close(torch.load("cosines.pt"), cosines(load_dual_encoder(fused)), rtol=0, atol=1e-5)
    for found, own in zip(torch.load("found.pt"), embeds_of(load_dual_encoder(fused), WORDS), strict=True):
        torch.testing.assert_close(found, own, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", pytest.param("siglip", marks=pytest.mark.slow)])
def test_onnxruntime_gives_the_same_embeddings(kind):
    model, processor = make_dual_encoder(kind)
    for tower in (model.vision_model, model.text_model):
        tower.encoder.layers = tower.encoder.layers[:1]  # tracing takes seconds a layer
    encoder = DualEncoder(model, processor)
    export(encoder, Path("out"), "onnx")
    namespace = {"torch": torch}
    exec(f"{loading_lines('onnx', 'out')}\n{COMPARED}", namespace)
    torch.testing.assert_close(torch.load("cosines.pt"), cosines(encoder), rtol=0, atol=1e-5)
    images, texts = (onnxruntime.InferenceSession(f"out/{name}_model.onnx") for name in ("vision", "text"))
    for captions, pictures in ((WORDS, PICTURES), (WORDS[1:2], PICTURES[:1]), ([" ".join(WORDS * 4)] * 5, PICTURES)):
        pixels, ids = encoder.preprocess(pictures), encoder.reader(captions)
        taken = {one.name for one in texts.get_inputs()}
        (found,) = texts.run(["text_embeds"], {name: value.numpy() for name, value in ids.items() if name in taken})
        own = encoder.embed_tokens(encoder.tokenize(captions))
        torch.testing.assert_close(torch.from_numpy(found), own, rtol=0, atol=1e-5)
        (found,) = images.run(["image_embeds"], {name: value.numpy() for name, value in pixels.items()})
        torch.testing.assert_close(torch.from_numpy(found), encoder.embed_pixels(pixels), rtol=0, atol=1e-5)


# Bad input


def error_of(*words) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return str(stop.value.code)


def test_a_folder_that_holds_something_is_left_alone(clip_folder):
    Path("out").mkdir()
    Path("out/mine.txt").write_text("mine")
    told = error_of(clip_folder, "--format", "open_clip", "--output_dir", "out")
    assert told == "error: out holds something already; give --output_dir a new folder, or empty this one."
    assert [path.name for path in Path("out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("kind", "form", "told"),
    [
        ("siglip", "open_clip", "a SiglipModel has no counterpart in open_clip"),
        ("siglip", "sentence_transformers", "a SiglipModel has no counterpart in sentence-transformers' CLIP module"),
        ("siglip2", "onnx", "takes pixel_values, pixel_attention_mask, spatial_shapes of a picture"),
    ],
)
def test_models_that_a_form_has_not_are_told(kind, form, told):
    with pytest.raises(ValueError, match=told):
        export(DualEncoder(*make_dual_encoder(kind)), Path("out"), form)
    assert not any(Path("out").iterdir())


def act(model, processor):
    model.config.text_config.hidden_act = "gelu"


def epsilon(model, processor):
    model.config.vision_config.layer_norm_eps = 1e-6


def crop(model, processor):
    processor.image_processor.do_center_crop = False


def end(model, processor):
    processor.tokenizer.eos_token = "a"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (act, "activations of its towers are quick_gelu and gelu"),
        (epsilon, "layer_norm_eps of its towers is 1e-06 and 1e-05"),
        (crop, "pictures are resized to"),
        (end, "the tokenizer's end token is"),
    ],
)
def test_what_open_clip_does_not_compute_is_told(change, told):
    model, processor = make_dual_encoder("clip")
    change(model, processor)
    with pytest.raises(ValueError, match=told):
        export(DualEncoder(model, processor), Path("out"), "open_clip")


def test_what_writes_onnx_is_asked_for(clip_folder, monkeypatch):
    monkeypatch.setattr("sdsclip_hf.students.onnx_files.TOOLS", ("onnx", "no_such_tool"))
    told = error_of(clip_folder, "--format", "onnx", "--output_dir", "out")
    assert told == "error: --format onnx needs no_such_tool, which is not installed: pip install 'sdsclip_hf[onnx]'."
    assert set(FORMS) == {"transformers", "open_clip", "sentence_transformers", "onnx"}
