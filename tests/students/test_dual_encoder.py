"""Dual encoders of several architectures, saved and loaded as users do it, against the models' own forward passes."""

import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import hub_env, make_clip, make_processor, make_rows, make_tokenizer, text_config
from dual_encoders import KINDS, TOWER, make_dual_encoder
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoProcessor, BertConfig, BertModel, CLIPModel, CLIPTextModel

from sdsclip_hf.shapes import model_path
from sdsclip_hf.students.dual_encoder import DualEncoder, load_dual_encoder

pytestmark = pytest.mark.filterwarnings("ignore")
CAPTIONS = ["a red cat", "dog", "a photo of a blue chair on a mat"]


@pytest.fixture(scope="module")
def images():
    return [row["image"] for row in make_rows(3)]


@pytest.fixture(params=KINDS)
def saved(request, tmp_path):
    """(name, the model, its folder, whether it reads its padding, its processor's options)."""
    model, processor = make_dual_encoder(request.param)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    return request.param, model, tmp_path, KINDS[request.param].reads_padding, KINDS[request.param].options


def embed(encoder: DualEncoder, images, captions):
    return encoder.embed_pixels(encoder.preprocess(images)), encoder.embed_tokens(encoder.tokenize(captions))


def test_embeddings_equal_the_model_s_forward_pass(saved, images):
    name, model, folder, reads_padding, options = saved
    encoder = load_dual_encoder(folder)
    assert type(encoder.model) is type(model)
    found = embed(encoder, images, CAPTIONS)
    processor = AutoProcessor.from_pretrained(folder)
    lengths = {"siglip": 12, "siglip2": 12}
    text = {"padding": "max_length", "max_length": lengths.get(name, 20), "truncation": True}
    inputs = processor(text=CAPTIONS, images=images, return_tensors="pt", **text, **options)
    with torch.no_grad():
        output = model(**inputs)
    for ours, theirs in zip(found, (output.image_embeds, output.text_embeds), strict=True):
        torch.testing.assert_close(ours, F.normalize(theirs, dim=-1), rtol=0, atol=1e-6)
        torch.testing.assert_close(ours.norm(dim=1), torch.ones(3))
    assert encoder.reader.to_full_length == reads_padding
    if reads_padding:  # or the test above would not tell the two ways of padding apart
        short = model.get_text_features(torch.tensor([encoder.tokenize(["dog"])[0]]))
        short = F.normalize(short.pooler_output, dim=-1)
        assert (short - found[1][1:2]).abs().max() > 1e-3


def test_captions_are_cut_at_what_the_text_tower_reads(saved):
    _, _, folder, _, _ = saved
    encoder = load_dual_encoder(folder)
    (ids,) = encoder.tokenize(["red " * 60])
    limit = getattr(encoder.model.config.text_config, "max_position_embeddings", 20)
    assert len(ids) == min(limit, encoder.processor.tokenizer.model_max_length)
    assert encoder.embed_tokens([ids]).isfinite().all()


def test_a_caption_s_embedding_does_not_hang_on_its_neighbours(saved):
    encoder = load_dual_encoder(saved[2])
    together = encoder.embed_tokens(encoder.tokenize(CAPTIONS))
    for caption, row in zip(CAPTIONS, together, strict=True):
        torch.testing.assert_close(encoder.embed_tokens(encoder.tokenize([caption]))[0], row, rtol=0, atol=1e-6)


def test_scores_by_other_roundings_of_pictures_have_another_fingerprint(clip_folder, monkeypatch):
    encoder = load_dual_encoder(clip_folder)
    before = encoder.fingerprint()
    images = encoder.processor.image_processor
    other = "pil" if getattr(images, "backend", None) == "torchvision" else "torchvision"
    monkeypatch.setattr(type(images), "backend", other, raising=False)
    assert encoder.fingerprint() != before


def test_bundled_student_is_loaded_by_its_name():
    encoder = load_dual_encoder("shapes/student")
    expected = CLIPModel.from_pretrained(model_path("student")).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in encoder.model.state_dict().items())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "auto"])
def test_weights_take_the_dtype_and_embeddings_are_float32(clip_folder, images, dtype):
    encoder = load_dual_encoder(clip_folder, dtype=dtype)
    assert encoder.model.dtype == getattr(torch, "float32" if dtype == "auto" else dtype)
    for ours, exact in zip(
        embed(encoder, images, CAPTIONS), embed(load_dual_encoder(clip_folder), images, CAPTIONS), strict=True
    ):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.norm(dim=1), torch.ones(3))
        assert (ours - exact).abs().max() < {"float16": 5e-3, "bfloat16": 5e-2}.get(dtype, 1e-6)


# Adapters


