"""What transformers reads of a batch's numbers in a pass, for which a GPU would have to be waited for, left unread."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor
from transformers import masking_utils

UNCHECKED = "TRANSFORMERS_DISABLE_TORCH_CHECK"  # transformers' own switch; sizes of NaFlex pictures are then believed
LOOKS = ("_ignore_bidirectional_mask_sdpa", "_ignore_causal_mask_sdpa")  # whether a mask could be left out


@contextmanager
def numbers_unread() -> Iterator[None]:
    """Have attention masks used as they are given, without a look at what they hold, and leave sizes unchecked from here on.

    The results are the same: a mask that hides nothing only keeps attention from faster kernels, so leave it out before.
    In a transformers whose masks are made otherwise nothing changes.
    """
    os.environ.setdefault(UNCHECKED, "1")  # for good: other threads may read the environment while it changes
    looks = {name: getattr(masking_utils, name) for name in LOOKS if hasattr(masking_utils, name)}
    try:
        for name, look in looks.items():
            setattr(masking_utils, name, _unread(look))
        yield
    finally:
        for name, look in looks.items():
            setattr(masking_utils, name, look)


def _unread(look: Callable[..., bool]) -> Callable[..., bool]:
    """Whether a mask may be left out: as ``look`` says where there is none, else no."""

    def answer(padding_mask: Tensor | None, *args, **kwargs) -> bool:
        return padding_mask is None and look(padding_mask, *args, **kwargs)

    return answer
