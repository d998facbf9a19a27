"""Who tells a picture's attribute: a model that answers a question about it, or a CLIP that picks from a list of words."""

import re
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import pipeline

from sdsclip_hf import shapes
from sdsclip_hf.common.checkpoints import fingerprint
from sdsclip_hf.common.errors import expand, explain_loading
from sdsclip_hf.prompts.data.templates import DEFAULT, template_of
from sdsclip_hf.students.kinds import caption_reader, image_features, text_features
from sdsclip_hf.students.loading import load_clip

QUESTION = "Which one adjective describes the look of the {} best? Answer with one word."
ANSWER_TOKENS = 10
PRE_WORDS = re.compile(r"^(it is|it's|the|an?|answer:?)\s+", re.IGNORECASE)


class Describer(Protocol):
    """Tells attributes of pictures, and by ``settings`` what it is."""

    settings: dict[str, Any]

    def __call__(self, images: Sequence[Image.Image], class_names: Sequence[str]) -> list[str]:
        """An attribute of each picture, in small letters; empty where there is none."""
        ...


class Answers:
    """The answers of a model to a question about each picture, by transformers' pipeline ``image-text-to-text``.

    Args:
        model: a Hub id or folder of a model of that kind, such as BLIP-2, LLaVA or Qwen2-VL.
        question: with ``{}`` where the class name goes, if anywhere. Models without a chat template get it as
            "Question: ... Answer:", as BLIP-2 was made for.
        revision: branch, tag or commit of the model.
        max_words: how many words of an answer are kept.
        device, dtype: of the model; default: an accelerator if there is one, and the dtype that it is stored in.

    Raises:
        OSError: the model cannot be loaded.
        ValueError: ``max_words`` is below 1.

    Example:

    ```python
    from sdsclip_hf.prompts.data.attributes import describe
    from sdsclip_hf.prompts.data.describers import Answers

    def describe_colors(dataset, folder):  # downloads a model of gigabytes where it is called
        answers = Answers("Salesforce/blip2-opt-2.7b", question="What color is the {}?", max_words=1)
        return describe(dataset, answers, folder, name="pets", split="train")
    ```
    """

    def __init__(
        self,
        model: str,
        question: str = QUESTION,
        revision: str | None = None,
        max_words: int = 2,
        device: str | None = None,
        dtype: str = "auto",
    ):
        if max_words < 1:
            raise ValueError(f"max_words is {max_words}; an attribute has at least 1 word. Raise --max_words.")
        with explain_loading("the model that answers", model, "--model_name_or_path"):
            self.pipe = pipeline(
                "image-text-to-text", model=expand(model), revision=revision, device=device, dtype=dtype
            )
        self.question, self.max_words = question, max_words
        self.settings = {
            "kind": "answers",
            "model": model,
            "fingerprint": fingerprint(self.pipe.model),
            "question": question,
            "max_words": max_words,
        }

    def __call__(self, images: Sequence[Image.Image], class_names: Sequence[str]) -> list[str]:
        questions = [self.question.replace("{}", name) for name in class_names]
        asked = {"return_full_text": False, "generate_kwargs": {"max_new_tokens": ANSWER_TOKENS, "do_sample": False}}
        if getattr(self.pipe.processor, "chat_template", None):
            chats = [
                [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
                for image, question in zip(images, questions, strict=True)
            ]
            found = [self.pipe(text=chat, **asked)[0] for chat in chats]
        else:
            found = [
                self.pipe(images=image, text=f"Question: {question} Answer:", **asked)[0]
                for image, question in zip(images, questions, strict=True)
            ]
        return [clean(answer["generated_text"], self.max_words) for answer in found]


def clean(answer: str, max_words: int) -> str:
    """The first words of an answer's first line, in small letters and without what stands around them."""
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    text = re.sub(r"[^\w\s'-]", " ", re.split(r"[.,;!?]", lines[0])[0]) if lines else ""
    text = PRE_WORDS.sub("", " ".join(text.lower().split()) + " ")
    return " ".join(text.split()[:max_words])


class BestWords:
    """For each picture the word that fits its class best for a CLIP: "a photo of a red circle" before "a green circle".

    Args:
        model: a CLIP; a Hub id or folder.
        words: to pick from.
        template: the prompt, with ``{}`` where word and class go.

    Raises:
        OSError: the model cannot be loaded.
        ValueError: there are fewer than two words, or the template has no place.

    Example:

    ```python
    from sdsclip_hf.prompts.data.describers import BestWords
    from sdsclip_hf.prompts.data.shapes import load_labelled_shapes

    picture = load_labelled_shapes("validation", per_class=3)[2]["image"]  # a blue circle and a square
    colors = BestWords("shapes/student", ["red", "green", "blue"])
    print(colors([picture], ["circle and square"]))  # ['blue']
    ```
    """

    def __init__(self, model: str, words: Sequence[str], template: str = DEFAULT):
        self.words = [word.strip() for word in dict.fromkeys(words) if word.strip()]
        if len(self.words) < 2:
            raise ValueError(
                f"there {'is 1 word' if self.words else 'are no words'} to pick an attribute from; give two or more to "
                "--words."
            )
        self.template = template_of(template)
        clip, self.processor = load_clip(shapes.resolve(model))
        self.clip = clip.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.read = caption_reader(self.clip, self.processor.tokenizer)
        self.settings = {
            "kind": "best words",
            "model": model,
            "fingerprint": fingerprint(self.clip),
            "words": self.words,
            "template": self.template,
        }
        self._texts: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], class_names: Sequence[str]) -> list[str]:
        pixels = self.processor.image_processor(list(images), return_tensors="pt").to(self.clip.device)
        seen = F.normalize(image_features(self.clip, pixels), dim=-1)
        best = [int((self._texts_of(name) @ one).argmax()) for one, name in zip(seen, class_names, strict=True)]
        return [self.words[place] for place in best]

    def _texts_of(self, class_name: str) -> torch.Tensor:
        """Unit-length features of a class with each of the words, (W, D)."""
        if class_name not in self._texts:
            told = self.read([self.template.replace("{}", f"{word} {class_name}") for word in self.words])
            inputs = {name: value.to(self.clip.device) for name, value in told.items()}
            self._texts[class_name] = F.normalize(text_features(self.clip, **inputs), dim=-1)
        return self._texts[class_name]
