"""The student: the mapper's scale, which weights train, and that its export is a plain CLIP with the same outputs."""

import copy
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_clip, make_processor, make_tokenizer
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from tokenizers.models import WordLevel
from torch import nn
from transformers import CLIPModel, CLIPProcessor

from sdsclip_hf.students.latent_mapper import LatentMapper
from sdsclip_hf.students.sdsclip_model import MAPPER_FILE, SDSCLIPModel, load_clip

LATENT = (4, 4, 4)


def unit_embeds(rows: int, width: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, width), dim=-1)


def make_student(trainable: str = "layernorm", clip: CLIPModel | None = None, **options) -> SDSCLIPModel:
    clip = make_clip() if clip is None else clip
    return SDSCLIPModel(clip, LatentMapper(clip.config.projection_dim, LATENT), trainable=trainable, **options).eval()


def trained_names(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def perturb(student: SDSCLIPModel) -> None:
    """As training would: move every weight that trains."""
    for parameter in student.parameters():
        if parameter.requires_grad:
            parameter += 0.2 * torch.randn_like(parameter)


@pytest.fixture
def batch():
    """Pixels and token ids of four pairs; captions end, since at a first token attention has nothing to choose from."""
    input_ids = torch.randint(0, 30, (4, 6))
    input_ids[:, -1] = make_tokenizer(20).eos_token_id
    return {"pixel_values": torch.randn(4, 3, 16, 16), "input_ids": input_ids}


@torch.no_grad()
def outputs(model: nn.Module, batch: dict) -> list[torch.Tensor]:
    output = model.eval()(**batch)
    return [output.image_embeds, output.text_embeds]


# The latent mapper


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_mapper_starts_at_its_scale_on_average(scale):
    latents = LatentMapper(64, (4, 16, 16), unit_rms=False, scale=scale)(unit_embeds(200, 64))
    assert latents.shape == (200, 4, 16, 16)
    assert latents.square().mean().sqrt().item() == pytest.approx(scale, rel=0.03)
    assert latents.flatten(1).std(0).median().item() == pytest.approx(scale, rel=0.1), "samples must differ"


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_unit_rms_holds_the_scale_exactly_whatever_the_weights(scale):
    mapper = LatentMapper(8, LATENT, unit_rms=True, scale=scale)
    with torch.no_grad():
        mapper.linear.weight *= 0.01
        mapper.linear.bias += 0.5
    for latents in mapper(unit_embeds(5, 8)):
        assert math.sqrt(sum(value**2 for value in latents.flatten().tolist()) / 64) == pytest.approx(scale, rel=1e-4)


def test_mapper_without_unit_rms_is_affine():
    mapper = LatentMapper(8, LATENT, unit_rms=False)
    nn.init.normal_(mapper.linear.bias)
    a, b = torch.randn(2, 1, 8)
    torch.testing.assert_close(mapper(a) + mapper(b), mapper(a + b) + mapper(torch.zeros(1, 8)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mapper(3 * a) - mapper(0 * a), 3 * (mapper(a) - mapper(0 * a)), rtol=1e-4, atol=1e-4)


def test_unit_rms_only_scales_the_linear_map():
    plain, scaled = LatentMapper(8, LATENT, unit_rms=False), LatentMapper(8, LATENT, unit_rms=True)
    scaled.load_state_dict(plain.state_dict())
    embeds = unit_embeds(3, 8)
    cosines = F.cosine_similarity(plain(embeds).flatten(1), scaled(embeds).flatten(1))
    torch.testing.assert_close(cosines, torch.ones(3))


def test_mapper_has_one_weight_an_input_and_output_and_one_bias_an_output():
    mapper = LatentMapper(512, (4, 64, 64))
    assert sum(parameter.numel() for parameter in mapper.parameters()) == 512 * 16384 + 16384


def uneven_embeds(rows: int = 400) -> torch.Tensor:
    """Embeddings away from the origin whose four directions vary by up to a factor of eight, in rotated axes."""
    rotation = torch.linalg.qr(torch.randn(4, 4))[0]
    return torch.tensor([0.5, -1, 2, 0]) + torch.randn(rows, 4) * torch.tensor([0.8, 0.4, 0.2, 0.1]) @ rotation


def test_whitened_coordinates_have_mean_zero_and_unit_covariance():
    mapper, embeds = LatentMapper(4, (4, 1, 1), unit_rms=False), uneven_embeds()
    mapper.linear.load_state_dict({"weight": torch.eye(4), "bias": torch.zeros(4)})  # the output is the coordinates
    mapper.whiten(embeds)
    seen = mapper(embeds).flatten(1).detach().numpy()
    np.testing.assert_allclose(seen.mean(0), np.zeros(4), atol=1e-4)
    np.testing.assert_allclose(np.cov(seen.T), np.eye(4), atol=1e-3)


def test_whitening_leaves_out_directions_below_the_floor():
    mapper, embeds = LatentMapper(4, (4, 1, 1), unit_rms=False), uneven_embeds()
    mapper.linear.load_state_dict({"weight": torch.eye(4), "bias": torch.zeros(4)})
    mapper.whiten(embeds, floor=0.25)
    before, after = (np.linalg.eigvalsh(np.cov(x.detach().flatten(1).numpy().T)) for x in (embeds, mapper(embeds)))
    np.testing.assert_allclose(after, np.where(before > 0.25 * before.max(), 1, 0), atol=1e-3)
    assert 0 < np.sum(after > 0.5) < 4


def test_whitened_mapper_still_starts_at_its_scale():
    mapper, embeds = LatentMapper(4, (4, 16, 16), unit_rms=False, scale=0.7), uneven_embeds()
    mapper.whiten(embeds)
    assert mapper(embeds).square().mean().sqrt().item() == pytest.approx(0.7, rel=0.05)


@pytest.mark.parametrize("whitened", [False, True])
def test_mapper_is_one_linear_layer_on_embeddings(whitened):
    mapper, embeds = LatentMapper(4, LATENT, unit_rms=False), uneven_embeds()
    nn.init.normal_(mapper.linear.bias)
    if whitened:
        mapper.whiten(embeds)
    layer = mapper.as_linear()
    expected = embeds @ layer.weight.T + layer.bias
    torch.testing.assert_close(mapper(embeds).flatten(1), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize(("unit_rms", "scale"), [(True, 0.5), (False, 1.0)])
def test_saved_mapper_loads_as_the_same_function(tmp_path, unit_rms, scale, whitened):
    mapper, embeds = LatentMapper(4, (2, 3, 5), unit_rms=unit_rms, scale=scale), uneven_embeds()
    nn.init.normal_(mapper.linear.bias)
    if whitened:
        mapper.whiten(embeds)
    mapper.save(tmp_path / "mapper.safetensors")
    loaded = LatentMapper.load(tmp_path / "mapper.safetensors")
    assert loaded(embeds).shape == (400, 2, 3, 5)
    torch.testing.assert_close(loaded(embeds), mapper(embeds), rtol=1e-3, atol=1e-3)


def test_whitening_survives_a_checkpoint():
    mapper, embeds = LatentMapper(4, LATENT), uneven_embeds()
    mapper.whiten(embeds)
    resumed = LatentMapper(4, LATENT)
    resumed.load_state_dict(mapper.state_dict())
    assert torch.equal(resumed(embeds), mapper(embeds))


# The forward pass


def test_forward_gives_clip_s_own_embeddings_and_the_mapper_s_latents(batch):
    clip = make_clip()
    with torch.no_grad():
        expected = clip(**batch)
    student = make_student(clip=copy.deepcopy(clip))
    output = student(**batch)
    torch.testing.assert_close(output.image_embeds, expected.image_embeds)
    torch.testing.assert_close(output.text_embeds, expected.text_embeds)
    assert output.logit_scale.item() == pytest.approx(math.exp(clip.logit_scale.item()))
    torch.testing.assert_close(output.latents, student.mapper(expected.image_embeds))


def test_student_without_mapper_gives_no_latents(batch):
    assert SDSCLIPModel(make_clip())(**batch).latents is None


# What trains


def layernorm_names(clip: CLIPModel) -> set[str]:
    owners = {name for name, module in clip.named_modules() if type(module) is nn.LayerNorm}
    return {name for name, _ in clip.named_parameters() if name.rpartition(".")[0] in owners}


def test_layernorm_trains_every_layernorm_and_the_mapper_alone():
    student = make_student("layernorm")
    # Two in each of 2 + 2 layers, one before and one after the image tower, one after the text tower; 16 wide.
    assert student.count_parameters()["clip_trained"] == (2 * 4 + 3) * 2 * 16
    assert trained_names(student.clip) == layernorm_names(student.clip)
    assert trained_names(student.mapper) == {"linear.weight", "linear.bias"}


def test_full_trains_everything_but_the_temperature():
    student = make_student("full")
    everything = {name for name, _ in student.clip.named_parameters()}
    assert trained_names(student.clip) == everything - {"logit_scale"}
    assert student.count_parameters() == {
        "clip_trained": sum(parameter.numel() for parameter in make_clip().parameters()) - 1,
        "clip_all": sum(parameter.numel() for parameter in make_clip().parameters()),
        "mapper_trained": 12 * 64 + 64,
    }


def test_lora_trains_adapters_of_the_named_layers_in_both_towers_alone():
    student = make_student("lora", lora_r=3, lora_target_modules=("q_proj", "fc1"))
    names = trained_names(student.clip)
    assert all("lora_" in name for name in names)
    # Both matrices of q_proj (16 to 16) and fc1 (16 to 32) in 2 layers of 2 towers.
    assert student.count_parameters()["clip_trained"] == 4 * 3 * ((16 + 16) + (16 + 32))
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names} == {"q_proj", "fc1"}


@pytest.mark.parametrize("trainable", ["layernorm", "lora", "full"])
@pytest.mark.parametrize(("left_out", "kept"), [("vision", "text"), ("text", "vision")])
def test_a_tower_that_is_switched_off_keeps_every_weight(trainable, left_out, kept):
    names = trained_names(make_student(trainable, **{f"train_{left_out}": False}).clip)
    projection = {"vision": "visual_projection", "text": "text_projection"}
    assert not any(f"{left_out}_model" in name or projection[left_out] in name for name in names)
    assert any(f"{kept}_model" in name for name in names)


@pytest.mark.parametrize(
    ("trainable", "switch", "trains"),
    [
        ("full", None, True),
        ("full", True, True),
        ("full", False, False),
        ("lora", None, False),
        ("lora", True, True),
        ("lora", False, False),
        ("layernorm", None, False),
    ],
)
def test_projections_train_with_full_or_when_asked_for(trainable, switch, trains):
    names = trained_names(make_student(trainable, train_projections=switch).clip)
    for projection in ("visual_projection", "text_projection"):
        assert any(projection in name for name in names) == trains


@pytest.mark.parametrize("trainable", ["layernorm", "lora", "full"])
@pytest.mark.parametrize("switch", [False, True])
def test_temperature_trains_when_asked_for_alone(trainable, switch):
    student = make_student(trainable, train_logit_scale=switch)
    assert any(name.endswith("logit_scale") for name in trained_names(student)) == switch


@pytest.mark.parametrize("trainable", ["layernorm", "lora", "full"])
def test_a_step_moves_what_trains_and_nothing_else(trainable, batch):
    student = make_student(trainable)
    perturb(student)  # LoRA's A has no gradient while B is zero
    before = {name: parameter.detach().clone() for name, parameter in student.named_parameters()}
    output = student(**batch)
    ((output.image_embeds * output.text_embeds.roll(1, 0)).sum() + output.latents[..., 0].sum()).backward()
    torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=10.0).step()
    moved = {name for name, parameter in student.named_parameters() if not torch.equal(parameter, before[name])}
    # The bias of the keys shifts all logits of a query alike: its gradient is zero but for rounding.
    without_gradient = {name for name in before if name.endswith("k_proj.bias")}
    assert moved | without_gradient == trained_names(student) | without_gradient


def test_lora_leaves_the_outputs_unchanged_at_the_start(batch):
    clip = make_clip()
    expected = outputs(copy.deepcopy(clip), batch)
    for got, base in zip(outputs(make_student("lora", clip), batch), expected, strict=True):
        torch.testing.assert_close(got, base)


def test_whole_peft_configuration_takes_the_place_of_the_switches():
    config = LoraConfig(r=2, target_modules=["v_proj"])
    names = trained_names(make_student("lora", peft_config=config, lora_r=7, train_text=False).clip)
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names} == {"v_proj"}
    assert any("text_model" in name for name in names)


