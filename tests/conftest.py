"""Small random models and datasets in the real formats, made once a session."""

import atexit
import gc
import os
import shutil
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many as its share of two cores
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="modules-")  # recipes place the metrics there

import datasets
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from hub_server import WRITER, HubServer
from huggingface_hub import HfApi, constants, hf_api
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
)

from sdsclip_hf.common.checkpoints import write_json
from sdsclip_hf.data.images import picture_digest
from sdsclip_hf.data.scores import FEATURES, SCORES_FILE, content_fingerprint
from sdsclip_hf.evaluation import plots

atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)

# what one folder shares; a conftest.py there would stand in the way of `from conftest import`
pytest_plugins = (
    "doctor_cases",
    "evaluations",
    "finetuning",
    "open_clip_package",
    "pretend_gpu",
    "prompt_tuning",
    "scorings",
    "trainers",
)
WORDS = ("a", "photo", "of", "cat", "dog", "on", "red", "blue", "mat", "chair")


def pytest_collection_finish():
    gc.freeze()  # what is imported stays; each collection would look through it, and each run of the Trainer makes one


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def drawn():
    """For tests that look at the plots of a run."""


@pytest.fixture(autouse=True)
def _undrawn(request, monkeypatch):
    """Plots of runs are empty files: drawn, they are half of what a short run takes."""
    if "drawn" not in request.fixturenames:
        for name in ("plot_losses", "plot_main_scores", "plot_scores"):
            monkeypatch.setattr(plots, name, lambda _, path: path.touch())


def make_tokenizer(max_length: int) -> CLIPTokenizer:
    """A CLIPTokenizer of ten words and the letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    merges = []
    for word in WORDS:
        done = word[0]
        for letter in word[1:-1]:
            merges.append((done, letter))
            done += letter
        if len(word) > 1:
            merges.append((done, word[-1] + "</w>"))
    tokens += ["".join(merge) for merge in merges] + ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=list(dict.fromkeys(merges)), model_max_length=max_length)


def text_config(tokenizer: CLIPTokenizer, length: int, **options) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )


def make_clip() -> CLIPModel:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
        "projection_dim": 12,
    }
    text = text_config(make_tokenizer(20), 20, projection_dim=12).to_dict()
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).eval()


def make_processor() -> CLIPProcessor:
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return CLIPProcessor(images, make_tokenizer(20))


def make_pipeline(prediction_type: str = "epsilon", sample_size: int = 4, **unet_options) -> StableDiffusionPipeline:
    tokenizer = make_tokenizer(16)
    unet = {
        "sample_size": sample_size,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    } | unet_options
    return StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=8,
        ),
        text_encoder=CLIPTextModel(text_config(tokenizer, 16)),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(**unet),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def make_rows(count: int) -> list[dict]:
    """Pictures of one colour each, captioned with words that tell it."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        pixels = np.full((20, 24, 3), rng.integers(0, 256, 3), dtype=np.uint8)
        words = rng.choice(WORDS, size=4)
        rows.append({"image": Image.fromarray(pixels), "caption": f"{' '.join(words)} {'abcdefgh'[number % 8]}"})
    return rows


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A place for prepared datasets that is the test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets_cache"))  # of other processes
    datasets.disable_progress_bars()


@pytest.fixture
def work_folder(own_cache, tmp_path, monkeypatch):
    """An empty folder to be in."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(1)
    make_clip().save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(2)
    make_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def velocity_teacher_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("velocity_teacher")
    torch.manual_seed(3)
    make_pipeline("v_prediction").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def pairs() -> datasets.Dataset:
    """24 captioned pictures."""
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    return datasets.Dataset.from_list(make_rows(24), features=features)


@pytest.fixture(scope="session")
def several_captions(pairs):
    """The same, each with three captions."""
    captions = [[caption, caption + " cat", "red " + caption] for caption in pairs["caption"]]
    return pairs.remove_columns("caption").add_column("caption", captions)


def make_scores(folder: Path, items: list[tuple[str, str, list[str], list[list[float]]]], **settings) -> Path:
    """A folder of scores with the given items: picture's digest, caption, candidates, errors of each draw."""
    columns = dict(zip(FEATURES, map(list, zip(*items, strict=True)), strict=True))
    data = datasets.Dataset.from_dict(columns, features=FEATURES)
    settings = {"teacher": None, "num_draws": 2} | settings
    (folder / "data").mkdir(parents=True)
    data.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    write_json(folder / SCORES_FILE, settings | {"fingerprint": content_fingerprint(data, settings)})
    return folder


@pytest.fixture(scope="session")
def scores_folder(tmp_path_factory, pairs):
    """Scores of the 24 captioned pictures: the captions of the next two beside their own, the own one best."""
    rng = np.random.default_rng(0)
    captions, items = pairs["caption"], []
    for number, image in enumerate(pairs["image"]):
        places = [(number + offset) % len(captions) for offset in rng.permutation(3)]
        errors = [[float(rng.uniform(0, 0.1)) + 0.2 * (place != number) for _ in range(3)] for place in places]
        items.append((picture_digest(image), captions[number], [captions[place] for place in places], errors))
    return str(make_scores(tmp_path_factory.mktemp("scores") / "pairs", items))


def hub_env(server: HubServer, **settings: str) -> dict[str, str]:
    """The environment of a subprocess that takes `server` for the Hub and keeps its cache beside the server's root."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE_"))}
    home = str(server.root.parent / "hf_home")
    return kept | {"HF_ENDPOINT": server.url, "HF_HOME": home, "HF_HUB_DISABLE_XET": "1", **settings}


@pytest.fixture
def hub(tmp_path):
    """A Hugging Face Hub on loopback with nothing in it: put folders into `hub.root`."""
    with HubServer(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def hub_here(hub, tmp_path, monkeypatch):
    """The same Hub for this very process, which is logged in as one who may write in "org"."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf_cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # it keeps the address that it began with
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)  # so does what diffusers asks
    monkeypatch.setenv("HF_TOKEN", WRITER)
    return hub


@pytest.fixture
def waits(monkeypatch):
    """The seconds that the Hub's client would have waited between its attempts."""
    seconds = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def api(hub, waits, monkeypatch):
    """The Hub's client as a process with the environment of `hub_env` has it, with a token that may write in "org"."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return HfApi(endpoint=hub.url, token=WRITER)
