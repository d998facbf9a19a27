"""Class names to the token ids of their prompts, with places that learned vectors take."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sdsclip_hf.prompts.settings import Position


@dataclass(frozen=True)
class PromptTexts:
    """The prompts of C classes, as short as the longest of them allows.

    Args:
        input_ids: (C, L); a stand-in where a vector is put in, and behind the end.
        slots: (C, M), the places of the M vectors.
    """

    input_ids: Tensor
    slots: Tensor

    def to(self, device: torch.device) -> "PromptTexts":
        return PromptTexts(self.input_ids.to(device), self.slots.to(device))


def spoken(class_name: str) -> str:
    """A class name as prompts have it: spaces for underscores."""
    return class_name.replace("_", " ")


def tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a text, without those of its beginning and end."""
    return tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids


def lay_out(
    tokenizer: PreTrainedTokenizerBase,
    class_names: Sequence[str],
    vectors: int,
    position: Position = "end",
    max_length: int = 77,
) -> PromptTexts:
    """The prompts "[V]...[V] NAME." (end), "[V] NAME [V]." (middle) or "NAME [V]...[V]." (front), as CoOp has them.

    Args:
        tokenizer: CLIP's.
        class_names: C of them.
        vectors: M; in the middle the odd one stands behind the name.
        position: of the name.
        max_length: tokens that the text tower reads, beginning and end among them.

    Raises:
        ValueError: a prompt is longer than that.
    """
    begin, end = tokenizer("").input_ids  # what every text has
    dot = tokens(tokenizer, ".")
    rows, slots = [], []
    for name in class_names:
        ids = tokens(tokenizer, spoken(name))
        before = {"end": vectors, "middle": vectors // 2, "front": 0}[position]
        rows.append([begin, *[begin] * before, *ids, *[begin] * (vectors - before), *dot, end])
        behind = range(1 + before + len(ids), 1 + len(ids) + vectors)
        slots.append([*range(1, 1 + before), *behind])
        if len(rows[-1]) > max_length:
            raise ValueError(
                f"the class name {name!r:.100} has {len(ids)} tokens, which with {vectors} learned vectors makes a prompt "
                f"of {len(rows[-1])}; the text tower reads {max_length}. Shorten the name, or lower --context_length."
            )
    longest = max(map(len, rows))
    # The beginning's id is lower than the end's, which the text tower finds as the highest or the first of its kind.
    padded = [row + [begin] * (longest - len(row)) for row in rows]
    return PromptTexts(torch.tensor(padded), torch.tensor(slots))


def check_class_names(class_names: Sequence[str]) -> list[str]:
    """The names as a list.

    Raises:
        ValueError: there are fewer than two, or two prompts would be the same, or one has no name in it.
    """
    names = list(class_names)
    if len(names) < 2:
        raise ValueError(
            f"there is {len(names)} class ({', '.join(names)}), and nothing to tell it from; give two classes or more."
        )
    twice = [name for name, count in Counter(map(spoken, names)).items() if count > 1]
    if twice:
        raise ValueError(
            f"the class name {twice[0]!r:.100} stands twice among the classes; give each class a name of its own."
        )
    empty = [place for place, name in enumerate(names) if not name.strip("_ ")]
    if empty:
        raise ValueError(f"class {empty[0]} has the name {names[empty[0]]!r}; give each class a name of words.")
    return names
