"""An export in transformers of long ago, each in an environment of its own: the same logits and the same tokens."""

import json
import subprocess
import sys
import sysconfig
import venv

import pytest
import torch
from PIL import Image

from sdsclip_hf.shapes import load_shapes, model_path
from sdsclip_hf.students.sdsclip_model import SDSCLIPModel, load_clip

# 4.30 is the oldest that needs no more than it installs to read safetensors.
OLD = {
    "4.30.2": ("tokenizers==0.13.3", "huggingface_hub==0.23.5"),
    "4.40.2": ("tokenizers==0.19.1", "huggingface_hub==0.23.5"),
    "4.49.0": ("tokenizers==0.21.4", "huggingface_hub==0.36.2"),
    "4.57.1": ("tokenizers==0.22.2", "huggingface_hub==0.36.2"),
}
CAPTIONS = ("a red circle above a blue square", "A blue square, and nothing else!")
LOOK = """
import json, sys, torch, transformers
from PIL import Image
from transformers import AutoProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer
folder, captions = sys.argv[1], sys.argv[3:]
model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
batch = processor(text=captions, images=[Image.open(sys.argv[2])], return_tensors="pt", padding=True)
with torch.no_grad():
    logits = model(**batch).logits_per_image
slow = CLIPTokenizer.from_pretrained(folder)(captions).input_ids
kind = type(AutoProcessor.from_pretrained(folder)).__name__
print("FOUND" + json.dumps([transformers.__version__, logits.tolist(), slow, kind]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("version", OLD)
def test_an_export_is_read_by_old_transformers(version, tmp_path):
    if version < "4.40" and sys.version_info >= (3, 12):
        pytest.skip("its tokenizers have no wheels for this Python")
    export, picture = tmp_path / "export", tmp_path / "picture.png"
    clip, processor = load_clip(model_path("student"))
    SDSCLIPModel(clip).export(export, processor)
    load_shapes("test", per_scene=1)[3]["image"].resize((50, 40), Image.Resampling.BICUBIC).save(picture)
    python = tmp_path / "old/bin/python"
    venv.create(tmp_path / "old", with_pip=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", f"transformers=={version}", *OLD[version]]
    subprocess.run(pip, check=True, cwd=tmp_path)
    (behind,) = (tmp_path / "old/lib").glob("python*/site-packages")
    (behind / "behind.pth").write_text(
        sysconfig.get_path("purelib")
    )  # torch and all else, where it is not installed here
    command = [python, "-c", LOOK, export, picture, *CAPTIONS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    told, logits, slow, kind = json.loads(done.stdout.partition("FOUND")[2])
    assert told == version and kind == "CLIPProcessor"
    batch = processor(text=list(CAPTIONS), images=[Image.open(picture)], return_tensors="pt", padding=True)
    assert slow == processor.tokenizer(list(CAPTIONS)).input_ids
    with torch.no_grad():
        expected = clip.eval()(**batch).logits_per_image
    torch.testing.assert_close(torch.tensor(logits), expected, rtol=1e-5, atol=1e-5)
