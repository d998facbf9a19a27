"""tools/train_shapes_flow.py, and what it takes of train_shapes.py: a few steps of each model; tools/study_flow.py."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sdsclip_hf.shapes import load_shapes
from sdsclip_hf.students.loading import load_student
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def tool():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        import train_shapes
        import train_shapes_flow

        scenes = train_shapes.world.scenes("train")[:32]  # all eight of four combinations
        patch.setattr(
            train_shapes, "world", SimpleNamespace(**vars(train_shapes.world) | {"scenes": lambda split: scenes})
        )
        pictures = train_shapes.Pictures(per_scene=2, seed=0)
        patch.setattr(train_shapes, "SAVE_EVERY", 1)
        patch.setattr(train_shapes_flow, "Pictures", lambda **_: pictures)
        patch.setattr(train_shapes_flow, "report", lambda *_: None)  # minutes; the card has its figures
        yield train_shapes_flow


@pytest.fixture(scope="module")
def make(tool, tmp_path_factory):
    """Make all models with so many steps each, in a folder that may hold what an earlier call left."""

    def run(folder: Path) -> Path:
        command = ["train_shapes_flow.py", "--output_dir", str(folder)]
        for stage in ("teacher", "text", "student"):
            command += [f"--{stage}_steps", "2"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", command)
            tool.main()
        return folder

    return run


@pytest.fixture(scope="module")
def made(make, tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("made"))


def weights(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}


@pytest.mark.slow
def test_the_teacher_computes_in_training_what_the_package_does_with_all_places_of_t5(tool, made):
    teacher = DiffusionTeacher.from_pretrained(made / "teacher", load_vae=True)
    assert teacher.prediction_type == "flow" and teacher.latent_shape == (4, 8, 8)
    captions = ["a red circle left of a blue square", ""]
    latents = teacher.encode_images(load_shapes("test", per_scene=1)[:2]["image"])
    assert 0.5 < latents.std() < 2 and latents.mean().abs() < 0.5
    noisy, t = torch.lerp(latents, torch.randn_like(latents), 0.7), torch.tensor([700, 700])
    with torch.no_grad():
        expected = teacher.predict(noisy, t, teacher.encode_captions(captions))
        words, _, sentence, _ = teacher.family.pipeline.encode_prompt(
            captions, None, None, do_classifier_free_guidance=False, max_sequence_length=1
        )
        usual = teacher.denoiser(noisy, words, sentence, t).sample
        teacher.denoiser.set_attn_processor(tool.OneForAll())
        found = teacher.denoiser(noisy, words, sentence, t).sample
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(usual, expected, atol=1e-4), "one place is not as good as all of them"


def test_a_study_of_it_computes_what_the_package_does(made, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import study_flow

    teacher = DiffusionTeacher.from_pretrained(made / "teacher")
    told = teacher.encode_captions(["a red circle left of a blue square", ""])
    given = torch.randn(2, *teacher.latent_shape), teacher.schedule.level(torch.tensor([700, 700])), told
    with torch.no_grad():
        expected, found = teacher.family.predict(*given), study_flow.predict(teacher.family, *given)
    assert not torch.equal(found, expected), "all places were computed"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_student_is_a_siglip_whose_text_tower_stayed_and_with_as_many_matches_as_pairs(tool, made):
    model, processor = load_student(made / "student")
    assert type(model).__name__ == "SiglipModel" and model.logit_scale.exp().item() == pytest.approx(100)
    learned = torch.load(made / "states/siglip_text.state.pt")["model"]
    assert all(
        torch.equal(value, learned[name]) == name.startswith("text_") for name, value in model.named_parameters()
    )
    generator, pictures = torch.Generator().manual_seed(0), tool.Pictures()
    pixels, scenes, _ = tool.random_pictures(pictures, 256, generator)
    captions = [tool.all_orders(pictures, number, generator)[0] for number in scenes.tolist()]
    tokens = processor(text=captions, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=tokens.input_ids, pixel_values=pixels).logits_per_image
    assert logits.sigmoid().sum(1).mean().item() == pytest.approx(1, abs=0.1)  # where a sigmoid's loss has no slope


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(tool, make, made, tmp_path, monkeypatch):
    step = torch.optim.AdamW.step
    taken = []

    def killed(optimizer, *args, **options):
        taken.append(optimizer)
        if len(taken) == 4:  # the text tower's second step; of the teacher both are done
            raise KeyboardInterrupt
        return step(optimizer, *args, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "teacher").is_dir() and not (tmp_path / "student").exists()
    assert weights(make(tmp_path)) == weights(made)
