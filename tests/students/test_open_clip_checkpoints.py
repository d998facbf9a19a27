"""Checkpoints in open_clip's and OpenAI's form, read by us and by the real open_clip: the same embeddings."""

import json
import pickle
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from open_clip_package import CAPTIONS, LENGTH, MODEL_CFG, PREPROCESS_CFG
from PIL import Image
from transformers import CLIPModel

from sdsclip_hf.students.dual_encoder import DualEncoder, load_dual_encoder
from sdsclip_hf.students.kinds import image_features, text_features
from sdsclip_hf.students.open_clip_architectures import ARCHITECTURES, name_of
from sdsclip_hf.students.open_clip_checkpoints import OpenClipOptions, find_open_clip, load_open_clip
from sdsclip_hf.students.open_clip_format import shapes_of, to_clip_config, to_model_cfg, to_open_clip_weights

ACTIVATIONS = ("gelu", "quick_gelu")


def options_of(place: Path, **others) -> OpenClipOptions:
    return OpenClipOptions(str(place / "architecture.json"), str(place.parent / "tokenizer"), **others)


def load(path: Path, options: OpenClipOptions):
    return load_open_clip(find_open_clip(path), options)


def check(model: CLIPModel, place: Path) -> None:
    """The embeddings are those that open_clip gave."""
    expected = torch.load(place / "expected.pt")
    with torch.no_grad():
        images = image_features(model, {"pixel_values": expected["pixels"]})
        texts = text_features(model, expected["ids"])
    torch.testing.assert_close(images, expected["images"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(texts, expected["texts"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("file", "entry"),
    [
        ("plain.pt", None),
        ("old.pt", None),
        ("plain.safetensors", None),
        ("training.pt", "state_dict"),
        ("ema.pt", "ema.model"),
        ("two.pt", "ema"),
        ("custom_text.pt", None),
        ("archive.pt", None),
    ],
)
def test_files_give_open_clip_s_own_embeddings(open_clip_models, activation, file, entry):
    place = open_clip_models / activation
    key = entry if file == "two.pt" else None  # the other entry of which comes first
    model, _, record = load(place / file, options_of(place, checkpoint_key=key))
    check(model, place)
    assert model.dtype == torch.float32 and type(model) is CLIPModel
    assert record["activation"] == activation and record["checkpoint_key"] == entry
    assert record["activation_told_by"] == "--architecture"


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_repository_tells_its_activation_and_how_pictures_are_prepared(open_clip_models, activation):
    place = open_clip_models / activation
    model, processor, record = load(place / "repository", replace(options_of(place), architecture=None))
    check(model, place)
    assert record["activation"] == activation and record["activation_told_by"] == "open_clip_config.json"
    picture = Image.effect_noise((50, 40), 90).convert("RGB")
    (found,) = processor.image_processor(picture, return_tensors="pt")["pixel_values"]
    pixels = torch.tensor(list(picture.resize((32, 32), Image.Resampling.BILINEAR).tobytes())).view(32, 32, 3) / 255
    mean, std = torch.tensor(PREPROCESS_CFG["mean"]), torch.tensor(PREPROCESS_CFG["std"])
    torch.testing.assert_close(found, ((pixels - mean) / std).permute(2, 0, 1), rtol=0, atol=1e-5)


def test_matrices_in_half_precision_beside_other_norms_lose_nothing(open_clip_models, tmp_path):
    place = open_clip_models / "gelu"
    mixed = {
        name: weight.half() if weight.ndim > 1 else weight + 1e-5
        for name, weight in torch.load(place / "plain.pt").items()
    }
    torch.save(mixed, tmp_path / "mixed.pt")
    model, _, _ = load(tmp_path / "mixed.pt", options_of(place))
    back = to_open_clip_weights(model.state_dict(), model.config)
    assert all(torch.equal(back[name], weight.float()) for name, weight in mixed.items())


def test_captions_are_read_as_open_clip_reads_them(open_clip_models):
    """Which pads with 0 where CLIP's tokenizer in transformers pads with the end token, and not to the full length."""
    place = open_clip_models / "quick_gelu"
    model, processor, _ = load(place / "plain.pt", options_of(place))
    encoder, expected = DualEncoder(model, processor), torch.load(place / "expected.pt")
    ids = encoder.tokenize(list(CAPTIONS))
    for own, theirs in zip(ids, expected["ids"].tolist(), strict=True):
        assert own == theirs[: len(own)] and not any(theirs[len(own) :])
    assert len(ids[0]) < len(ids[2]) == LENGTH
    found = encoder.embed_tokens(ids[:2])
    wanted = torch.nn.functional.normalize(expected["texts"][:2], dim=-1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_pictures_are_prepared_as_openai_did_where_nothing_tells(open_clip_models):
    place = open_clip_models / "gelu"
    _, processor, _ = load(place / "plain.pt", options_of(place))
    told = processor.image_processor.to_dict()
    assert tuple(told["image_mean"]) == (0.48145466, 0.4578275, 0.40821073)
    assert tuple(told["image_std"]) == (0.26862954, 0.26130258, 0.27577711)
    assert told["do_center_crop"] and told["resample"] == Image.Resampling.BICUBIC
    assert (told["size"]["shortest_edge"], told["crop_size"]["height"]) == (32, 32)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_weights_and_configuration_go_back(open_clip_models, activation):
    place = open_clip_models / activation
    model, _, _ = load(place / "plain.pt", options_of(place))
    back, first = to_open_clip_weights(model.state_dict(), model.config), torch.load(place / "plain.pt")
    assert back.keys() == first.keys() and all(torch.equal(back[name], first[name]) for name in first)
    cfg = to_model_cfg(model.config)
    assert cfg == MODEL_CFG | {"quick_gelu": activation == "quick_gelu", "text_cfg": cfg["text_cfg"]}
    assert cfg["text_cfg"] == MODEL_CFG["text_cfg"] | {"mlp_ratio": 4.0}


@pytest.mark.parametrize(("width", "inner"), [(1664, 8192), (1408, 6144), (1000, 3333), (49, 100)])
def test_widths_that_are_no_multiple_go_back_through_open_clip_s_rounding(width, inner):
    config = to_clip_config(MODEL_CFG)
    config.vision_config.hidden_size, config.vision_config.intermediate_size = width, inner
    assert int(width * to_model_cfg(config)["vision_cfg"]["mlp_ratio"]) == inner


CONFIGS = """
import json, open_clip
print(json.dumps({name: open_clip.get_model_config(name) for name in open_clip.list_models()}))
"""


def test_architectures_are_open_clip_s_own(open_clip):
    theirs = json.loads(open_clip(CONFIGS))
    for name, one in ARCHITECTURES.items():
        for quick in (False, True):
            cfg = theirs.get(name + "-quickgelu" * quick)
            if cfg is not None:
                assert to_clip_config(cfg).to_dict() == to_clip_config(one.model_cfg(quick)).to_dict(), name
    known = {name.removesuffix("-quickgelu") for name, cfg in theirs.items() if is_plain(cfg)}
    assert known == ARCHITECTURES.keys()


def is_plain(cfg: dict) -> bool:
    try:
        to_clip_config(cfg)
    except ValueError:
        return False
    return not cfg["text_cfg"].get("hf_tokenizer_name") and cfg["text_cfg"]["vocab_size"] == 49408


# The real sizes

REAL = """
import json, open_clip
from pathlib import Path
folder, name = Path(sys.argv[1]), sys.argv[2]
model = open_clip.create_model(name).eval()
pixels, ids = torch.randn(2, 3, 224, 224), open_clip.get_tokenizer(name)(["a red cat", "a dog on a mat"])
torch.save(model.state_dict(), folder / "weights.pt")
traced = torch.jit.trace_module(model, {"encode_image": (pixels,), "encode_text": (ids,)}, check_trace=False)
traced.save(folder / "archive.pt")
with torch.no_grad():
    embeds = {"images": model.encode_image(pixels), "texts": model.encode_text(ids)}
torch.save({"pixels": pixels, "ids": ids, **embeds}, folder / "expected.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32-quickgelu", "ViT-L-14", "ViT-L-14-quickgelu"])
def test_models_of_real_size_there_and_back(open_clip, open_clip_models, tmp_path, name):
    open_clip(REAL, tmp_path, name)
    options = OpenClipOptions(name, str(open_clip_models / "tokenizer"))
    model, _, record = load(tmp_path / "weights.pt", options)
    check(model, tmp_path)
    assert record["architecture"] == name
    first = torch.load(tmp_path / "weights.pt", mmap=True)
    assert name_of(first) == name.removesuffix("-quickgelu")
    back = to_open_clip_weights(model.state_dict(), model.config)
    assert back.keys() == first.keys() and all(torch.equal(back[key], first[key]) for key in first)
    model, _, record = load(tmp_path / "archive.pt", replace(options, architecture=None))  # tells all itself
    check(model, tmp_path)
    assert record["architecture"] == name and record["activation_told_by"] == "the file"


# Bad input


def refused(path: Path, options: OpenClipOptions, kind: type = ValueError) -> str:
    with pytest.raises(kind) as caught:
        load(path, options)
    return str(caught.value)


def hollow(path: Path, architecture: str, **changed: tuple[int, ...] | None) -> Path:
    """A file of weights of an architecture's shapes in which each tensor is a single number."""
    shapes = shapes_of(to_clip_config(ARCHITECTURES[architecture].model_cfg(False))) | changed
    zero = torch.zeros(())
    torch.save({name: zero.expand(shape) for name, shape in shapes.items() if shape is not None}, path)
    return path


def test_weights_of_another_architecture_are_told_with_the_likely_one(tmp_path):
    path = hollow(tmp_path / "weights.pt", "ViT-B-32")
    told = refused(path, OpenClipOptions("ViT-B-16-quickgelu"))
    assert "weights.pt does not hold the weights of ViT-B-16-quickgelu" in told
    assert "visual.conv1.weight is (768, 3, 32, 32), not (768, 3, 16, 16)" in told
    assert "visual.positional_embedding is (50, 768), not (197, 768)" in told
    assert told.endswith("By its shapes it is a ViT-B-32: give --architecture ViT-B-32-quickgelu or ViT-B-32.")
    path = hollow(path, "ViT-B-32", **{"ln_final.bias": None, "visual.ls.gamma": (3,)})
    told = refused(path, OpenClipOptions("ViT-B-32"))
    assert "ln_final.bias is missing; visual.ls.gamma is one too many" in told
    path.rename(tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL_CFG}))
    assert "and the weights beside it are not of one model" in refused(tmp_path, OpenClipOptions())


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14-336", "ViT-bigG-14"])
def test_an_activation_that_nothing_tells_is_asked_for(tmp_path, name):
    told = refused(hollow(tmp_path / "weights.pt", name), OpenClipOptions())
    assert f"is by its shapes a {name}, and no weights tell their activation" in told
    assert (
        f"--architecture {name}-quickgelu for OpenAI's weights" in told and f"--architecture {name} for those" in told
    )


def test_an_archive_tells_its_activation(open_clip_models):
    options = options_of(open_clip_models / "gelu")
    told = refused(open_clip_models / "quick_gelu/archive.pt", options)
    assert "tells that its activation is quick_gelu" in told and "architecture.json has gelu" in told


class Runs:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w')",)


def test_openai_s_own_archives_are_known_by_their_classes(open_clip_models, tmp_path):
    path, place = tmp_path / "archive.pt", open_clip_models / "gelu"
    with zipfile.ZipFile(shutil.copy(place / "archive.pt", path)) as archive:
        data = archive.read("archive/data.pkl")
    named = b"c__torch__.multimodal.model.multimodal_transformer.___torch_mangle_9591\nMultimodal\n"
    assert data.count(b"c__torch__.open_clip.model\nCLIP\n") == 1
    rewritten(path, data.replace(b"c__torch__.open_clip.model\nCLIP\n", named))
    assert "tells that its activation is quick_gelu" in refused(path, options_of(place))


def test_files_that_want_more_than_tensors_are_refused_and_nothing_runs(open_clip_models, tmp_path):
    place = open_clip_models / "gelu"
    told = refused(place / "arguments.pt", options_of(place))
    assert "holds more than tensors: it wants argparse.Namespace" in told
    assert "weights_only=False)['state_dict'], 'weights.pt')" in told
    torch.save({"state_dict": {}, "more": Runs(tmp_path / "ran")}, tmp_path / "weights.pt")
    assert "holds more than tensors: it wants exec" in refused(tmp_path / "weights.pt", options_of(place))
    shutil.copy(place / "archive.pt", tmp_path / "archive.pt")
    rewritten(tmp_path / "archive.pt", pickle.dumps({"more": Runs(tmp_path / "ran")}))
    told = refused(tmp_path / "archive.pt", options_of(place))
    assert "is a TorchScript archive that holds more than modules and tensors: it wants builtins.exec" in told
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "weights.pt", weights_only=False)
    assert (tmp_path / "ran").exists()  # it would have


def rewritten(path: Path, data: bytes) -> None:
    """An archive with another ``data.pkl``."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, one in content.items():
            archive.writestr(name, data if name.endswith("/data.pkl") else one)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors", "weights.bin"])
def test_damaged_files_are_told(tmp_path, name):
    (tmp_path / name).write_bytes(b"no weights")
    with pytest.raises(
        OSError, match=r"could not load the model .*: the file exists, but what is in it .*(no file of weights|header)"
    ):
        load_dual_encoder(tmp_path / name, options=OpenClipOptions("ViT-B-32"))


@pytest.mark.parametrize(
    ("content", "key", "told"),
    [
        ([torch.ones(2)], None, "holds a list, not tensors by their names"),
        ({"epoch": 3, "state_dict": {"lr": 1.0}}, None, "holds no tensors under state_dict, whose keys are lr"),
        ({"state_dict": {"a": torch.ones(2)}}, "ema", "has no 'ema': the keys at its top level are state_dict"),
        ({"visual.trunk.norm.weight": torch.ones(2)}, None, "holds an image tower of timm's"),
        ({"module.visual.layer1.0.conv1.weight": torch.ones(2)}, None, "holds a ResNet"),
        (
            {"text.transformer.embeddings.LayerNorm.bias": torch.ones(2)},
            None,
            "holds a text tower of another library's",
        ),
        ({"vision_model.post_layernorm.bias": torch.ones(2)}, None, "in transformers' own form"),
        (
            {"weight": torch.ones(2)},
            None,
            "is of no architecture that is known by its shapes; its first keys are weight",
        ),
    ],
)
def test_what_holds_no_such_model_is_told(tmp_path, content, key, told):
    torch.save(content, tmp_path / "weights.pt")
    assert told in refused(tmp_path / "weights.pt", OpenClipOptions(checkpoint_key=key))


@pytest.mark.parametrize(
    ("part", "changed", "told"),
    [
        (
            "vision_cfg",
            {"timm_model_name": "vit_base_patch16_siglip_224"},
            "image tower is timm's vit_base_patch16_siglip",
        ),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "text tower is hf's roberta-base"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, "its image tower is a ResNet"),
        ("vision_cfg", {"ls_init_value": 0.1}, "vision_cfg.ls_init_value is 0.1"),
        ("text_cfg", {"no_causal_mask": True}, "text_cfg.no_causal_mask is True"),
        ("text_cfg", {"pool_type": "eos"}, "text_cfg.pool_type is 'eos'"),
    ],
)
def test_configurations_without_a_counterpart_are_refused_with_the_reason(tmp_path, part, changed, told):
    cfg = MODEL_CFG | {part: MODEL_CFG[part] | changed}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg}))
    torch.save({}, tmp_path / "open_clip_pytorch_model.bin")
    assert told in refused(tmp_path, OpenClipOptions())


def test_parts_that_are_missing_or_unknown_are_told(open_clip_models, clip_folder, tmp_path):
    place = open_clip_models / "gelu"
    told = refused(place / "plain.pt", OpenClipOptions("ViT-B-33"))
    assert told.startswith("unknown architecture 'ViT-B-33'; give --architecture one of ViT-S-32")
    told = refused(place / "plain.pt", replace(options_of(place), processor=clip_folder))
    assert "begins and ends captions by" in told and "knows 49406 and 49407; give --processor" in told
    told = refused(place / "plain.pt", replace(options_of(place), processor=None), OSError)  # there is no network
    assert (
        "could not load the tokenizer 'openai/clip-vit-base-patch32'" in told and "--processor a local folder" in told
    )
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL_CFG}))
    assert "it has none of open_clip_model.safetensors" in refused(tmp_path, OpenClipOptions(), OSError)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 3}}))
    assert "is no configuration of open_clip: it lacks one of" in refused(tmp_path, OpenClipOptions())
    cfg = {"model_cfg": MODEL_CFG, "preprocess_cfg": {"resize_mode": "longest"}}
    shutil.copytree(place / "repository", tmp_path / "longest")
    (tmp_path / "longest/open_clip_config.json").write_text(json.dumps(cfg))
    assert "resize_mode longest" in refused(tmp_path / "longest", replace(options_of(place), architecture=None))
