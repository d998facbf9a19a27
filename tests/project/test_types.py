"""What a user's type checker makes of the public names: right uses pass, each wrong one is an error on its line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sdsclip_hf

RIGHT = """
import datasets
import torch
from PIL import Image
from sdsclip_hf import (
    CandidateScores, ClipScorer, DiffusionScorer, DiffusionTeacher, LatentMapper, SDSCLIPConfig, SDSCLIPModel,
    SDSCLIPTrainer, contrastive_loss, distillation_loss, load_image_captions, ranking_loss,
)
from sdsclip_hf.shapes import load_shapes
from sdsclip_hf.students.sdsclip_model import load_clip
from transformers import CLIPModel, CLIPProcessor

config = SDSCLIPConfig(output_dir="out", max_steps=10, lambda_rank=1.0, sds_reading="noised", trainable="lora")
rows: datasets.Dataset = load_shapes("train")
trainer = SDSCLIPTrainer(model="shapes/student", teacher="shapes/teacher", args=config, train_dataset=rows)
trainer.train()
trainer.save_model("out/export")
student: SDSCLIPModel = trainer.student
SDSCLIPTrainer("shapes/student", train_dataset=load_image_captions("folder", streaming=True), eval_dataset={"a": rows})

teacher: DiffusionTeacher = DiffusionTeacher.from_pretrained("shapes/teacher", load_vae=True, dtype=torch.bfloat16)
scores: torch.Tensor = teacher.diffusion_score([Image.new("RGB", (8, 8))], ["a", "b"], num_draws=2)
shape: tuple[int, int, int] = teacher.latent_shape
device: torch.device = teacher.device
clip, processor = load_clip("shapes/student")
clip_again: CLIPModel = clip
processor_again: CLIPProcessor = processor
latents: torch.Tensor = LatentMapper(512, shape)(torch.zeros(2, 512))
embeds: torch.Tensor = SDSCLIPModel(clip, trainable="full").encode_images(torch.zeros(2, 3, 8, 8))
loss: torch.Tensor = contrastive_loss(embeds, embeds, torch.tensor(10.0))
confident: float = CandidateScores.load("shapes/scores").item(0).confidence
"""
WRONG = """
import datasets
import torch
from sdsclip_hf import DiffusionTeacher, SDSCLIPConfig, SDSCLIPTrainer, contrastive_loss, load_image_captions
from sdsclip_hf import NoSuchName  # wrong

SDSCLIPConfig(output_dir="out", sds_reading="nosied")  # wrong
SDSCLIPConfig(output_dir="out", lambda_rank="much")  # wrong
SDSCLIPConfig(output_dir="out", lambda_rnak=1.0)  # wrong
SDSCLIPTrainer(model=3)  # wrong
SDSCLIPTrainer("shapes/student", train_dataset="shapes")  # wrong
DiffusionTeacher.from_pretrained("shapes/teacher", latent_size="32")  # wrong
rows: datasets.Dataset = load_image_captions("folder")  # wrong
contrastive_loss(torch.zeros(2, 4))  # wrong
number: int = contrastive_loss(torch.zeros(2, 4), torch.zeros(2, 4), torch.tensor(1.0))  # wrong
"""


def test_the_names_told_to_type_checkers_are_those_that_there_are():
    source = Path(sdsclip_hf.__file__)
    assert sorted(sdsclip_hf.__all__) == sorted(sdsclip_hf._WHERE)
    told = source.read_text().partition("if TYPE_CHECKING:")[2].partition("\nelse:")[0]
    imported = {
        name.strip(): module
        for module, names in re.findall(r"from sdsclip_hf\.(\S+) import (.+)", told)
        for name in names.split(",")
    }
    assert imported == sdsclip_hf._WHERE
    assert all(getattr(sdsclip_hf, name).__name__ == name for name in sdsclip_hf.__all__)
    assert (source.parent / "py.typed").read_text() == ""


@pytest.mark.slow
def test_right_uses_pass_and_wrong_ones_do_not(tmp_path):
    for name, text in (("right.py", RIGHT), ("wrong.py", WRONG)):
        (tmp_path / name).write_text(text.lstrip())
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    found: dict[str, set[int]] = {"right.py": set(), "wrong.py": set()}
    told = json.loads(done.stdout)["generalDiagnostics"]
    for problem in told:
        if problem["severity"] == "error":
            found[Path(problem["file"]).name].add(problem["range"]["start"]["line"])
    assert not found["right.py"], json.dumps(told, indent=1)[:4000]
    marked = {number for number, line in enumerate(WRONG.lstrip().splitlines()) if line.endswith("# wrong")}
    assert found["wrong.py"] == marked, json.dumps(told, indent=1)[:6000]
