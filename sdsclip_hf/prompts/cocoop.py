"""CoCoOp: a context that a small net shifts for each image (Zhou et al. 2022, arXiv 2203.05557)."""

import torch
from torch import Tensor, nn

from sdsclip_hf.prompts.learner import PromptLearner, Seen


class CoCoOp(PromptLearner):
    """Context vectors V + pi(x): one shift for all of them, Linear(D, D/16), ReLU, Linear(D/16, d) of the image's feature.

    Each image has prompts of its own: of B images and C classes B x C go through the text tower.
    """

    of_image = True
    may_be_class_specific = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        width = self.clip.config.projection_dim
        hidden = max(1, width // 16)
        self.meta_net = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, self.context.shape[-1]))

    def contexts(self, seen: Seen) -> Tensor:
        """(B, 1, M, d)"""
        with torch.autocast(seen.embeds.device.type, enabled=False):
            return (self.context + self.meta_net(seen.embeds)[:, None])[:, None]
