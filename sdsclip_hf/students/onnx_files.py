"""Both towers of a dual encoder as files of ONNX: unit-length embeddings of pictures and of captions."""

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from sdsclip_hf.students.dual_encoder import DualEncoder
from sdsclip_hf.students.kinds import image_features, text_features

TOOLS = ("onnx", "onnxscript")
VISION_FILE, TEXT_FILE = "vision_model.onnx", "text_model.onnx"  # as transformers.js and optimum call them
LARGEST = 2**31  # bytes of one file


class _Images(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return F.normalize(image_features(self.model, {"pixel_values": pixel_values}), dim=-1)


class _Texts(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return F.normalize(text_features(self.model, input_ids, attention_mask), dim=-1)


def write_onnx(encoder: DualEncoder, folder: Path) -> None:
    """Write ``vision_model.onnx``, ``pixel_values`` (B, 3, H, W) to ``image_embeds`` (B, D), and ``text_model.onnx``,
    ``input_ids`` and ``attention_mask`` (N, L) to ``text_embeds`` (N, D), in float32.

    Raises:
        ImportError: what writes ONNX is not installed.
        ValueError: the model takes more than pixels of one size.
    """
    missing = [name for name in TOOLS if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"--format onnx needs {' and '.join(missing)}, which is not installed: pip install 'sdsclip_hf[onnx]'."
        )
    pictures = encoder.preprocess([Image.new("RGB", (64, 64))] * 2)
    if list(pictures) != ["pixel_values"]:
        raise ValueError(
            f"a {type(encoder.model).__name__} takes {', '.join(pictures)} of a picture; --format onnx writes models that "
            "take pixel_values alone."
        )
    model = encoder.model.float().cpu().eval()
    captions, full = encoder.reader(["a photo", "a photo of a cat"]), encoder.reader.to_full_length
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=encoder.reader.max_length)
    of_text = {0: batch} if full else {0: batch, 1: length}
    _export(_Images(model), pictures, {"pixel_values": {0: batch}}, "image_embeds", folder / VISION_FILE)
    _export(_Texts(model), captions, dict.fromkeys(captions, of_text), "text_embeds", folder / TEXT_FILE)


def _export(module: nn.Module, inputs: dict[str, Tensor], dynamic: dict, output: str, path: Path) -> None:
    size = sum(weight.nbytes for weight in module.parameters())
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)  # it tells that torchvision, which is not needed, is not there
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.eval(),
                tuple(inputs.values()),
                path,
                input_names=list(inputs),
                output_names=[output],
                dynamic_shapes=dynamic,
                dynamo=True,
                external_data=size > LARGEST // 2,
                verbose=False,
            )
    finally:
        logger.setLevel(before)
