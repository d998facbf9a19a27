"""The trainer's side of exports: what a checkpoint and an export hold, and whom a checkpoint belongs to."""

from functools import cached_property
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from sdsclip_hf.data.captioned_images import ImageCaptionDataset
from sdsclip_hf.training.hub_trainer import HubTrainer
from sdsclip_hf.training.resumed_options import kept_options, obeyed_options
from sdsclip_hf.training.sealed_checkpoints import SealedCheckpoints

WEIGHTS_FILE = "model.safetensors"


class CheckpointTrainer(SealedCheckpoints, HubTrainer):
    """[`HubTrainer`] whose checkpoints hold what trains, and whose exports are plain CLIPs.

    A subclass gives ``whole_student()``, and what tells its run from others: see [`SDSCLIPTrainer`].
    """

    def trained_parameters(self) -> dict[str, Tensor]:
        return {name: one for name, one in self.whole_student().named_parameters() if one.requires_grad}

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        """Inside a checkpoint the weights that train; anywhere else the export, a plain CLIP."""
        student = self.whole_student()
        if not self.args.should_save:  # Trainer calls this on all processes
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if self._saving_checkpoint:
            trained = student.trained_state_dict()
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in trained.items()}
            save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        else:
            student.export(folder, self.processing_class)
            self._write_card(folder)

    def _identity(self) -> dict:
        return {
            "base_model": self.base_name,
            "base_fingerprint": self.base_fingerprint,
            "teacher": None if self.teacher is None else self.teacher.name_or_path,
            "teacher_fingerprint": self.teacher_fingerprint,
            "scores_fingerprint": None if self.scores is None else self.scores.fingerprint,
            "data": self._data_identity,
            "settings": kept_options(self.args, self.student.config.model_type) | {"peft_config": self.peft_settings},
            "obeyed": obeyed_options(self.args),
        }

    @cached_property
    def _data_identity(self) -> dict:
        """What tells the training data from others; nothing of a stream, which cannot be looked through."""
        return self.train_dataset.identity() if isinstance(self.train_dataset, ImageCaptionDataset) else {}
