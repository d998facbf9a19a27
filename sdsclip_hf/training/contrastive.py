"""L_CLIP of a batch over all processes: what is gathered, and what is known to be no negative."""

import torch
import torch.distributed.nn
from accelerate import Accelerator
from torch import Tensor

from sdsclip_hf.common.processes import gather_ragged
from sdsclip_hf.config import SDSCLIPConfig
from sdsclip_hf.data.duplicates import KnownPairs
from sdsclip_hf.losses import contrastive_loss
from sdsclip_hf.training.terms import Pairs


class ContrastiveTerm:
    """L_CLIP of pairs, with the negatives of all processes, and where asked for the candidates as further ones.

    Args:
        args: which negatives there are.
        accelerator: of the run.
    """

    def __init__(self, args: SDSCLIPConfig, accelerator: Accelerator):
        self.args, self.accelerator = args, accelerator

    def __call__(self, pairs: Pairs, even: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """The term and its figures.

        Args:
            pairs: this process's, b of B.
            even: whether all processes have as many, as in training; in evaluation some may have been left out.

        Returns:
            L_CLIP, scalar; and ``false_negatives``, the share of the b rows that another row or candidate is right for.
        """
        (images, first), (captions, _) = self._everyone(pairs.images, even), self._everyone(pairs.captions, even)
        negatives = is_negative = known = None
        if self.args.hard_negatives and pairs.candidates is not None:
            is_negative = self._everyone(pairs.is_negative, even)[0]  # (B, K)
            negatives = self._everyone(pairs.candidates, even)[0][is_negative]  # (M, D)
        figures = {}
        if self.args.mask_duplicates and pairs.picture_keys is not None:
            keys = self._everyone(pairs.candidate_keys, even)[0][is_negative] if is_negative is not None else None
            of_captions = self.accelerator.pad_across_processes(pairs.caption_keys, dim=1)
            known = KnownPairs(self._everyone(pairs.picture_keys, even)[0], self._everyone(of_captions, even)[0], keys)
            shared = known.are_shared(torch.arange(first, first + len(pairs.images), device=images.device))
            figures["false_negatives"] = shared.float().mean()
            known = known if shared.any() else None
        chunk = self.args.contrastive_chunk_size
        loss = contrastive_loss(
            pairs.images, pairs.captions, pairs.logit_scale, images, captions, first, negatives, chunk, known
        )
        return loss, figures

    def _everyone(self, rows: Tensor, even: bool) -> tuple[Tensor, int]:
        """The rows that count as one batch, (B, ...), with the gradient of this process's; and where these begin."""
        if self.args.world_size == 1 or self.args.local_negatives:
            return rows, 0
        if not even:
            return gather_ragged(self.accelerator, rows)
        first = self.args.process_index * len(rows)
        if not rows.is_floating_point():
            return self.accelerator.gather(rows), first
        return torch.cat(torch.distributed.nn.all_gather(rows.contiguous())), first
