"""The methods by name."""

from collections.abc import Sequence

from transformers import CLIPModel, PreTrainedTokenizerBase

from sdsclip_hf.prompts.cocoop import CoCoOp
from sdsclip_hf.prompts.coop import CoOp
from sdsclip_hf.prompts.intcoop import IntCoOp
from sdsclip_hf.prompts.kgcoop import KgCoOp
from sdsclip_hf.prompts.learner import PromptLearner
from sdsclip_hf.prompts.settings import PromptSettings

METHODS: dict[str, type[PromptLearner]] = {"coop": CoOp, "cocoop": CoCoOp, "kgcoop": KgCoOp, "intcoop": IntCoOp}
LABELS = {"coop": "CoOp", "cocoop": "CoCoOp", "kgcoop": "KgCoOp", "intcoop": "IntCoOp"}


def method_of(name: str) -> type[PromptLearner]:
    """The class of a method.

    Raises:
        ValueError: there is no such method.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; set --method to one of {', '.join(METHODS)}.")
    return METHODS[name]


def make_learner(
    clip: CLIPModel, tokenizer: PreTrainedTokenizerBase, class_names: Sequence[str], settings: PromptSettings
) -> PromptLearner:
    """The prompt learner that the settings ask for; see [`PromptLearner`].

    Raises:
        ValueError: there is no such method, or classes or settings do not fit the model.
    """
    return method_of(settings.method)(clip, tokenizer, class_names, settings)
