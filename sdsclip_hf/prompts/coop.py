"""CoOp: one context for all images (Zhou et al. 2022, arXiv 2109.01134)."""

from torch import Tensor

from sdsclip_hf.prompts.learner import PromptLearner, Seen


class CoOp(PromptLearner):
    """Context vectors V in the prompt "[V]...[V] NAME.", of all classes or of each; the loss is the cross-entropy."""

    def contexts(self, seen: Seen | None = None) -> Tensor:
        """(1, 1, M, d), or for class-specific contexts (1, C, M, d)."""
        return self.context[None] if self.settings.class_specific else self.context[None, None]
