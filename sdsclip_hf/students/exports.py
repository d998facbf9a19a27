"""A dual encoder written in the forms that other libraries load: open_clip, sentence-transformers, ONNX runtimes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from transformers import CLIPModel, PreTrainedModel, ProcessorMixin
from transformers.image_utils import PILImageResampling

from sdsclip_hf.common.writing import refuse_occupied, whole_folder
from sdsclip_hf.students.dual_encoder import DualEncoder
from sdsclip_hf.students.onnx_files import write_onnx
from sdsclip_hf.students.open_clip_architectures import WORDS
from sdsclip_hf.students.open_clip_checkpoints import CONFIG_FILE, WEIGHT_FILES
from sdsclip_hf.students.open_clip_format import to_model_cfg, to_open_clip_weights
from sdsclip_hf.students.processor_files import save_processor

MODULES = {"0_CLIPModel": "CLIPModel", "1_Normalize": "Normalize"}  # of sentence-transformers, by their folders


class Form(NamedTuple):
    """A form to write: what writes it, and how it is loaded, with ``FOLDER`` for where it lies."""

    write: Callable[[DualEncoder, Path], None]
    loading: str


def loading_lines(form: str, folder: Path | str) -> str:
    """The lines of Python that load an export."""
    return FORMS[form].loading.replace("FOLDER", str(folder))


def export(encoder: DualEncoder, folder: Path, form: str) -> None:
    """Write a model in another form.

    Args:
        encoder: the model, see [`load_dual_encoder`].
        folder: is made; there may be an empty one.
        form: of ``FORMS``.

    Raises:
        ValueError: ``folder`` holds something, or the form has no such model.
        ImportError: packages that write the form are not installed.
        NoRoomError: the disk is full.
    """
    refuse_occupied(folder)
    needs = sum(value.nbytes for value in encoder.model.state_dict().values())
    with whole_folder(folder, needs) as new:
        FORMS[form].write(encoder, new)


def _write_transformers(encoder: DualEncoder, folder: Path) -> None:
    encoder.model.save_pretrained(folder)
    save_processor(encoder.processor, folder)


def _write_open_clip(encoder: DualEncoder, folder: Path) -> None:
    model, tokenizer = _clip(encoder.model, "open_clip"), encoder.processor.tokenizer
    model_cfg: dict[str, Any] = to_model_cfg(model.config)
    if max(tokenizer.get_vocab().values()) != tokenizer.eos_token_id:
        raise ValueError(
            f"the tokenizer's end token is {tokenizer.eos_token_id} and not the last of its tokens, by which open_clip "
            "finds the end of a caption. Choose another --format."
        )
    if len(tokenizer) != WORDS:
        model_cfg["text_cfg"]["hf_tokenizer_name"] = "."  # the one in the folder, in place of CLIP's
    config = {"model_cfg": model_cfg, "preprocess_cfg": _preprocess_cfg(encoder.processor)}
    save_file(to_open_clip_weights(model.state_dict(), model.config), folder / WEIGHT_FILES[0])
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2), encoding="utf-8")
    tokenizer.save_pretrained(folder)


def _clip(model: PreTrainedModel, form: str) -> CLIPModel:
    if not isinstance(model, CLIPModel):
        raise ValueError(
            f"a {type(model).__name__} has no counterpart in {form}, a CLIPModel has; choose another --format."
        )
    return model


def _preprocess_cfg(processor: ProcessorMixin) -> dict[str, Any]:
    """How pictures are prepared, as open_clip writes it."""
    told = processor.image_processor.to_dict()
    size, crop = told["size"], told["crop_size"]
    squash = {"height", "width"} <= {key for key, value in size.items() if value} and not told["do_center_crop"]
    shortest = size.get("shortest_edge") and told["do_center_crop"] and set(crop.values()) == {size["shortest_edge"]}
    names = {PILImageResampling.BICUBIC: "bicubic", PILImageResampling.BILINEAR: "bilinear"}
    if not (squash or shortest) or told["resample"] not in names:
        raise ValueError(
            f"pictures are resized to {size} and cut to {crop if told['do_center_crop'] else None}, with the filter "
            f"{told['resample']}; open_clip resizes the shorter side to what is cut out, or both sides, bicubic or "
            "bilinear. Choose another --format."
        )
    cfg = {"mean": list(told["image_mean"]), "std": list(told["image_std"]), "interpolation": names[told["resample"]]}
    return cfg | {"resize_mode": "squash" if squash else "shortest"}


def _write_sentence_transformers(encoder: DualEncoder, folder: Path) -> None:
    _clip(encoder.model, "sentence-transformers' CLIP module")
    for name in MODULES:
        (folder / name).mkdir()
    _write_transformers(encoder, folder / "0_CLIPModel")
    modules = [
        {"idx": row, "name": str(row), "path": name, "type": f"sentence_transformers.models.{kind}"}
        for row, (name, kind) in enumerate(MODULES.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules, indent=2), encoding="utf-8")
    similarity = {"similarity_fn_name": "cosine"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(similarity, indent=2), encoding="utf-8")


def _write_onnx(encoder: DualEncoder, folder: Path) -> None:
    write_onnx(encoder, folder)
    save_processor(encoder.processor, folder)


FORMS = {
    "transformers": Form(
        _write_transformers,
        """from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("FOLDER")
processor = AutoProcessor.from_pretrained("FOLDER")""",
    ),
    "open_clip": Form(
        _write_open_clip,
        """import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")
tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")""",
    ),
    "sentence_transformers": Form(
        _write_sentence_transformers,
        """from PIL import Image
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("FOLDER")
images = model.encode([Image.new("RGB", (224, 224), "red")])
captions = model.encode(["a red square", "a blue square"])
print(model.similarity(images, captions))""",
    ),
    "onnx": Form(
        _write_onnx,
        """import onnxruntime
from PIL import Image
from transformers import AutoProcessor

processor = AutoProcessor.from_pretrained("FOLDER")
image = processor.image_processor(Image.new("RGB", (224, 224), "red"), return_tensors="np")
options = {"padding": "max_length", "truncation": True, "return_tensors": "np"}
text = processor.tokenizer(["a red square", "a blue square"], return_attention_mask=True, **options)
(images,) = onnxruntime.InferenceSession("FOLDER/vision_model.onnx").run(None, dict(image))
(captions,) = onnxruntime.InferenceSession("FOLDER/text_model.onnx").run(None, dict(text))
print(images @ captions.T)  # cosines""",
    ),
}
