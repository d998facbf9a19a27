"""A fine-tuning that starts from a checkpoint in open_clip's form."""

from pathlib import Path

import pytest
import torch
import yaml
from finetuning import error_of
from transformers import AutoConfig, CLIPModel

from sdsclip_hf.commands import doctor, plan
from sdsclip_hf.commands.finetune import main
from sdsclip_hf.students.dual_encoder import load_dual_encoder
from sdsclip_hf.students.open_clip_checkpoints import OpenClipOptions
from sdsclip_hf.students.open_clip_format import to_open_clip_weights

PIXELS, IDS = torch.zeros(1, 3, 32, 32), [[49406, 320, 2368, 49407]]


@pytest.fixture
def file(open_clip_models):
    return open_clip_models / "quick_gelu/training.pt"


@pytest.fixture
def started(words, file):
    """Options of a run that starts from the file."""

    def make(**options):
        told = {"architecture": file.with_name("architecture.json"), "processor": file.parents[1] / "tokenizer"}
        contrastive = {"teacher_name_or_path": None, "lambda_sds": 0, "max_steps": 1}
        return words(**({"model_name_or_path": file} | told | contrastive | options))

    return make


def test_a_run_starts_from_the_file_s_weights_and_its_adapter_goes_on_them(started, file, capsys):
    main(started(trainable="lora", train_projections=True))
    told = {"architecture": str(file.with_name("architecture.json")), "processor": str(file.parents[1] / "tokenizer")}
    assert told.items() <= yaml.safe_load(Path("out/run.yaml").read_text()).items()
    assert (
        f"--model out --architecture {told['architecture']} --processor {told['processor']}" in capsys.readouterr().out
    )
    merged = load_dual_encoder("out")
    assert type(merged.model) is CLIPModel and merged.model.config.text_config.hidden_act == "quick_gelu"
    on_base = load_dual_encoder("out/adapter", options=OpenClipOptions(**told))
    base = load_dual_encoder(file, options=OpenClipOptions(**told))
    for embed, given in (("embed_pixels", {"pixel_values": PIXELS}), ("embed_tokens", IDS)):
        wanted, found, before = (getattr(one, embed)(given) for one in (merged, on_base, base))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
        assert (wanted - before).abs().max() > 1e-4


def test_what_does_not_train_is_as_it_was_in_open_clip_s_form(started, file):
    main(started(train_text=False, learning_rate=0.1))
    model = CLIPModel.from_pretrained("out")
    found, first = to_open_clip_weights(model.state_dict(), model.config), torch.load(file)["state_dict"]
    changed = {name for name, weight in found.items() if not torch.equal(weight, first[f"module.{name}"])}
    assert changed and all(name.startswith("visual.") and ".ln_" in f".{name}" for name in changed)


def test_a_repository_in_open_clip_s_form_needs_nothing_told_but_its_tokenizer(started, open_clip_models):
    main(started(model_name_or_path=open_clip_models / "gelu/repository", architecture=None))
    assert AutoConfig.from_pretrained("out").vision_config.hidden_act == "gelu"


def test_what_is_told_of_a_model_that_tells_it_itself_is_refused(started, clip_folder):
    told = error_of(started(model_name_or_path=clip_folder, architecture="ViT-B-32", processor=None))
    assert "is in transformers' form, which tells all by itself; leave --architecture out" in told
    assert "give --architecture one of" in error_of(started(architecture="ViT-B-33"))


def test_plan_and_doctor_know_it(started, file, capsys):
    told = started()
    plan.main([*told, "--tflops", "1", "--alternatives", "false", "--train_pairs", "8"])
    assert "pairs" in capsys.readouterr().out
    doctor.main(told)
    assert f"{file}: a CLIP in open_clip's form, with quick_gelu" in capsys.readouterr().out