@pytest.fixture
def adapter(clip_folder, tmp_path):
    """A LoRA adapter with weights of its own, and the unmerged model."""
    torch.manual_seed(5)
    config = LoraConfig(r=2, target_modules=["q_proj", "fc1", "visual_projection"], init_lora_weights=False)
    model = get_peft_model(CLIPModel.from_pretrained(clip_folder), config).eval()
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", model


def test_adapter_scores_as_the_unmerged_model(adapter, clip_folder, images):
    folder, model = adapter
    encoder = load_dual_encoder(folder)
    assert isinstance(encoder.model, CLIPModel) and not isinstance(encoder.model, PeftModel)
    inputs = make_processor()(text=CAPTIONS, images=images, return_tensors="pt", padding=True)
    with torch.no_grad():
        output = model(**inputs)
    found = embed(encoder, images, CAPTIONS)
    for ours, theirs in zip(found, (output.image_embeds, output.text_embeds), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    for ours, base in zip(found, embed(load_dual_encoder(clip_folder), images, CAPTIONS), strict=True):
        assert (ours - base).abs().max() > 1e-3


def test_adapter_that_names_no_base_is_refused(adapter):
    folder, _ = adapter
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(OSError, match=rf"{folder}.*names no base model"):
        load_dual_encoder(folder)


def test_adapter_whose_base_is_gone_is_refused_with_both_names(adapter):
    folder, _ = adapter
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "nobody/base"}')
    with pytest.raises(OSError, match=rf"{folder}.*nobody/base"):
        load_dual_encoder(folder)


# What is no dual encoder


@pytest.mark.parametrize("with_tokenizer", [True, False])
@pytest.mark.parametrize("kind", ["BertModel", "CLIPTextModel"])
def test_other_models_are_refused_by_their_class(tmp_path, kind, with_tokenizer):
    tokenizer = make_tokenizer(20)
    bert = BertModel(BertConfig(**TOWER, vocab_size=len(tokenizer)))
    model = bert if kind == "BertModel" else CLIPTextModel(text_config(tokenizer, 20))
    model.save_pretrained(tmp_path)
    if with_tokenizer:
        tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"a {kind} does not embed images and captions.*such as CLIP or SigLIP"):
        load_dual_encoder(tmp_path)


def test_folder_without_a_tokenizer_is_refused(tmp_path):
    """transformers makes a CLIPTokenizer without words then, to which all captions are one."""
    make_clip().save_pretrained(tmp_path)
    make_processor().image_processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"tokenizer of {tmp_path} knows no words"):
        load_dual_encoder(tmp_path)


def test_folder_without_an_image_processor_is_refused(tmp_path):
    make_clip().save_pretrained(tmp_path)
    make_tokenizer(20).save_pretrained(tmp_path)
    with pytest.raises(OSError, match=rf"could not load the model '{tmp_path}'.*image processor"):
        load_dual_encoder(tmp_path)


def test_tokenizer_in_place_of_a_processor_is_refused():
    with pytest.raises(ValueError, match=r"a CLIPTokenizer is no processor"):
        DualEncoder(make_clip(), make_tokenizer(20))


@pytest.mark.parametrize("name", ["no/such-model", "no/such/folder", "nothing"])
def test_model_that_is_nowhere_is_refused_with_the_option(name):
    with pytest.raises(OSError, match=rf"could not load the model '{name}': there is no such folder.*--model"):
        load_dual_encoder(name)


def test_folder_without_a_configuration_is_refused_by_its_name(tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path}.*config\.json"):
        load_dual_encoder(tmp_path)


def test_folder_without_weights_is_refused_by_its_name(tmp_path):
    make_clip().config.save_pretrained(tmp_path)
    make_processor().save_pretrained(tmp_path)
    with pytest.raises(OSError, match=rf"could not load the model '{tmp_path}'.*model\.safetensors"):
        load_dual_encoder(tmp_path)


@pytest.mark.slow
def test_adapter_on_the_hub_scores_as_in_a_folder(adapter, clip_folder, hub):
    folder, _ = adapter
    repository = hub.root / "models" / "org" / "adapter"
    repository.parent.mkdir(parents=True)
    folder.rename(repository)
    code = f"""
import torch
from sdsclip_hf.students.dual_encoder import load_dual_encoder
names = "org/adapter", {str(repository)!r}, {clip_folder!r}
embeds = [load_dual_encoder(name).embed_tokens([[3, 4, 5]]) for name in names]
print(torch.equal(embeds[0], embeds[1]), torch.equal(embeds[0], embeds[2]))
"""
    found = subprocess.run([sys.executable, "-c", code], env=hub_env(hub), capture_output=True, text=True)
    assert found.stdout.split() == ["True", "False"], found.stderr


def test_truncated_weights_are_an_error_of_one_line(clip_folder, tmp_path):
    shutil.copytree(clip_folder, tmp_path / "clip")
    weights = tmp_path / "clip" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(OSError, match="exists, but what is in it could not be loaded"):
        load_dual_encoder(tmp_path / "clip")
