"""``--ranker``: a model by its name, of a kind that is named or found by its configuration."""

import importlib
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from transformers import AutoProcessor, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_MAPPING_NAMES

from sdsclip_hf import shapes
from sdsclip_hf.common.errors import expand, explain_loading
from sdsclip_hf.data.scores import portable_name
from sdsclip_hf.rankers.caption_ranker import CaptionRanker
from sdsclip_hf.students.dual_encoder import find_adapter, load_dual_encoder
from sdsclip_hf.students.loading import is_dual_encoder
from sdsclip_hf.students.open_clip_checkpoints import OpenClipOptions, find_open_clip

OPTION = "--ranker"
MATCHING_HEAD = "BlipForImageTextRetrieval"
GENERATIVE = set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values())
PAIR_RANKERS = {  # kind: file, class, and which models of transformers it takes
    "itm": ("matching_head", "MatchingHeadRanker", {MATCHING_HEAD}),
    "vlm": ("generative", "QuestionRanker", GENERATIVE),
    "vlm_caption": ("generative", "LikelihoodRanker", GENERATIVE),
}
KINDS = ("dual_encoder", *PAIR_RANKERS)
SUPPORTED = (
    f"a dual encoder (CLIPModel, SiglipModel and the like), {MATCHING_HEAD}, or a generative vision-language model "
    "(LlavaForConditionalGeneration, Qwen2_5_VLForConditionalGeneration and the like)"
)


class RankerOptions(NamedTuple):
    """How a ranker is loaded.

    Args:
        revision: branch, tag or commit on the Hub.
        dtype: of the weights.
        question: of a generative model, see [`GenerativeRanker`].
        batch_size: pairs, or of a dual encoder pictures or captions, at once.
        open_clip: what a dual encoder in open_clip's form does not tell.

    Example:

    ```python
    from sdsclip_hf.rankers.loading import RankerOptions, load_ranker

    ranker = load_ranker("shapes/student", RankerOptions(dtype="bfloat16", batch_size=8))
    print(ranker.encoder.model.dtype)  # torch.bfloat16
    ```
    """

    revision: str | None = None
    dtype: str = "float32"
    question: str | None = None
    batch_size: int = 64
    open_clip: OpenClipOptions = OpenClipOptions()


def load_ranker(spec: str, options: RankerOptions | None = None, device: str | None = None) -> CaptionRanker:
    """A model that ranks captions.

    Args:
        spec: ``NAME`` or ``KIND=NAME``; the name is a Hub id, a folder, a file in open_clip's form, or ``shapes/student``.
            The kind is one of ``dual_encoder``, ``itm``, ``vlm`` and ``vlm_caption``; a generative model is a ``vlm``
            unless it is named.
        options: see [`RankerOptions`]; default: its defaults.
        device: default: the GPU if there is one.

    Raises:
        OSError: it cannot be loaded.
        ValueError: it is a model of another kind, or an option does not fit its kind.

    Example:

    ```python
    from sdsclip_hf.rankers.loading import load_ranker
    from sdsclip_hf.shapes import load_shapes

    ranker = load_ranker("shapes/student")  # or "Salesforce/blip-itm-base-coco", "vlm=llava-hf/llava-1.5-7b-hf"
    image = load_shapes("test", per_scene=1)[0]["image"]
    print(ranker.kind, ranker.scores([image], [["a red circle", "a blue square"]])[0].shape)  # dual_encoder (2,)
    ```
    """
    options, (kind, name) = options or RankerOptions(), split_kind(spec)
    found = expand(shapes.resolve(name))
    kind = _checked_kind(found, options.revision, kind)
    if options.question and not kind.startswith("vlm"):
        raise ValueError(
            f"--ranker_question is given, but {name!r} is a ranker of the kind {kind}, which is asked nothing; leave it out."
        )
    told = portable_name(name)
    if kind == "dual_encoder":
        from sdsclip_hf.rankers.dual_encoder import DualEncoderRanker

        encoder = load_dual_encoder(found, options.revision, options.dtype, device, options.open_clip)
        return DualEncoderRanker(encoder, told, options.revision, options.batch_size)
    options.open_clip.check_needed(name)
    file, ranker, _ = PAIR_RANKERS[kind]
    of_class = getattr(transformers, MATCHING_HEAD if kind == "itm" else "AutoModelForImageTextToText")
    with explain_loading("the ranker", name, OPTION):
        dtype = getattr(torch, options.dtype)
        model = of_class.from_pretrained(found, revision=options.revision, dtype=dtype)
        processor = AutoProcessor.from_pretrained(found, revision=options.revision)
    model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    question = {} if kind == "itm" else {"question": options.question}
    make = getattr(importlib.import_module(f"sdsclip_hf.rankers.{file}"), ranker)
    return make(model, processor, told, options.revision, options.batch_size, **question)


def split_kind(spec: str) -> tuple[str | None, str]:
    """``KIND=NAME`` to its parts; the kind is None where none is named.

    Raises:
        ValueError: there is no such kind, or no name.
    """
    kind, equals, name = spec.partition("=")
    if not equals or Path(spec).expanduser().exists():
        kind, name = "", spec
    if (kind and kind not in KINDS) or not name:
        raise ValueError(
            f"unknown kind of ranker {kind!r} in {spec!r}; give MODEL, or KIND=MODEL with one of {', '.join(KINDS)}."
        )
    return kind or None, name


def _checked_kind(name: str, revision: str | None, asked: str | None) -> str:
    """The kind that a model is of, which must be the one asked for."""
    if find_open_clip(name, revision) or find_adapter(name, revision):
        found, told = {"dual_encoder"}, "a dual encoder"
    else:
        with explain_loading("the ranker", name, OPTION):
            content = PretrainedConfig.get_config_dict(name, revision=revision)[0]
            if not content:
                raise OSError("it has no config.json")
        told = next(iter(content.get("architectures") or []), None)
        found = {kind for kind, (_, _, classes) in PAIR_RANKERS.items() if told in classes}
        kind = content.get("model_type")
        if not found and is_dual_encoder(kind) and told in (None, MODEL_MAPPING_NAMES[kind]):
            found = {"dual_encoder"}
    if asked is None:
        asked = next((kind for kind in KINDS if kind in found), None)
    if asked not in found:
        what = f"as {asked} " if asked else ""
        raise ValueError(
            f"{name!r} holds a {told or 'model of no class that its config.json names'}, which cannot rank captions {what}"
            f"here; give {OPTION} {SUPPORTED}."
        )
    return asked
