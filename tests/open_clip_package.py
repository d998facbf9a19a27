"""The real open_clip, in forks of the tests' process.

It imports torchvision, which next to a CPU build of torch from the package index cannot be imported, and which transformers
would then trip over, too. So open_clip is not among the tests' dependencies: pip fetches it without its own, once, into
pytest's cache, and in a fork it meets a stand-in for torchvision. That prepares no pictures; the models need none of it.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from forking import run_forked

PACKAGES = ("open_clip_torch==3.3.0", "timm==1.0.31", "ftfy==6.3.1")
STAND_IN = """
import enum, importlib.machinery, sys, types

class Unused:
    def __init__(self, *args, **options): pass

class InterpolationMode(enum.Enum):
    NEAREST, BILINEAR, BICUBIC, BOX, HAMMING, LANCZOS = range(6)

def unused(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Unused

for name in ("", ".ops", ".ops.misc", ".transforms", ".transforms.functional", ".datasets"):
    module = types.ModuleType(f"torchvision{name}")
    module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None, is_package=True)
    module.__path__, module.__getattr__, module.InterpolationMode = [], unused, InterpolationMode
    sys.modules[module.__name__] = module
    parent, _, last = module.__name__.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, module)
"""


class OpenClip:
    """Runs code that imports open_clip."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, code: str, *words) -> str:
        """What the code prints, given ``words`` as its arguments."""
        before = f"{STAND_IN}\nsys.path.insert(0, {str(self.folder)!r})\nimport torch\ntorch.manual_seed(0)\n"
        done = run_forked(f"{before}{code}", *words)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout


@pytest.fixture(scope="session")
def open_clip(request) -> OpenClip:
    folder = Path(request.config.cache.mkdir("-".join(PACKAGES)))
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "open_clip").is_dir():
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, *PACKAGES]
            subprocess.run(pip, check=True)
    return OpenClip(folder)


# Random models of open_clip's small enough to be quick, in all forms that one meets

LENGTH = 77
MODEL_CFG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": LENGTH, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2},
}
PREPROCESS_CFG = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear", "resize_mode": "squash"}
CAPTIONS = ("a red cat", "A dog, and nothing else!", "two  café chairs on a mat " * 20)
MAKE = """
import argparse, gzip, json, open_clip
from pathlib import Path
from safetensors.torch import save_file

folder, cfg, preprocess, captions = Path(sys.argv[1]), *map(json.loads, sys.argv[2:])
words = open_clip.tokenizer.SimpleTokenizer()
vocabulary = {token.replace("<start_of_text>", "<|startoftext|>").replace("<end_of_text>", "<|endoftext|>"): row
              for token, row in words.encoder.items()}
(folder / "tokenizer").mkdir()
(folder / "tokenizer/vocab.json").write_text(json.dumps(vocabulary))
(folder / "tokenizer/tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
(folder / "tokenizer/merges.txt").write_text("\\n".join(["#version: 0.2", *map(" ".join, words.bpe_ranks)]))
pixels, ids = torch.randn(3, 3, 32, 32), words(captions)
for quick in (False, True):
    place = folder / ("quick_gelu" if quick else "gelu")
    (place / "repository").mkdir(parents=True)
    model = open_clip.CLIP(**cfg, quick_gelu=quick).eval()
    for weight in model.parameters():
        if weight.ndim > 1: weight.data.normal_(0, 0.2)  # so that the activations differ
    with torch.no_grad():
        expected = {"pixels": pixels, "ids": ids, "images": model.encode_image(pixels), "texts": model.encode_text(ids)}
        torch.save(expected, place / "expected.pt")
        traced = torch.jit.trace_module(
            model, {"encode_image": (pixels,), "encode_text": (ids,)}, check_trace=False
        )
    traced.save(place / "archive.pt")
    weights = model.state_dict()
    torch.save(weights, place / "plain.pt")
    torch.save(weights, place / "old.pt", _use_new_zipfile_serialization=False)
    save_file(weights, place / "plain.safetensors")
    parallel = {f"module.{name}": weight for name, weight in weights.items()}
    other = {name: weight + 1 for name, weight in weights.items()}
    optimizer = torch.optim.AdamW(model.parameters()).state_dict()
    torch.save({"epoch": 3, "name": "run", "state_dict": parallel, "optimizer": optimizer}, place / "training.pt")
    torch.save({"ema": {"model": parallel}, "step": 7}, place / "ema.pt")
    torch.save({"model": other, "ema": weights}, place / "two.pt")
    torch.save({"state_dict": parallel, "args": argparse.Namespace(lr=1)}, place / "arguments.pt")
    (place / "architecture.json").write_text(json.dumps(cfg | {"quick_gelu": quick}))
    save_file(weights, place / "repository/open_clip_model.safetensors")
    (place / "repository/open_clip_config.json").write_text(
        json.dumps({"model_cfg": cfg | {"quick_gelu": quick}, "preprocess_cfg": preprocess})
    )
    custom = open_clip.model.CustomTextCLIP(**cfg, quick_gelu=quick)
    custom.load_state_dict(open_clip.model.convert_to_custom_text_state_dict(dict(weights)))
    torch.save(custom.state_dict(), place / "custom_text.pt")
"""


@pytest.fixture(scope="session")
def open_clip_models(open_clip, tmp_path_factory) -> Path:
    """``gelu/`` and ``quick_gelu/``: a model of open_clip's in many files, and its embeddings in ``expected.pt``.

    ``tokenizer/`` is CLIP's, made of open_clip's own vocabulary.
    """
    folder = tmp_path_factory.mktemp("open_clip_models")
    open_clip(MAKE, folder, *map(json.dumps, (MODEL_CFG, PREPROCESS_CFG, CAPTIONS)))
    return folder
