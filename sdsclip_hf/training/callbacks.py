"""What the trainer does at moments of Trainer's loop."""

from transformers import TrainerCallback

from sdsclip_hf.data.captioned_images import CaptionedImages


class ClampLogitScale(TrainerCallback):
    """Keeps CLIP's temperature at or below ln 100 after every optimiser step, where it began there."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        clip = getattr(model, "module", model)
        if clip.trains_logit_scale:
            clip.clamp_logit_scale()


class TellEpoch(TrainerCallback):
    """Tells the dataset its epoch, which accelerate's loaders do not with several processes or after a resume."""

    def __init__(self, dataset: CaptionedImages):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.dataset.set_epoch(int(state.epoch + 1e-6))
