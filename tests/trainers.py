"""SDSCLIPTrainer on the tiny models, and looks at what it does; conftest.py makes a plugin of it."""

from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer


def tiny_trainer(output_dir: Path, model, teacher, data, **options) -> SDSCLIPTrainer:
    """A trainer of two steps of four pairs; options are its own arguments, or the configuration's."""
    given = ("eval_dataset", "callbacks", "peft_config", "processing_class")
    parts = {name: options.pop(name) for name in given if name in options}
    settings = {
        "output_dir": str(output_dir),
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-2,
        "max_steps": 2,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    args = SDSCLIPConfig(**(settings | options))
    return SDSCLIPTrainer(model=model, args=args, teacher=teacher, train_dataset=data, **parts)


@pytest.fixture
def make_trainer(tmp_path, clip_folder, teacher_folder, pairs):
    """Makes `tiny_trainer`s; ``folder`` is below tmp_path."""

    def make(folder="run", *, model=clip_folder, teacher=teacher_folder, data=pairs, **options):
        return tiny_trainer(tmp_path / folder, model, teacher, data, **options)

    return make


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trainer.student.state_dict().items()}


def changed(before: dict, after: dict) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def assert_same_weights(one, other):
    assert changed(weights(one), weights(other)) == set()


def draw(trainer, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """t and eps of the trainer's next call."""
    return trainer.distillation.draw(latents, trainer._draw_number())


def first_batch(trainer) -> dict[str, torch.Tensor]:
    return next(iter(trainer.get_train_dataloader()))


def one_step(trainer, rows=range(12)) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and the gradients of the first rows of the data."""
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer.data_collator([trainer.train_dataset[number] for number in rows])
    trainer.student.zero_grad()
    loss = trainer.training_step(trainer.model, batch)
    gradients = {name: p.grad.clone() for name, p in trainer.student.named_parameters() if p.grad is not None}
    return float(loss), gradients


def assert_same(found, expected, tolerance):
    assert set(found) == set(expected)
    floor = 1e-3 * max(gradient.norm() for gradient in expected.values())  # some are nothing but rounding: keys' biases
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= tolerance * max(gradient.norm(), floor), name


class At(TrainerCallback):
    """Calls a function at the beginning of every step."""

    def __init__(self, function):
        self.function = function

    def on_step_begin(self, args, state, control, **kwargs):
        self.function(state.global_step)
