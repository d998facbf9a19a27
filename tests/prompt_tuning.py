"""Small labelled pictures for prompt tuning, and learners on the bundled student; conftest.py makes a plugin of it."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from sdsclip_hf import PromptConfig, PromptTrainer
from sdsclip_hf.prompts.methods import make_learner
from sdsclip_hf.prompts.settings import PromptSettings
from sdsclip_hf.shapes import model_path
from sdsclip_hf.students.loading import load_clip

CLASSES = ["circle", "square", "red_star"]
COLORS = {"red": (214, 40, 40), "green": (44, 160, 44), "blue": (36, 84, 220)}


def labelled(count: int = 12, classes=CLASSES, attributes: bool = True) -> datasets.Dataset:
    """Pictures of noise over one colour; the labels go round."""
    rng, words = np.random.default_rng(0), list(COLORS)
    rows = []
    for number in range(count):
        pixels = np.array(COLORS[words[number % 3]]) + rng.integers(-30, 30, (40, 36, 3))
        row = {"image": Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), "label": number % len(classes)}
        rows.append(row | ({"attribute": words[number % 3]} if attributes else {}))
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(classes))}
    features |= {"attribute": datasets.Value("string")} if attributes else {}
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))


@pytest.fixture(scope="session")
def student():
    return load_clip(model_path("student"))


@pytest.fixture
def learner(student):
    """Makes a learner of a method on the bundled student."""

    def make(method: str, classes=CLASSES, **settings):
        torch.manual_seed(0)
        return make_learner(student[0], student[1].tokenizer, classes, PromptSettings(method, **settings))

    return make


@pytest.fixture(scope="session")
def pixels():
    """Three preprocessed pictures."""
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def make_prompt_trainer(tmp_path, student):
    """Makes trainers of two steps of four pictures; ``folder`` is below tmp_path."""

    def make(method: str = "coop", data=None, folder: str = "run", callbacks=None, eval_dataset=None, **options):
        settings = {"output_dir": str(tmp_path / folder), "use_cpu": True, "max_steps": 2, "save_strategy": "no"}
        settings |= {"per_device_train_batch_size": 4, "logging_steps": 1, "report_to": "none", "disable_tqdm": True}
        args = PromptConfig(method=method, **(settings | options))
        data = labelled() if data is None else data
        return PromptTrainer(student[0], args, data, eval_dataset, student[1], callbacks=callbacks)

    return make
