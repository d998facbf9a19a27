"""What decides a prompt learner, beside its CLIP and its classes; it is saved with the prompts."""

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from sdsclip_hf.config import knob
from sdsclip_hf.prompts.data.templates import DEFAULT, template_of

Position = Literal["end", "middle", "front"]
ContextAttention = Literal["plain", "residual", "none"]
AttributeSpace = Literal["token", "feature"]
POSITIONS, CONTEXT_ATTENTIONS, ATTRIBUTE_SPACES = map(get_args, (Position, ContextAttention, AttributeSpace))
RANDOM = "random"
RANDOM_LENGTH = 16  # as published for a context that begins at random


@dataclass
class PromptSettings:
    """The options of the methods.

    Raises:
        ValueError: a value outside its range.
    """

    method: str = knob("coop", "How prompts are learned: coop, cocoop, kgcoop or intcoop.")
    context_length: int | None = knob(
        None,
        "Context vectors M before, behind or around the class name; default: as many as the tokens of context_init, or 16 "
        "that begin at random.",
    )
    context_init: str = knob(
        "a photo of a", "Words that the context begins as, or random: each number drawn from N(0, 0.02)."
    )
    class_token_position: Position = knob("end", "Where the class name stands: at the end, middle or front.")
    class_specific: bool = knob(
        False,
        "A context for each class (coop, kgcoop); such prompts serve the classes that they were trained on alone.",
    )
    template: str = knob(
        DEFAULT,
        "The hand-written prompt, {} the class name: of zero-shot scores, of KgCoOp's term, of IntCoOp's L_reg. Its text, "
        "or the name of a dataset that has one, such as oxford_pets.",
    )
    prompt_chunk_size: int = knob(
        256, "Prompts that the text tower encodes at once; more are computed again in the backward pass."
    )
    knowledge_weight: float = knob(8.0, "KgCoOp: weight of 1 - cosine to the features of the hand-written prompts.")
    attribute_weight: float = knob(4.0, "IntCoOp: l1, weight of L_attr. The paper's value is not known here.")
    regularizer_weight: float = knob(4.0, "IntCoOp: l2, weight of L_reg. The paper's value is not known here.")
    attribute_space: AttributeSpace = knob(
        "token",
        "IntCoOp: what L_attr compares A(x) with: the mean of the attribute's token embeddings, or its text feature (where "
        "both spaces have one width). Which the paper takes is not known here.",
    )
    visual_tokens: int = knob(
        4, "IntCoOp: learned tokens beside the patches, in each layer that has some. Our reading."
    )
    visual_token_layers: int = knob(
        9, "IntCoOp: layers of the image tower that get such tokens, from the first; at most all. Our reading."
    )
    context_attention: ContextAttention = knob(
        "plain",
        "IntCoOp: how the context hangs on the image: the attention from the context to the patches (plain, our reading), "
        "that added to the context (residual), or not at all (none).",
    )

    def __post_init__(self):
        choices = {"class_token_position": POSITIONS, "context_attention": CONTEXT_ATTENTIONS}
        for name, known in (choices | {"attribute_space": ATTRIBUTE_SPACES}).items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; set --{name} to one of {', '.join(known)}.")
        for name in ("context_length", "prompt_chunk_size", "visual_tokens", "visual_token_layers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; set --{name} to 1 or more.")
        for name in ("knowledge_weight", "attribute_weight", "regularizer_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; set --{name} to zero or more.")
        self.template = template_of(self.template)

    def without_context(self) -> "PromptSettings":
        """For hand-written prompts, whose context is not looked at."""
        return PromptSettings(template=self.template, prompt_chunk_size=self.prompt_chunk_size)

    def to_dict_of_settings(self) -> dict[str, Any]:
        """These options alone, also of a subclass that has more."""
        return {entry.name: getattr(self, entry.name) for entry in fields(PromptSettings)}
