"""A device whose numbers cannot be seen, as a stand-in for a GPU: torch's meta device, on which a look at a number raises.

What a GPU would have to be waited for, and the meta device does not raise at, is told by [`Waits`]: copies that block, and
rows of one device chosen by numbers on the other.
"""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
aten = torch.ops.aten


class Waits(TorchDispatchMode):
    """In this context, what on a GPU the CPU would wait for, in ``found``."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []
        self._tensor = torch.tensor

    def __enter__(self):
        torch.tensor = self._made_of_numbers
        return super().__enter__()

    def __exit__(self, *error):
        torch.tensor = self._tensor
        return super().__exit__(*error)

    def _made_of_numbers(self, *args, **kwargs) -> Tensor:
        if torch.device(kwargs.get("device") or "cpu") == META:
            self.found.append("a tensor of numbers made on the device")
        return self._tensor(*args, **kwargs)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim}
        name = function._overloadpacket
        copies = name is aten._to_copy and "cpu" in devices and torch.device(kwargs.get("device") or "cpu") == META
        if copies and not kwargs.get("non_blocking"):
            self.found.append(f"a copy to the device that blocks: {tuple(args[0].shape)}")
        elif len(devices) > 1:
            self.found.append(f"{name} of tensors on both sides")
        return function(*args, **kwargs)


@pytest.fixture
def on_pretend_gpu(monkeypatch):
    """Brings a trainer to the pretended GPU."""

    def move(trainer):
        trainer.model.to(META)
        if trainer.teacher is not None:
            trainer.teacher.to(META)
        monkeypatch.setattr(type(trainer.args), "device", META)
        module = SimpleNamespace(get_rng_state=lambda _: None, set_rng_state=lambda *_: None)
        monkeypatch.setattr(torch, "meta", module, raising=False)
        monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no such device
        monkeypatch.setattr(trainer.accelerator.state, "device", META)
        return trainer

    return move
