"""Tiny random models of the kinds that rank captions, in folders as save_pretrained writes them."""

from pathlib import Path

import torch
from dual_encoders import BERT_VOCABULARY, TOWER, VISION, bert_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertModel,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPImageProcessorPil,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

SIZE = {"height": 16, "width": 16}
SENTENCES = [
    "USER: ASSISTANT: Yes Describe this picture in one sentence. Does this figure show? Please answer yes or no.",
    "a photo of a red cat on a blue mat, a dog, a chair",
]
# LLaVA 1.5's and Gemma 3's own templates say the same.
LLAVA_CHAT = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}"
    "{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
GEMMA_CHAT = (
    "<bos>{% for message in messages %}<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<start_of_image>{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def tokenizer(specials: list[str], **options) -> PreTrainedTokenizerFast:
    """Byte pairs with the pieces that the templates need."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<pad>", *specials]
    )
    inner.train_from_iterator(SENTENCES * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", padding_side="left", **options)


def saved(model: PreTrainedModel, processor, folder: Path) -> str:
    """The folder, of a model whose weights are large enough to tell captions apart."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def blip(folder: Path, of_class: type = BlipForImageTextRetrieval) -> str:
    text = {**TOWER, "vocab_size": len(BERT_VOCABULARY), "max_position_embeddings": 20, "encoder_hidden_size": 16}
    text |= {"pad_token_id": 0, "bos_token_id": 2, "sep_token_id": 3}
    config = BlipConfig(text_config=text, vision_config=VISION, image_text_hidden_size=8)
    return saved(of_class(config), BlipProcessor(BlipImageProcessorPil(size=SIZE), bert_tokenizer()), folder)


def captioner(folder: Path) -> str:
    return blip(folder, BlipForConditionalGeneration)


def bert(folder: Path) -> str:
    return saved(BertModel(BertConfig(**TOWER, vocab_size=len(BERT_VOCABULARY))), bert_tokenizer(), folder)


def llava(folder: Path) -> str:
    words = tokenizer(["<image>"])
    text = {**TOWER, "model_type": "llama", "num_key_value_heads": 2, "vocab_size": len(words)}
    vision = VISION | {"model_type": "clip_vision_model", "projection_dim": 12}
    config = LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=words.convert_tokens_to_ids("<image>")
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=SIZE)
    processor = LlavaProcessor(
        images, words, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=LLAVA_CHAT,
    )  # fmt: skip
    return saved(LlavaForConditionalGeneration(config), processor, folder)


def gemma3(folder: Path) -> str:
    """Its picture tokens look at one another, and its text tokens back alone; some layers see a window."""
    marks = {"boi": "<start_of_image>", "eoi": "<end_of_image>", "image": "<image_soft_token>"}
    named = {f"{name}_token": mark for name, mark in marks.items()}
    words = tokenizer(["<bos>", *marks.values()], bos_token="<bos>", extra_special_tokens=named)
    ids = {f"{name}_token_index": words.convert_tokens_to_ids(mark) for name, mark in marks.items()}
    text = {**TOWER, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": len(words)}
    text |= {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
    config = Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4, **ids)
    processor = Gemma3Processor(Gemma3ImageProcessorPil(size=SIZE), words, image_seq_length=4, chat_template=GEMMA_CHAT)
    return saved(Gemma3ForConditionalGeneration(config), processor, folder)
