"""CLIP by hand-written prompts, as a learner that has nothing to learn: what the others are compared with."""

from torch import Tensor

from sdsclip_hf.prompts.coop import CoOp


class ZeroShot(CoOp):
    """[`CoOp`] whose classes are told by ``settings.template``."""

    def fixed_text_embeds(self) -> Tensor:
        """Unit-length features of the hand-written prompts, (1, C, D)."""
        return self.text.of_words(self.hand_written())[None]
