"""L_CLIP of a batch over all processes: its form, what is gathered, and what is known to be no negative."""

import torch
import torch.distributed.nn
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from sdsclip_hf.common.devices import sent
from sdsclip_hf.common.processes import gather_ragged, group_of_cpus
from sdsclip_hf.config import SDSCLIPConfig
from sdsclip_hf.data.duplicates import KnownPairs
from sdsclip_hf.losses import contrastive_loss, sigmoid_loss
from sdsclip_hf.students.kinds import logit_bias
from sdsclip_hf.training.terms import Pairs


def contrastive_form(model: nn.Module, args: SDSCLIPConfig) -> str:
    """``softmax`` or ``sigmoid``: what ``args`` ask for, or else what a dual encoder was trained by.

    Raises:
        ValueError: a sigmoid, which needs a bias, for a model without one.
    """
    has_bias = logit_bias(model) is not None
    if args.contrastive_form == "auto":
        return "sigmoid" if has_bias else "softmax"
    if args.contrastive_form == "sigmoid" and not has_bias:
        raise ValueError(
            f"contrastive_form sigmoid adds the model's bias to each logit, which a {type(model).__name__} has not; leave "
            "--contrastive_form out, or give --model_name_or_path a SigLIP."
        )
    return args.contrastive_form


class ContrastiveTerm:
    """L_CLIP of pairs, with the negatives of all processes, and where asked for the candidates as further ones.

    Args:
        args: which negatives there are.
        accelerator: of the run.
        form: see [`contrastive_form`].
    """

    def __init__(self, args: SDSCLIPConfig, accelerator: Accelerator, form: str = "softmax"):
        self.args, self.accelerator, self.form = args, accelerator, form
        self.is_alone = args.world_size == 1 or args.local_negatives
        self._of_cpus = None if self.is_alone else group_of_cpus()

    def __call__(self, pairs: Pairs, even: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """The term and its figures.

        Args:
            pairs: this process's, b of B.
            even: whether all processes have as many, as in training; in evaluation some may have been left out.

        Returns:
            L_CLIP, scalar; and ``false_negatives``, the share of the b rows that another row or candidate is right for.
        """
        captions, first = self._everyone(pairs.captions, even)
        images = self._everyone(pairs.images, even)[0] if self.form == "softmax" else None
        negatives = is_negative = known = None
        if self.args.hard_negatives and pairs.candidates is not None:
            is_negative = self._everyone(pairs.is_negative, even)[0]  # (B, K)
            is_negative = is_negative.flatten().nonzero()[:, 0]  # (M,)
            negatives = self._everyone(pairs.candidates, even)[0].flatten(0, 1)[sent(is_negative, captions.device)]
        figures = {}
        if self.args.mask_duplicates and pairs.picture_keys is not None:
            device, keys = captions.device, None
            if is_negative is not None:
                keys = self._everyone(pairs.candidate_keys, even)[0].flatten()
                keys = sent(keys[sent(is_negative, keys.device)], device)
            of_captions = F.pad(pairs.caption_keys, (0, self._widest(pairs.caption_keys) - pairs.caption_keys.shape[1]))
            told = (sent(self._everyone(part, even)[0], device) for part in (pairs.picture_keys, of_captions))
            known = KnownPairs(*told, keys)
            shared = known.are_shared(torch.arange(first, first + len(pairs.images), device=device))
            figures["false_negatives"] = shared.float().mean()
            if device.type == "cpu" and not shared.any():  # elsewhere a look would cost more than it saves
                known = None
        chunk = self.args.contrastive_chunk_size
        own, others = (pairs.images, pairs.captions, pairs.logit_scale), (captions, first, negatives, chunk, known)
        if self.form == "sigmoid":
            return sigmoid_loss(*own, pairs.logit_bias, *others), figures
        return contrastive_loss(*own, images, *others), figures

    def _widest(self, rows: Tensor) -> int:
        """The most columns that any process has, which no GPU is asked for."""
        columns = torch.tensor(rows.shape[1])
        if not self.is_alone:
            torch.distributed.all_reduce(columns, torch.distributed.ReduceOp.MAX, group=self._of_cpus)
        return int(columns)

    def _everyone(self, rows: Tensor, even: bool) -> tuple[Tensor, int]:
        """The rows that count as one batch, (B, ...), with the gradient of this process's; and where these begin."""
        if self.is_alone:
            return rows, 0
        rows = sent(rows, self.accelerator.device)
        if not even:
            return gather_ragged(self.accelerator, rows)
        first = self.args.process_index * len(rows)
        if not rows.is_floating_point():
            return self.accelerator.gather(rows), first
        return torch.cat(torch.distributed.nn.all_gather(rows.contiguous())), first
