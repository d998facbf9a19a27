"""What any tokenizer has to be before captions are given to it: whole, and no longer than the model reads."""

import json
from typing import Any

from transformers import PreTrainedTokenizerBase

UNKNOWN_LENGTH = 100_000  # transformers writes 1e30 where a tokenizer's files tell no length


def check_words(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError unless the tokenizer knows words: without its files it would read all captions as the same."""
    name = tokenizer.name_or_path or "the processor"
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise ValueError(f"the tokenizer of {name} knows no words; complete its files, such as tokenizer.json.")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model: dict[str, Any] = json.loads(backend.to_str())["model"] if backend is not None else {}
    if model.get("type") == "BPE" and not model["merges"]:
        special = set(tokenizer.all_special_tokens)
        if any(len(token.removesuffix("</w>")) > 1 for token in model["vocab"] if token not in special):
            raise ValueError(
                f"the tokenizer of {name} spells every word, since it has no merges; complete its files, such as merges.txt "
                "or tokenizer.json."
            )


def max_length(tokenizer: PreTrainedTokenizerBase, text_config: Any) -> int:
    """How many tokens of a caption are read: no more than the tokenizer gives, nor than the text tower has places for.

    Args:
        tokenizer: tells ``model_max_length``.
        text_config: of the text tower; tells ``max_position_embeddings`` where there is a bound.

    Raises:
        ValueError: neither tells it.
    """
    limits = (tokenizer.model_max_length, getattr(text_config, "max_position_embeddings", None))
    known = [int(limit) for limit in limits if limit and limit <= UNKNOWN_LENGTH]
    if not known:
        raise ValueError(
            f"neither the tokenizer of {tokenizer.name_or_path or 'the model'} nor its text tower tells how long a caption "
            "may be; put model_max_length into tokenizer_config.json."
        )
    return min(known)
