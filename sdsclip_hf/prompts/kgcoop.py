"""KgCoOp: CoOp whose prompts stay near hand-written ones (Yao et al. 2023, arXiv 2303.13283)."""

from collections.abc import Sequence

from torch import Tensor

from sdsclip_hf.prompts.coop import CoOp
from sdsclip_hf.prompts.losses import knowledge_loss


class KgCoOp(CoOp):
    """[`CoOp`] with w (1 - mean cosine to the features of the hand-written prompts), w = 8."""

    def extra_terms(
        self, text_embeds: Tensor, contexts: Tensor, labels: Tensor, attributes: Sequence[str] | None
    ) -> dict[str, tuple[float, Tensor]]:
        term = knowledge_loss(text_embeds[0], self.text.of_words(self.hand_written()))
        return {"knowledge": (self.settings.knowledge_weight, term)}
