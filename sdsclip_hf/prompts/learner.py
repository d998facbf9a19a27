"""What all prompt learners share: a frozen CLIP, context vectors, classes that may change, logits and loss terms."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from sdsclip_hf.prompts.losses import class_logits
from sdsclip_hf.prompts.prompt_texts import PromptTexts, check_class_names, lay_out, spoken
from sdsclip_hf.prompts.settings import RANDOM, RANDOM_LENGTH, PromptSettings
from sdsclip_hf.prompts.spliced_text import SplicedText
from sdsclip_hf.students.kinds import logit_scale


class Seen(NamedTuple):
    """What the frozen image tower makes of B images.

    Args:
        pixel_values: of the images, (B, 3, H, W).
        embeds: unit length, (B, D).
        patches: of its last layer, (B, N, its width).
    """

    pixel_values: Tensor
    embeds: Tensor
    patches: Tensor


@dataclass
class PromptOutput(ModelOutput):
    """What one pass gives.

    Args:
        loss: the weighted sum of the terms, scalar; None without labels.
        logits: (B, C).
        terms: each before its weight, by name, scalars.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    terms: dict[str, Tensor] | None = None


def check_clip(model: nn.Module) -> None:
    """Raise ValueError unless a model is one whose prompts can be learned."""
    if not isinstance(model, CLIPModel):
        raise ValueError(
            f"a {type(model).__name__} cannot have learned prompts, since its text tower is not CLIP's; give a CLIPModel, "
            "such as openai/clip-vit-base-patch16."
        )


