"""Students of every kind against the models' own forward passes: embeddings, losses, adapters, exports."""

import json
import math
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import make_clip, make_rows, make_tokenizer
from dual_encoders import KINDS, STUDENTS, make_dual_encoder
from forking import run_forked
from peft import LoraConfig
from torch import nn

from sdsclip_hf.losses import contrastive_loss, sigmoid_loss
from sdsclip_hf.students.kinds import caption_reader, image_features, text_features
from sdsclip_hf.students.latent_mapper import LatentMapper
from sdsclip_hf.students.loading import embed_dim, load_student, picture_shapes, read_captions, student_config
from sdsclip_hf.students.sdsclip_model import SDSCLIPModel

pytestmark = pytest.mark.filterwarnings("ignore")
CAPTIONS = ["a red cat", "dog", "a photo of a blue chair on a mat"]


class Case:
    """A model of one kind, its processor, and three pairs as its processor gives them, padded as it was trained."""

    def __init__(self, kind: str):
        self.kind = kind
        self.model, self.processor = make_dual_encoder(kind)
        self.reader = read_captions(self.processor, self.model)
        images, options = [row["image"] for row in make_rows(3)], KINDS[kind].options
        text = {"padding": "max_length", "max_length": self.reader.max_length, "truncation": True}
        self.inputs = dict(self.processor(text=CAPTIONS, images=images, return_tensors="pt", **text, **options))
        self.pictures = dict(self.processor.image_processor(images, return_tensors="pt"))

    def student(self, trainable="layernorm", **options) -> SDSCLIPModel:
        mapper = LatentMapper(embed_dim(self.model.config), (4, 4, 4))
        return SDSCLIPModel(self.model, mapper, trainable=trainable, **options).eval()

    def batch(self) -> dict[str, torch.Tensor]:
        return self.pictures | self.reader(CAPTIONS)


@pytest.fixture(params=STUDENTS)
def case(request):
    return Case(request.param)


def native(case: Case, **options):
    """The model's own forward pass; each takes what it knows."""
    takes = {name: value for name, value in case.inputs.items() if name != "token_type_ids"}
    return case.model(**takes, **options)


@torch.no_grad()
def test_embeddings_temperature_and_loss_are_the_model_s_own(case):
    wanted = native(case, **({} if case.kind == "aimv2" else {"return_loss": True}))  # it has none
    student = case.student("full")
    output = student(**case.batch())
    torch.testing.assert_close(output.image_embeds, F.normalize(wanted.image_embeds, dim=-1), rtol=0, atol=1e-6)
    torch.testing.assert_close(output.text_embeds, F.normalize(wanted.text_embeds, dim=-1), rtol=0, atol=1e-6)
    assert output.latents.shape == (3, 4, 4, 4)
    bias = 0.0 if output.logit_bias is None else output.logit_bias
    logits = output.logit_scale * output.image_embeds @ output.text_embeds.T + bias
    torch.testing.assert_close(logits, wanted.logits_per_image, rtol=1e-5, atol=1e-5)
    assert output.logit_scale.shape == () and (output.logit_bias is not None) == case.kind.startswith("siglip")
    embeds = output.image_embeds, output.text_embeds, output.logit_scale
    if output.logit_bias is not None:
        torch.testing.assert_close(sigmoid_loss(*embeds, output.logit_bias), wanted.loss)
    elif case.kind != "aimv2":
        torch.testing.assert_close(contrastive_loss(*embeds), wanted.loss)


def test_norms_of_both_towers_train_and_have_a_gradient(case):
    student = case.student("layernorm")
    output = student(**case.batch())
    (output.image_embeds[0] * output.text_embeds[1]).sum().backward()
    trained = {name: weight for name, weight in student.clip.named_parameters() if weight.requires_grad}
    modules = dict(student.clip.named_modules())
    assert all("Norm" in type(modules[name.rpartition(".")[0]]).__name__ for name in trained)
    for tower in ("vision_model", "text_model"):
        weights = [weight for name, weight in trained.items() if name.startswith(tower) and name.endswith("weight")]
        assert len(weights) >= 4 and all(weight.grad is not None and weight.grad.any() for weight in weights)


