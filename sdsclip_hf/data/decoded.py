"""Pictures as they were decoded, on their way from loader workers to the device that prepares them for a model."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor

from sdsclip_hf.common.devices import sent
from sdsclip_hf.common.reading import picture_backend

PIXELS, SIZES = "decoded_pixels", "decoded_sizes"


def check_preparing(image_processor: BaseImageProcessor, device: torch.device) -> None:
    """Raise ValueError where an image processor cannot work on a device."""
    if device.type != "cpu" and picture_backend(image_processor) != "torchvision":
        raise ValueError(
            f"preprocess_on_device is set, and {type(image_processor).__name__} prepares pictures on the CPU alone. Install "
            "torchvision (pip install torchvision), or leave --preprocess_on_device out."
        )


def packed(pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
    """N pictures in RGB of any sizes: the bytes of all, one after another, and their heights and widths, (N, 2)."""
    sizes = torch.tensor([(picture.height, picture.width) for picture in pictures])
    return {PIXELS: torch.from_numpy(np.concatenate([np.asarray(one).ravel() for one in pictures])), SIZES: sizes}


def unpacked(pixels: Tensor, sizes: Tensor) -> list[Tensor]:
    """What [`packed`] was given: bytes (3, H, W) of each picture, where ``pixels`` are."""
    shapes = [(height, width, 3) for height, width in sizes.tolist()]
    parts = pixels.split([height * width * 3 for height, width, _ in shapes])
    return [part.view(shape).permute(2, 0, 1) for part, shape in zip(parts, shapes, strict=True)]


def prepared(
    batch: Mapping[str, Tensor], image_processor: BaseImageProcessor, device: torch.device, prefix: str = ""
) -> dict[str, Tensor]:
    """What the image processor gives of the pictures that [`packed`] put into a batch, on a device, by ``prefix`` and name.

    A processor of torchvision's works on the device.
    """
    pictures = unpacked(sent(batch[f"{prefix}{PIXELS}"], device), batch[f"{prefix}{SIZES}"])
    there = {"device": device} if picture_backend(image_processor) == "torchvision" else {}
    found = image_processor(pictures, return_tensors="pt", input_data_format="channels_first", **there)
    return {f"{prefix}{name}": sent(value, device) for name, value in found.items()}
