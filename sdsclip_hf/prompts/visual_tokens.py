"""Learned tokens beside the patches of a frozen image tower, in several of its layers (deep prompts)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel


class VisualTokens(nn.Module):
    """T tokens that stand behind the patches: appended before the first layer, and replaced before each further one.

    Args:
        layers: how many get tokens of their own, from the first; behind them the last ones are passed on.
        tokens: T.
        width: of the image tower.
    """

    def __init__(self, layers: int, tokens: int, width: int):
        super().__init__()
        self.tokens = nn.Parameter(nn.init.normal_(torch.empty(layers, tokens, width), std=0.02))

    @contextmanager
    def inside(self, vision_model: CLIPVisionModel) -> Iterator[None]:
        """Let the tower have the tokens; its pooled output stays that of the class token."""
        handles = [
            layer.register_forward_pre_hook(self._put_in(number))
            for number, layer in enumerate(vision_model.encoder.layers[: len(self.tokens)])
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _put_in(self, number: int):
        def put(_module, inputs: tuple):
            states: Tensor = inputs[0]
            if number:
                states = states[:, : -self.tokens.shape[1]]
            own = self.tokens[number].to(states.dtype).expand(len(states), -1, -1)
            return (torch.cat([states, own], dim=1), *inputs[1:])

        return put
