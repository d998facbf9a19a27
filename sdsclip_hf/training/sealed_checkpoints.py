"""The trainer's side of checkpoints: when one counts as whole, and that no run goes on from NaN."""

import math
from collections import deque
from pathlib import Path

import torch
from torch import Tensor
from transformers import Trainer

from sdsclip_hf.common.checkpoints import last_checkpoint, new_checkpoint, remove_old, seal, sweep_run
from sdsclip_hf.common.devices import Arriving
from sdsclip_hf.common.writing import telling_full_disk


class SealedCheckpoints(Trainer):
    """[`transformers.Trainer`] whose checkpoints are whole or not there, and whose runs stop at NaN.

    A subclass gives what trains, and what tells its run from others.
    """

    _saving_checkpoint = False

    def __init__(self, *args, **kwargs):
        self._arriving: deque[tuple[int, tuple[str, ...], Arriving]] = deque()
        super().__init__(*args, **kwargs)

    def trained_parameters(self) -> dict[str, Tensor]:
        """What trains, by name, whole. To be called on all processes."""
        raise NotImplementedError

    def _identity(self) -> dict:
        """What [`check_same_run`] compares."""
        raise NotImplementedError

    def _save_checkpoint(self, model, trial) -> None:
        """A checkpoint holds what trains and all that resuming needs; ``sdsclip_run.json``, written last, seals it."""
        self.check_arrived()
        trained = self.trained_parameters()
        for name, parameter in trained.items():
            if not torch.isfinite(parameter).all():
                raise FloatingPointError(
                    f"{name} holds NaN or infinite weights after step {self.state.global_step}; no checkpoint was "
                    f"written. {self._way_out()}"
                )
        run = Path(self._get_output_dir(trial=trial))
        folder, needs = run / f"checkpoint-{self.state.global_step}", self._checkpoint_bytes(trained)
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # older ones go once this one is whole
        self._saving_checkpoint = True
        try:
            with new_checkpoint(folder, needs) if self.args.should_save else telling_full_disk(folder, needs):
                self.accelerator.wait_for_everyone()  # none writes before the folder is empty
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()  # each process adds the state of its random numbers
                if self.args.should_save:
                    seal(folder, self._identity())
        finally:
            self._saving_checkpoint, self.args.save_total_limit = False, limit
        if self.args.should_save:
            remove_old(run, limit, self.state.best_model_checkpoint)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))

    def _checkpoint_bytes(self, trained: dict[str, Tensor]) -> int:
        """Of the weights that train, and of what the optimiser keeps for them."""
        of_optimizer = getattr(self.optimizer, "state", None) or {}
        kept = [value for state in of_optimizer.values() if isinstance(state, dict) for value in state.values()]
        return sum(part.numel() * part.element_size() for part in [*trained.values(), *filter(torch.is_tensor, kept)])

    def train(self, *args, **kwargs):
        """Trainer's, in a folder without what an earlier process left half-written when it was killed."""
        if self.is_world_process_zero():
            sweep_run(Path(self.args.output_dir))
        return super().train(*args, **kwargs)

    def _run_epoch(self, *args, resume_from_checkpoint=None, **kwargs) -> None:
        """A training that had ended, and whose run goes on from its last checkpoint, is not trained on."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, resume_from_checkpoint=resume_from_checkpoint, **kwargs)
            return
        self._load_rng_state(resume_from_checkpoint)
        self.control.should_training_stop = True

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._saving_checkpoint:  # Trainer would push what is not sealed yet
            super()._push_from_checkpoint(checkpoint_folder)

    def check_finite(self, terms: dict[str, Tensor]) -> None:
        """Raise FloatingPointError where a term, a scalar by its name, is NaN or infinite; it tells how to go on.

        Terms on a GPU are looked at when those of the next step come, lest the GPU be waited for, and before anything is
        saved.
        """
        if terms:
            values, step = torch.stack([term.detach().float() for term in terms.values()]), self.state.global_step + 1
            self._arriving.append((step, tuple(terms), Arriving(values)))
            self.check_arrived(math.inf if values.device.type == "cpu" else step)

    def check_arrived(self, before: float = math.inf) -> None:
        """Look at the terms that [`check_finite`] was given, of the steps before one."""
        while self._arriving and self._arriving[0][0] < before:
            step, names, values = self._arriving.popleft()
            for name, value in zip(names, values.read(), strict=True):
                if not math.isfinite(value):
                    raise FloatingPointError(f"the {name} term is {value} at step {step}. {self._way_out()}")

    def _way_out(self) -> str:
        good = last_checkpoint(self.args.output_dir)
        go_on = f"The last good checkpoint is {good}; go on from it with --resume_from_checkpoint and a lower "
        go_on += "--max_grad_norm, or start"
        kept = go_on if good else "Start"
        return f"{kept} anew in another --output_dir with a lower --learning_rate or weight of the term."
