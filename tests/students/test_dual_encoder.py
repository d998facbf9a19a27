"""Dual encoders of several architectures, saved and loaded as users do it, against the models' own forward passes."""

import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import WORDS, hub_env, make_clip, make_processor, make_rows, make_tokenizer, text_config
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AlignConfig,
    AlignModel,
    AlignProcessor,
    AltCLIPConfig,
    AltCLIPModel,
    AltCLIPProcessor,
    AutoProcessor,
    BertConfig,
    BertModel,
    BertTokenizer,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    ChineseCLIPProcessor,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextModel,
    EfficientNetImageProcessorPil,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    Siglip2Processor,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
)

from sdsclip_hf.shapes import model_path
from sdsclip_hf.students.dual_encoder import DualEncoder, load_dual_encoder

pytestmark = pytest.mark.filterwarnings("ignore")
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TOWER, "image_size": 16, "patch_size": 8}
SIZE = {"height": 16, "width": 16}
CAPTIONS = ["a red cat", "dog", "a photo of a blue chair on a mat"]
BERT_VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


def word_tokenizer(pad: str, length: int, inputs: list[str]) -> PreTrainedTokenizerFast:
    """Whole words with an end token, as SigLIP's and XLM-R's do it."""
    vocabulary = ["<pad>", "</s>", "<unk>", *WORDS]
    inner = Tokenizer(models.WordLevel({word: row for row, word in enumerate(vocabulary)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=pad,
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=length,
        model_input_names=inputs,
    )


def bert_tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={word: row for row, word in enumerate(BERT_VOCABULARY)}, model_max_length=20)


def clip():
    return make_clip(), make_processor()


def metaclip2():
    tokenizer = make_tokenizer(20)
    text = text_config(tokenizer, 20).to_dict()
    model = MetaClip2Model(MetaClip2Config(text_config=text, vision_config=VISION, projection_dim=12))
    return model, CLIPProcessor(CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=SIZE), tokenizer)


def chinese_clip():
    text = {**TOWER, "vocab_size": len(BERT_VOCABULARY), "max_position_embeddings": 20}
    model = ChineseCLIPModel(ChineseCLIPConfig(text_config=text, vision_config=VISION, projection_dim=12))
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=SIZE)
    return model, ChineseCLIPProcessor(images, bert_tokenizer())


def altclip():
    text = {**TOWER, "vocab_size": 20, "max_position_embeddings": 24, "project_dim": 12, "pad_token_id": 0}
    model = AltCLIPModel(AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=12))
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=SIZE)
    return model, AltCLIPProcessor(images, word_tokenizer("<pad>", 20, ["input_ids", "attention_mask"]))


def align():
    blocks = {"in_channels": [32, 16], "out_channels": [16, 24], "kernel_sizes": [3, 3], "strides": [1, 2]}
    blocks |= {"num_block_repeats": [1, 1], "expand_ratios": [1, 6], "depthwise_padding": []}
    vision = {**blocks, "image_size": 32, "width_coefficient": 1.0, "depth_coefficient": 1.0}
    text = {**TOWER, "vocab_size": len(BERT_VOCABULARY), "max_position_embeddings": 20}
    model = AlignModel(AlignConfig(text_config=text, vision_config=vision, projection_dim=24))
    return model, AlignProcessor(EfficientNetImageProcessorPil(size={"height": 32, "width": 32}), bert_tokenizer())


SIGLIP_TEXT = {**TOWER, "vocab_size": 20, "max_position_embeddings": 12, "pad_token_id": 1, "eos_token_id": 1}


def siglip():
    model = SiglipModel(SiglipConfig(text_config={**SIGLIP_TEXT, "bos_token_id": None}, vision_config=VISION))
    return model, SiglipProcessor(SiglipImageProcessorPil(size=SIZE), word_tokenizer("</s>", 12, ["input_ids"]))


def siglip2():
    vision = {**TOWER, "patch_size": 8, "num_patches": 16}
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Siglip2Tokenizer(
        vocab={token: row for row, token in enumerate(tokens)}, padding_side="right", model_input_names=["input_ids"]
    )
    text = {**SIGLIP_TEXT, "vocab_size": len(tokens), "bos_token_id": None, "pad_token_id": 0}
    model = Siglip2Model(Siglip2Config(text_config=text, vision_config=vision))
    images = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    return model, Siglip2Processor(images, tokenizer)


# each with whether padding changes its captions' embeddings, and what its processor has to be told
ARCHITECTURES = {
    "clip": (clip, False, {}),
    "metaclip2": (metaclip2, False, {}),
    "chinese_clip": (chinese_clip, False, {}),
    "altclip": (altclip, False, {}),
    "align": (align, False, {}),
    "siglip": (siglip, True, {}),
    "siglip2": (siglip2, True, {"patch_size": 8, "max_num_patches": 16}),
}


@pytest.fixture(scope="module")
def images():
    return [row["image"] for row in make_rows(3)]


@pytest.fixture(params=ARCHITECTURES)
def saved(request, tmp_path):
    """(name, the model, its folder, whether it reads its padding, its processor's options)."""
    make, reads_padding, options = ARCHITECTURES[request.param]
    model, processor = make()
    model.eval().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    return request.param, model, tmp_path, reads_padding, options


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
    assert encoder._pads_to_longest != reads_padding
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