def test_lora_targets_that_match_nothing_raise_with_targets_and_choices():
    with pytest.raises(ValueError, match=r"to_q.*fc1, fc2, k_proj, out_proj, q_proj.*--lora_target_modules"):
        make_student("lora", lora_target_modules=("to_q",))


@pytest.mark.parametrize(
    "trainable",
    [
        "layernorm",
        "lora",
        "full",
    ],
)
def test_nothing_to_train_raises_and_names_the_switches(trainable):
    with pytest.raises(ValueError, match=r"train_vision.*train_text"):
        make_student(trainable, train_vision=False, train_text=False)


def test_unknown_trainable_raises_with_the_choices():
    with pytest.raises(ValueError, match=r"'bitfit'.*layernorm, lora, full"):
        make_student("bitfit")


@pytest.mark.parametrize(("before", "after"), [(5.0, math.log(100)), (4.0, 4.0)])
@pytest.mark.parametrize("trainable", ["layernorm", "lora"])
def test_temperature_is_clamped_at_one_hundred(trainable, before, after):
    student = make_student(trainable)
    nn.init.constant_(student.base_clip.logit_scale, before)
    student.clamp_logit_scale()
    assert student.base_clip.logit_scale.item() == pytest.approx(after)


@pytest.mark.parametrize("trainable", ["layernorm", "lora", "full"])
def test_trained_state_dict_holds_what_trains_and_the_mapper_s_coordinates_alone(trainable):
    student = make_student(trainable, train_text=False)
    state = student.trained_state_dict()
    coordinates = {f"mapper.{name}" for name, _ in student.mapper.named_buffers()}
    assert set(state) == trained_names(student) | coordinates
    tensors = dict(student.named_parameters()) | dict(student.named_buffers())
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in state.items())


