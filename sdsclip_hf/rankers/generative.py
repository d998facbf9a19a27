"""A generative vision-language model as a ranker: how likely it finds "Yes" to a question, or the caption itself."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from sdsclip_hf.rankers.pair_ranker import PairRanker
from sdsclip_hf.students.kinds import inference


class GenerativeRanker(PairRanker):
    """log P(answer | picture, question), summed over the answer's tokens, by the model's own chat template.

    Args:
        model, processor, name, revision, batch_size: see [`PairRanker`].
        question: what is asked, with ``{}`` where the caption goes; default: see ``QUESTION``.

    Raises:
        ValueError: the question has no place for the caption, the processor has no chat template, or the model is no
            decoder alone.
    """

    QUESTION: ClassVar[str]
    ANSWER: ClassVar[str]

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        name: str | Path,
        revision: str | None = None,
        batch_size: int = 8,
        question: str | None = None,
    ):
        super().__init__(model, processor, name, revision, batch_size)
        self.question = question or self.QUESTION
        if "{}" not in self.question + self.ANSWER:
            raise ValueError(
                f"the question {self.question!r} has no {{}} where the caption goes; mend --ranker_question, e.g. "
                f"{self.QUESTION!r}."
            )
        if "{}" in self.question and "{}" in self.ANSWER:
            raise ValueError(
                f"the question {self.question!r} has {{}} for the caption, which is the answer; mend --ranker_question, "
                f"e.g. {self.QUESTION!r}."
            )
        if not getattr(processor, "chat_template", None):
            raise ValueError(
                f"the processor of {self.name!r} has no chat template, by which the question is put; give a model made for "
                "chats, such as a LLaVA or a Qwen-VL."
            )
        if model.config.is_encoder_decoder:
            raise ValueError(
                f"{self.name!r} is a {type(model).__name__}, of an encoder and a decoder; give a model that reads the "
                "question and writes the answer by one decoder, such as a LLaVA or a Qwen-VL."
            )

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"question": self.question}

    def score_pairs(self, images: Sequence[Image.Image], captions: Sequence[str]) -> np.ndarray:
        """Captions behind padding would stand at other places, so padding goes behind them, where nothing looks at it."""
        chats = [self._chat(image, text) for image, text in zip(images, captions, strict=True)]
        found = []
        with inference(self.model):
            for start in range(0, len(chats), self.batch_size):
                found += self._log_likelihoods(chats[start : start + self.batch_size])
        return np.array(found, np.float32)

    def _chat(self, image: Image.Image, caption: str) -> list[dict]:
        """The question, and the answer that is looked at."""
        if not caption.strip() and "{}" in self.ANSWER:
            raise ValueError("a caption is empty, so that it has no likelihood; mend the row, or leave it out.")
        asked = {"type": "text", "text": self.question.replace("{}", caption)}
        answer = {"type": "text", "text": self.ANSWER.replace("{}", caption)}
        return [
            {"role": "user", "content": [{"type": "image", "image": image}, asked]},
            {"role": "assistant", "content": [answer]},
        ]

    def _answer_tokens(self, chat: list[dict]) -> list[int]:
        """The tokens of the answer as the template spells it: those that a question alone, to be answered, has not."""
        render, tokenizer = self.processor.apply_chat_template, self.processor.tokenizer
        whole, asked = (
            tokenizer(text, add_special_tokens=False).input_ids
            for text in (render(chat, continue_final_message=True), render(chat[:1], add_generation_prompt=True))
        )
        same = next((place for place, (a, b) in enumerate(zip(whole, asked, strict=False)) if a != b), len(asked))
        return whole[same:]

    def _log_likelihoods(self, chats: list[list[dict]]) -> list[float]:
        inputs = self.processor.apply_chat_template(
            chats,
            continue_final_message=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "right"},
        ).to(self.model.device, self.model.dtype)
        answers, ends = [self._answer_tokens(chat) for chat in chats], inputs["attention_mask"].sum(1).tolist()
        logits, first = self._logits(inputs, min(end - len(ids) for end, ids in zip(ends, answers, strict=True)) - 1)
        found = []
        for row, (ids, end) in enumerate(zip(answers, ends, strict=True)):
            start = end - len(ids)
            if not ids or inputs["input_ids"][row, start:end].tolist() != ids:
                raise ValueError(
                    f"the processor of {self.name!r} does not end a chat with its answer, so that the answer's likelihood "
                    "cannot be told; give another model."
                )
            each = logits[row, start - 1 - first : end - 1 - first].float().log_softmax(-1)
            found.append(each.gather(1, torch.tensor(ids, device=each.device)[:, None]).sum().item())
        return found

    def _logits(self, inputs: dict[str, Tensor], first: int) -> tuple[Tensor, int]:
        """Of the places from ``first`` on, where the model can leave others out, which take much memory; and the first."""
        whole = inputs["input_ids"].shape[1]
        some = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        logits = self.model(**inputs, **({"logits_to_keep": whole - first} if some else {})).logits
        return logits, whole - logits.shape[1]


class QuestionRanker(GenerativeRanker):
    """log P("Yes"), the form of VQAScore (Lin et al., arXiv 2404.01291, section 3).

    Args:
        model, processor, name, revision, batch_size, question: see [`GenerativeRanker`].

    Example:

    ```python
    from transformers import AutoImageProcessor, AutoTokenizer, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    from sdsclip_hf.rankers.generative import QuestionRanker
    from sdsclip_hf.shapes import load_shapes, model_path

    # A small model of random weights; load_ranker("llava-hf/llava-1.5-7b-hf") makes a ranker of a trained one.
    words = AutoTokenizer.from_pretrained(model_path("student"), extra_special_tokens={"image_token": "<image>"})
    pictures = AutoImageProcessor.from_pretrained(model_path("student"))
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = size | {"model_type": "llama", "vocab_size": len(words)}
    vision = size | {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8}
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=words.convert_tokens_to_ids("<image>"))
    chat = (
        "{{ bos_token }}{% for turn in messages %}{{ turn.role }}: {% for part in turn.content %}"
        "{{ '<image>' if part.type == 'image' else part.text }} {% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    processor = LlavaProcessor(pictures, words, 8, "default", chat, num_additional_image_tokens=1)

    ranker = QuestionRanker(LlavaForConditionalGeneration(config), processor, "a random LLaVA")
    image = load_shapes("test", per_scene=1)[0]["image"]
    (scores,) = ranker.scores([image], [["a red circle", "a blue square"]])
    print(scores.shape, (scores < 0).all())  # (2,) True
    ```
    """

    kind, QUESTION, ANSWER = "vlm", 'Does this figure show "{}"? Please answer yes or no.', "Yes"


class LikelihoodRanker(GenerativeRanker):
    """log P(caption | picture): what the model would describe the picture by.

    Args:
        model, processor, name, revision, batch_size, question: see [`GenerativeRanker`]; made as a [`QuestionRanker`] is.
    """

    kind, QUESTION, ANSWER = "vlm_caption", "Describe this picture in one sentence.", "{}"
