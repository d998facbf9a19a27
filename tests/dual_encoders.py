"""Tiny random dual encoders of all kinds that can be students, with their processors."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from conftest import WORDS, make_clip, make_processor, make_tokenizer, text_config
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    Aimv2Config,
    Aimv2Model,
    AlignConfig,
    AlignModel,
    AlignProcessor,
    AltCLIPConfig,
    AltCLIPModel,
    AltCLIPProcessor,
    BertConfig,
    BertTokenizer,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    ChineseCLIPProcessor,
    CLIPImageProcessorPil,
    CLIPProcessor,
    EfficientNetImageProcessorPil,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    Siglip2Processor,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
    Tipsv2Config,
    Tipsv2Model,
    Tipsv2Processor,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
    ViTConfig,
)

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TOWER, "image_size": 16, "patch_size": 8}
SIZE = {"height": 16, "width": 16}
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


def clip_pictures() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=SIZE)


def clip():
    return make_clip(), make_processor()


def metaclip2():
    tokenizer = make_tokenizer(20)
    text = text_config(tokenizer, 20).to_dict()
    model = MetaClip2Model(MetaClip2Config(text_config=text, vision_config=VISION, projection_dim=12))
    return model, CLIPProcessor(clip_pictures(), tokenizer)


def chinese_clip():
    text = {**TOWER, "vocab_size": len(BERT_VOCABULARY), "max_position_embeddings": 20}
    model = ChineseCLIPModel(ChineseCLIPConfig(text_config=text, vision_config=VISION, projection_dim=12))
    return model, ChineseCLIPProcessor(clip_pictures(), bert_tokenizer())


def altclip():
    text = {**TOWER, "vocab_size": 20, "max_position_embeddings": 24, "project_dim": 12, "pad_token_id": 0}
    text |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = AltCLIPModel(AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=12))
    return model, AltCLIPProcessor(clip_pictures(), word_tokenizer("<pad>", 20, ["input_ids", "attention_mask"]))


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


def vision_text():
    text = BertConfig(**TOWER, vocab_size=len(BERT_VOCABULARY), max_position_embeddings=20)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(ViTConfig(**VISION), text, projection_dim=12)
    return VisionTextDualEncoderModel(config), VisionTextDualEncoderProcessor(clip_pictures(), bert_tokenizer())


def tipsv2():
    text = {**TOWER, "vocab_size": 20, "max_position_embeddings": 20}
    model = Tipsv2Model(Tipsv2Config(text_config=text, vision_config={**VISION, "mlp_ratio": 2}))
    return model, Tipsv2Processor(clip_pictures(), word_tokenizer("<pad>", 20, ["input_ids", "attention_mask"]))


def aimv2():
    tokenizer = make_tokenizer(20)
    text = {
        **TOWER,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 20,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {**VISION, "use_head": True}
    model = Aimv2Model(Aimv2Config(text_config=text, vision_config=vision, projection_dim=12))
    return model, CLIPProcessor(clip_pictures(), tokenizer)


class Kind(NamedTuple):
    """One architecture.

    Args:
        make: a random model and its processor.
        reads_padding: whether padding changes its captions' embeddings.
        options: what its processor has to be told.
    """

    make: Callable[[], tuple[PreTrainedModel, ProcessorMixin]]
    reads_padding: bool = False
    options: Mapping = MappingProxyType({})


KINDS = {
    "clip": Kind(clip),
    "metaclip2": Kind(metaclip2),
    "chinese_clip": Kind(chinese_clip),
    "altclip": Kind(altclip),
    "align": Kind(align),
    "siglip": Kind(siglip, True),
    "siglip2": Kind(siglip2, True, {"patch_size": 8, "max_num_patches": 16}),
    "vision_text": Kind(vision_text),
    "tipsv2": Kind(tipsv2),
    "aimv2": Kind(aimv2, True),
}


STUDENTS = [kind for kind in KINDS if kind != "align"]  # which has batch norms


@torch.no_grad()
def make_dual_encoder(kind: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A random model with its processor, none of its weights zero: what is multiplied by zero could be anything."""
    model, processor = KINDS[kind].make()
    for parameter in model.parameters():
        if parameter.isnan().any() or not parameter.any():
            parameter.normal_(0, 0.02)
    return model.eval(), processor