@pytest.mark.parametrize("trainable", ["layernorm", "lora"])
def test_half_precision_clip_is_trained_in_float32(trainable):
    student = make_student(trainable, make_clip().half())
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32} == {student.dtype}


# Export


@pytest.fixture(params=["layernorm", "lora", "full"])
def exported(request, clip_folder, tmp_path, batch):
    """A student with moved weights, its outputs before the export, and the folder it was exported to."""
    clip, processor = load_clip(clip_folder)
    student = make_student(request.param, clip, train_projections=None if request.param == "layernorm" else True)
    perturb(student)
    before = outputs(student, batch)
    student.export(tmp_path / "export", processor)
    return student, before, tmp_path / "export"


def test_export_loads_as_a_plain_clip_with_the_student_s_outputs(exported, clip_folder, batch):
    _, expected, folder = exported
    clip, info = CLIPModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(clip) is CLIPModel
    assert {p.dtype for p in clip.parameters()} == {torch.float32}
    for got, wanted, base in zip(
        outputs(clip, batch), expected, outputs(CLIPModel.from_pretrained(clip_folder), batch), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
        assert (got - base).abs().max() > 1e-2, "the weights that were moved are not in the export"


def test_exported_processor_and_mapper_load(exported, pairs, clip_folder):
    student, _, folder = exported
    loaded, base = (CLIPProcessor.from_pretrained(name) for name in (folder, clip_folder))
    row = pairs[0]
    for name, tensor in base(text=row["caption"], images=row["image"], return_tensors="pt").items():
        assert torch.equal(loaded(text=row["caption"], images=row["image"], return_tensors="pt")[name], tensor)
    assert loaded.image_processor.to_dict() == base.image_processor.to_dict()
    assert loaded.tokenizer.backend_tokenizer.to_str() == base.tokenizer.backend_tokenizer.to_str()
    embeds = unit_embeds(2, 12)
    torch.testing.assert_close(LatentMapper.load(folder / MAPPER_FILE)(embeds), student.mapper(embeds))


def test_the_processor_s_files_are_those_that_old_transformers_read(tmp_path):
    (tmp_path / "processor_config.json").write_text("{}")  # of an earlier export
    processor = make_processor()
    make_student().export(tmp_path, processor)
    assert not (tmp_path / "processor_config.json").exists()
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["crop_size"] == {"height": 16, "width": 16}
    merges = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["merges"]
    assert "ca t</w>" in merges and (tmp_path / "merges.txt").read_text().splitlines()[1:] == merges
    assert json.loads((tmp_path / "vocab.json").read_text()) == processor.tokenizer.get_vocab()
    processor.tokenizer.backend_tokenizer.model = WordLevel({"cat": 0}, unk_token="cat")
    make_student().export(tmp_path / "words", processor)  # which have no merges, and no such files
    assert not (tmp_path / "words" / "merges.txt").exists()


def test_adapter_is_exported_for_lora_alone_and_gives_the_merged_outputs(exported, clip_folder, batch):
    student, expected, folder = exported
    if student.trainable != "lora":
        assert not (folder / "adapter").exists()
        return
    adapted = PeftModel.from_pretrained(CLIPModel.from_pretrained(clip_folder), folder, subfolder="adapter")
    for got, wanted in zip(outputs(adapted, batch), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    assert all("lora_" in name for name in load_file(folder / "adapter" / "adapter_model.safetensors"))


def test_export_leaves_the_student_as_it_was(exported, batch):
    student, before, folder = exported
    names, state = trained_names(student), copy.deepcopy(student.state_dict())
    student.export(folder.parent / "again")
    assert trained_names(student) == names != set()
    assert set(student.state_dict()) == set(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in student.state_dict().items())
    for got, wanted in zip(outputs(student, batch), before, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("trainable", ["layernorm", "lora", "full"])
def test_merged_clip_is_a_plain_clip_that_can_be_trained_on(trainable):
    clip = make_student(trainable).merged_clip()
    assert type(clip) is CLIPModel
    assert {name for name, _ in clip.named_parameters()} == {name for name, _ in make_clip().named_parameters()}
    assert all(parameter.requires_grad for parameter in clip.parameters())
    assert not any(module.training for module in clip.modules())


def test_temperature_is_exported(tmp_path):
    student = make_student("lora", train_logit_scale=True)
    nn.init.constant_(student.base_clip.logit_scale, 3.25)
    student.export(tmp_path)
    assert CLIPModel.from_pretrained(tmp_path).logit_scale.item() == 3.25


def test_export_without_mapper_writes_no_mapper(tmp_path):
    SDSCLIPModel(make_clip()).export(tmp_path)
    assert not (tmp_path / MAPPER_FILE).exists()
    assert (tmp_path / "model.safetensors").is_file()


# Loading CLIP


def test_load_clip_gives_float32_weights_of_a_half_precision_checkpoint(clip_folder, tmp_path):
    clip, processor = load_clip(clip_folder)
    clip.half().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, _ = load_clip(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_folder_of_another_model_raises_with_its_type(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(ValueError, match=r"type 'siglip', not 'clip'; load it by load_student"):
        load_clip(tmp_path)


@pytest.mark.parametrize("name", ["nobody/no-such-clip", "no/such/folder"])
def test_clip_that_is_nowhere_raises_with_its_name(name):
    with pytest.raises(OSError, match=rf"the student '{name}'.*--model_name_or_path a local folder"):
        load_clip(name)