class PromptLearner(nn.Module):
    """A frozen CLIP that classifies by prompts with learned vectors in them; what trains is float32.

    A method gives ``contexts``, and ``extra_terms`` where its loss has more than the cross-entropy.

    Args:
        clip: is frozen, not copied.
        tokenizer: the one that goes with it.
        class_names: the classes, as they stand in prompts (underscores become spaces).
        settings: of the method.

    Raises:
        ValueError: the model is no CLIPModel, or classes or settings do not fit it.
    """

    of_image = False  # whether each image has prompts of its own
    may_be_class_specific = True
    needs_attributes = False

    def __init__(
        self,
        clip: CLIPModel,
        tokenizer: PreTrainedTokenizerBase,
        class_names: Sequence[str],
        settings: PromptSettings,
    ):
        super().__init__()
        check_clip(clip)
        if settings.class_specific and not self.may_be_class_specific:
            raise ValueError(
                f"class_specific has no meaning for {settings.method}, whose context hangs on the image; leave "
                "--class_specific out."
            )
        self.clip = clip.requires_grad_(False).eval()
        self.settings = settings
        self.text = SplicedText(clip, tokenizer, settings.prompt_chunk_size)
        self.trained_classes = check_class_names(class_names)
        self.context = nn.Parameter(self._first_context(len(self.trained_classes)))
        self._texts: PromptTexts | None = None
        self._kept: tuple[tuple, Tensor] | None = None
        self.set_classes(class_names)

    @property
    def vectors_in_prompt(self) -> int:
        """M, how many learned vectors stand in a prompt."""
        return self.context.shape[-2]

    def _first_context(self, classes: int) -> Tensor:
        """(M, d), or for class-specific contexts (C, M, d)."""
        settings, words = self.settings, None
        width = self.text.embedding.embedding_dim
        if settings.context_init != RANDOM:
            words = self.text.embed_words(settings.context_init)
            if settings.context_length not in (None, len(words)):
                raise ValueError(
                    f"context_init {settings.context_init!r} has {len(words)} tokens, and context_length is "
                    f"{settings.context_length}; leave --context_length out, or give --context_init random."
                )
        shape = (len(words) if words is not None else settings.context_length or RANDOM_LENGTH, width)
        shape = (classes, *shape) if settings.class_specific else shape
        return words.expand(shape).clone() if words is not None else nn.init.normal_(torch.empty(shape), std=0.02)

    def set_classes(self, class_names: Sequence[str]) -> None:
        """Classify among other classes from here on.

        Raises:
            ValueError: fewer than two, one twice, one too long, or not those that class-specific contexts were made for.
        """
        names = check_class_names(class_names)
        if self.settings.class_specific and names != self.trained_classes:
            raise ValueError(
                f"these prompts have a context for each of {len(self.trained_classes)} classes "
                f"({', '.join(self.trained_classes)[:100]}) and none for {', '.join(names)[:100]}; train without "
                "--class_specific to classify among others."
            )
        limit = self.text.reader.max_length
        position = self.settings.class_token_position
        self._texts = lay_out(self.text.tokenizer, names, self.vectors_in_prompt, position, limit)
        self.class_names, self._kept = names, None

    @contextmanager
    def for_classes(self, class_names: Sequence[str]) -> Iterator[None]:
        """[`set_classes`], and back afterwards."""
        before = self.class_names
        self.set_classes(class_names)
        try:
            yield
        finally:
            self.set_classes(before)

    def train(self, mode: bool = True) -> "PromptLearner":
        super().train(mode)
        self.clip.eval()
        return self

    def contexts(self, seen: Seen | None = None) -> Tensor:
        """The learned vectors of the prompts, (B or 1, C or 1, M, d); ``seen`` where the method is ``of_image``."""
        raise NotImplementedError

    def extra_terms(
        self, text_embeds: Tensor, contexts: Tensor, labels: Tensor, attributes: Sequence[str] | None
    ) -> dict[str, tuple[float, Tensor]]:
        """Name -> weight and term, beside the cross-entropy.

        Args:
            text_embeds: of the prompts, (B or 1, C, D).
            contexts: what [`contexts`] gave.
            labels: of the images, (B,).
            attributes: of the images, B words; None where there are none.
        """
        return {}

    @torch.no_grad()
    def look(self, pixel_values: Tensor) -> Seen:
        """One pass of B images, (B, 3, H, W), through the frozen image tower."""
        found = self.clip.get_image_features(pixel_values=pixel_values)
        embeds = F.normalize(found.pooler_output.float(), dim=-1)
        return Seen(pixel_values, embeds, found.last_hidden_state[:, 1:].float())

    def fixed_text_embeds(self) -> Tensor:
        """Unit-length features of the classes' prompts, (1, C, D); without gradient they are computed once.

        Raises:
            ValueError: the prompts hang on the image.
        """
        if self.of_image:
            raise ValueError(
                f"the prompts of {self.settings.method} hang on the image, so that classes have no features of their own; "
                "classify with PromptedCLIP, or take coop or kgcoop."
            )
        if torch.is_grad_enabled():
            return self._encode(self.contexts())
        state = tuple((one.data_ptr(), one._version) for one in self.trained_parameters().values())
        if self._kept is None or self._kept[0] != state:
            self._kept = state, self._encode(self.contexts())
        return self._kept[1]

    def hand_written(self) -> list[str]:
        """The prompts of the classes in plain words, by the template."""
        return [self.settings.template.replace("{}", spoken(name)) for name in self.class_names]

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, attributes: Sequence[str] | None = None
    ) -> PromptOutput:
        """Logits, and with labels the loss.

        Args:
            pixel_values: preprocessed images, (B, 3, H, W).
            labels: numbers of their classes, (B,).
            attributes: of the images, B words, for methods that learn from them.
        """
        seen = self.look(pixel_values)
        contexts = self.contexts(seen)
        texts = self._encode(contexts) if self.of_image else self.fixed_text_embeds()
        with torch.autocast(pixel_values.device.type, enabled=False):
            logits = class_logits(seen.embeds, texts, logit_scale(self.clip).float())
            if labels is None:
                return PromptOutput(logits=logits)
            terms = {"cross_entropy": (1.0, F.cross_entropy(logits, labels))}
            if self.training:
                terms |= self.extra_terms(texts, contexts, labels, attributes)
        loss = torch.stack([weight * term for weight, term in terms.values()]).sum()
        return PromptOutput(loss, logits, {name: term for name, (_, term) in terms.items()})

    def _encode(self, contexts: Tensor) -> Tensor:
        assert self._texts is not None
        self._texts = self._texts.to(contexts.device)
        return self.text(contexts, self._texts)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """What trains, by name: none of it is CLIP's."""
        return {name: one for name, one in self.named_parameters() if not name.startswith("clip.")}
