"""The trainer's side of evaluation: the loss of the pairs that have both picture and caption, and benchmarks."""

import logging

import torch
from torch import Tensor
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from sdsclip_hf.data.images import BAD_IMAGES_FILE
from sdsclip_hf.evaluation.results import Results, evaluate_benchmarks, flatten
from sdsclip_hf.evaluation.scorers import ClipScorer
from sdsclip_hf.training.failure_tables import FailureTables

logger = logging.getLogger(__name__)


class Validation(Trainer):
    """[`transformers.Trainer`] whose evaluation leaves out pairs that have no loss, and counts them."""

    failure_tables: FailureTables | None = None
    _kept: list[tuple[Tensor, int, int]]  # of each batch the loss, how many pairs it is the mean of, and how many not

    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix="eval", **kwargs) -> EvalLoopOutput:
        """Trainer's loop; adds the mean of each loss term and the scores on ``args.benchmarks`` to the metrics.

        Where pairs were left out, ``left_out`` tells how many, and the loss is the mean over the others.
        """
        self.take_notes("eval")
        train_calls, self._calls, self._kept = self._calls, 0, []
        try:
            output = super().evaluation_loop(
                dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs
            )
            self.check_arrived()
        finally:
            self._calls = train_calls
        found = self.take_notes("eval") | self._without_those_left_out()
        if self.args.benchmarks:
            found |= flatten(self.score_benchmarks())
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found.items()})
        return output

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss alone, since embeddings of whole evaluation sets are not kept; NaN where no two pairs are left."""
        inputs = self.with_pictures(inputs)
        readable = inputs.get("readable")
        left_out = 0 if readable is None else int((~readable).sum())
        if readable is not None:
            inputs = {name: value[readable] for name, value in inputs.items() if name != "readable"}
        rows = len(inputs["pixel_values"])
        everywhere = self.accelerator.gather(torch.tensor([rows], device=self.args.device))
        if everywhere.min() < (2 if self.args.world_size == 1 or self.args.local_negatives else 1):
            nothing = torch.full((), torch.nan, device=self.args.device)
            self._kept.append((nothing, 0, left_out + rows))
            return nothing, None, None
        loss, _, _ = super().prediction_step(model, inputs, True, ignore_keys=ignore_keys)
        self._kept.append((loss, rows, left_out))
        return loss, None, None

    def _without_those_left_out(self) -> dict[str, float]:
        """The loss and how many pairs it leaves out; nothing where it leaves out none, and Trainer's own stands."""
        if not self._kept:
            return {}
        loss = sum(
            (loss * rows for loss, rows, _ in self._kept if rows), start=torch.zeros((), device=self.args.device)
        )
        counts = torch.tensor([(rows, left_out) for _, rows, left_out in self._kept], device=loss.device).sum(0)
        total, rows, left_out = self.accelerator.reduce(torch.stack([loss.float(), *counts.float()])).tolist()
        if not left_out:
            return {}
        if self.is_world_process_zero():
            logger.warning(
                f"{left_out:.0f} of {rows + left_out:.0f} evaluation pairs were left out: their pictures cannot be read or "
                f"their captions are missing ({BAD_IMAGES_FILE} in the output folder names them), or they had no other pair "
                "beside them in a batch."
            )
        return {"loss": total / rows if rows else float("nan"), "left_out": left_out}

    def score_benchmarks(self) -> Results:
        """The student's scores on ``args.benchmarks`` as it now is, see [`evaluate_benchmarks`]."""
        scorer = ClipScorer(self.whole_student().base_clip, self.processing_class)
        keep = None if self.failure_tables is None else self.failure_tables.keep
        return evaluate_benchmarks(scorer, self.args.benchmarks or [], keep)
