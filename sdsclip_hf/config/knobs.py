"""What a knob is, and which values some of them may have."""

from dataclasses import field
from typing import Any, Literal, get_args

Trainable = Literal["layernorm", "lora", "full"]
TRAINABLE = get_args(Trainable)
LORA_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
TEACHER_QUANTIZATIONS = ("bitsandbytes-4bit", "bitsandbytes-8bit", "torchao-int8", "quanto-int8")
TEACHER_OFFLOADS = ("model", "group")


def knob(default: Any, text: str) -> Any:
    """A dataclass field with a help text; a list or tuple becomes a list of its own for each instance."""
    if isinstance(default, (list, tuple)):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})