def test_lora_finds_both_towers_layers_which_all_train_and_merge_exactly(case):
    student = case.student("lora", lora_r=2)
    lora = {name: weight for name, weight in student.named_parameters() if ".lora_B." in name}
    with torch.no_grad():
        for weight in lora.values():
            weight.normal_(0, 0.3)
    batch = {name: value.double() if value.is_floating_point() else value for name, value in case.batch().items()}
    output = student.double()(**batch)
    ((output.image_embeds - output.text_embeds.flip(0)) ** 3).sum().backward()
    dead = [name for name, weight in lora.items() if weight.grad is None or not weight.grad.any()]
    assert not dead
    for tower in ("vision_model", "text_model"):
        found = [name for name in lora if f"model.{tower}." in name]
        assert len(found) >= 12
    merged = student.merged_clip()
    images, texts = image_features(merged, batch), text_features(merged, batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(F.normalize(images, dim=-1), output.image_embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(F.normalize(texts, dim=-1), output.text_embeds, rtol=0, atol=1e-6)
    assert type(merged) is type(case.model)


@pytest.mark.parametrize("config", [None, LoraConfig(target_modules=["out_proj"])])
def test_layers_inside_an_attention_of_pytorch_s_own_are_never_adapted(config):
    case = Case("siglip")
    if config is not None:
        with pytest.raises(ValueError, match=r"vision_model\.head\.attention\.out_proj lies inside an attention"):
            case.student("lora", peft_config=config)
        return
    student = case.student("lora", lora_target_modules=("out_proj",))
    names = [name for name, weight in student.named_parameters() if ".lora_B." in name]
    assert len(names) == 4 and not any(".head." in name for name in names)


def test_a_rebuilt_student_is_of_the_same_class_and_gives_the_same(case):
    student = case.student("lora")
    again = student.rebuilt(student.state_dict())
    assert type(again.base_clip) is type(case.model)
    with torch.no_grad():
        for one, other in zip(student(**case.batch()).to_tuple(), again(**case.batch()).to_tuple(), strict=True):
            assert torch.equal(one, other)


def test_checkpointed_activations_give_the_same_gradient(case):
    gradients = []
    student = case.student("layernorm").train()
    for checkpointed in (False, True):
        if checkpointed:
            student.gradient_checkpointing_enable()
        student.zero_grad()
        torch.manual_seed(0)  # BERT's dropout
        student(**case.batch()).text_embeds[:, 0].sum().backward()
        gradients.append([w.grad.clone() for w in student.clip.parameters() if w.grad is not None and w.grad.any()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


LOAD = """
import json, sys
import torch
for name in [name for name in sys.modules if name.split(".")[0] == "sdsclip_hf"]:
    del sys.modules[name]
sys.modules["sdsclip_hf"] = None
from transformers import AutoModel, AutoProcessor
for kind in json.loads(sys.argv[2]):
    folder = f"{sys.argv[1]}/{kind}"
    model, told = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    processor = AutoProcessor.from_pretrained(folder)
    batch, wanted = torch.load(f"{folder}.pt")
    with torch.no_grad():
        output = model.eval()(**batch)
    found = [torch.nn.functional.normalize(part, dim=-1) for part in (output.image_embeds, output.text_embeds)]
    same = max((one - other).abs().max().item() for one, other in zip(found, wanted))
    words = processor.tokenizer(["a red cat"]).input_ids
    print(json.dumps([kind, type(model).__name__, len(words[0]), same]))
"""


def test_exports_load_by_automodel_without_the_package(tmp_path):
    expected = {}
    for kind in STUDENTS:
        case = Case(kind)
        student = case.student("lora")
        with torch.no_grad():
            for name, weight in student.named_parameters():
                if ".lora_B." in name:
                    weight.normal_(0, 0.3)
            output = student(**case.batch())
        student.export(tmp_path / kind, case.processor)
        takes = {name: value for name, value in case.inputs.items() if name != "token_type_ids"}
        torch.save((takes, [output.image_embeds, output.text_embeds]), tmp_path / f"{kind}.pt")
        expected[kind] = [type(case.model).__name__, len(case.processor.tokenizer(["a red cat"]).input_ids[0])]
        config = json.loads((tmp_path / kind / "config.json").read_text())
        assert config["model_type"] == case.model.config.model_type
        assert json.loads((tmp_path / kind / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    done = run_forked(LOAD, tmp_path, json.dumps(STUDENTS))
    assert done.returncode == 0, done.stderr[-3000:]
    for line in done.stdout.splitlines():
        kind, name, words, difference = json.loads(line)
        assert [name, words] == expected.pop(kind) and difference < 1e-5
    assert not expected


# What cannot be seen by looking


@pytest.mark.parametrize(
    ("kind", "vocabulary", "tokenizer", "lower"),
    [
        ("siglip", 32_000, "SiglipTokenizer", False),
        ("siglip", 256_000, "TokenizersBackend", True),
        ("siglip", 300, "GemmaTokenizer", True),
        ("siglip2", 300, "Siglip2Tokenizer", True),
    ],
)
def test_siglip_reads_captions_as_it_was_trained_to(kind, vocabulary, tokenizer, lower):
    text = SimpleNamespace(max_position_embeddings=12, vocab_size=vocabulary)
    words = make_tokenizer(20)
    words.__class__ = type(tokenizer, (type(words),), {})
    words.padding_side = "left"
    reader = caption_reader(SimpleNamespace(config=SimpleNamespace(model_type=kind, text_config=text)), words)
    seen = reader(["A red cat"])
    letters = words("a red cat" if lower else "A red cat", padding="max_length", max_length=12, padding_side="right")
    assert seen["input_ids"].tolist() == [letters.input_ids] and reader.lower == lower
    assert seen["attention_mask"].tolist() == [letters.attention_mask]


def test_siglip_s_model_gets_no_mask_and_the_others_theirs(case, monkeypatch):
    masks, original = [], case.model.get_text_features
    given = lambda **inputs: masks.append(inputs["attention_mask"]) or original(**inputs)  # noqa: E731
    monkeypatch.setattr(case.model, "get_text_features", given)
    case.student().encode_texts(**case.reader(CAPTIONS))
    assert (masks[0] is None) == case.kind.startswith("siglip")


@pytest.mark.parametrize(("start", "end", "kept"), [(4.0, 5.0, math.log(100)), (4.77, 5.0, 5.0)])
def test_a_temperature_is_clamped_only_where_it_began_below_the_limit(start, end, kept):
    model, _ = make_dual_encoder("siglip")
    nn.init.constant_(model.logit_scale, start)
    student = SDSCLIPModel(model, train_logit_scale=True)
    nn.init.constant_(model.logit_scale, end)
    student.clamp_logit_scale()
    assert model.logit_scale.item() == pytest.approx(kept)
    assert model.logit_scale.requires_grad and model.logit_bias.requires_grad


@pytest.mark.parametrize(("start", "end", "kept"), [(0.5, 0.001, 0.01), (0.005, 0.001, 0.001)])
def test_a_temperature_that_divides_is_clamped_likewise(start, end, kept):
    model, _ = make_dual_encoder("tipsv2")
    nn.init.constant_(model.temperature, start)
    student = SDSCLIPModel(model)
    nn.init.constant_(model.temperature, end)
    student.clamp_logit_scale()
    assert model.temperature.item() == pytest.approx(kept) and not model.temperature.requires_grad


# Bad input


def test_models_that_are_no_students_are_refused(tmp_path):
    case = Case("siglip")
    with pytest.raises(ValueError, match="a SiglipTextModel does not embed images and captions"):
        SDSCLIPModel(case.model.text_model)
    del case.model.logit_scale
    with pytest.raises(ValueError, match=r"cannot be a student: it has no logit_scale or temperature.*--model_name"):
        SDSCLIPModel(case.model)
    with pytest.raises(ValueError, match="a AlignModel cannot be a student: it has batch norms"):
        SDSCLIPModel(make_dual_encoder("align")[0])
    with pytest.raises(ValueError, match=r"a SiglipModel has no projections.*--train_projections"):
        Case("siglip").student(train_projections=True)
    wrong = make_clip()
    wrong.config.model_type = "metaclip_2"
    with pytest.raises(ValueError, match="the student is a CLIPModel, but its configuration is that of a 'metaclip_2'"):
        SDSCLIPModel(wrong)
    for kind in ("bert", "no_such_type"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(
            ValueError, match=rf"type '{kind}', which transformers knows as no dual encoder.*CLIP, SigLIP"
        ):
            load_student(tmp_path)


@pytest.mark.parametrize(
    ("kind", "file", "content", "package"),
    [
        ("siglip", "tokenizer_config.json", {"tokenizer_class": "SiglipTokenizer"}, "sentencepiece"),
        ("tipsv2", "preprocessor_config.json", {"image_processor_type": "Tipsv2ImageProcessor"}, "torchvision"),
    ],
)
def test_a_missing_package_is_named_with_the_remedy(tmp_path, kind, file, content, package):
    if find_spec(package):
        pytest.skip(f"{package} is installed")
    case = Case(kind)
    case.model.save_pretrained(tmp_path)
    case.processor.save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").unlink()
    case.processor.image_processor.save_pretrained(tmp_path)
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(
        ImportError, match=rf"the student .* needs a package that is not installed: pip install {package}"
    ):
        load_student(tmp_path)


def test_pictures_shapes_and_width_are_told_by_the_configuration(case, tmp_path):
    case.model.config.save_pretrained(tmp_path)
    config = student_config(str(tmp_path))
    shapes = {name: tuple(value.shape[1:]) for name, value in case.pictures.items()}
    if case.kind == "siglip2":  # of which the processor may be told to give fewer
        shapes = {"pixel_values": (16, 192), "pixel_attention_mask": (16,), "spatial_shapes": (2,)}
    assert picture_shapes(config) == shapes
    assert embed_dim(config) == case.student().encode_images(**case.pictures).shape[1]
