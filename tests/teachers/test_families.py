"""Every family of teachers against its own pipeline, which hands its scheduler what we must predict."""

import importlib.util
import inspect
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny_pipelines
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sdsclip_hf import SDSCLIPConfig
from sdsclip_hf.benchmarks import load_benchmark
from sdsclip_hf.losses import WEIGHTINGS, add_noise, predicted_noise
from sdsclip_hf.planning.ledger import Phase
from sdsclip_hf.planning.rehearsal import DENOISER, ENCODER, FORWARD, rehearse
from sdsclip_hf.shapes import model_path
from sdsclip_hf.teachers.conditions import lengthened, rows_of
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher
from sdsclip_hf.teachers.families.catalogue import BY_PIPELINE, FAMILIES
from sdsclip_hf.teachers.families.packing import from_patches
from sdsclip_hf.teachers.prompt_cache import PromptCache
from sdsclip_hf.teachers.schedule import Level

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore")
CAPTIONS = ["a red dog on a blue cat", "a cat", "a photo of a small green square left of a big circle"]
EVERY = pytest.mark.parametrize("name", tiny_pipelines.MAKERS)
ONE_EACH = pytest.mark.parametrize(
    "name",
    ["stable_diffusion_2", "stable_diffusion_xl", "pixart", "stable_diffusion_3", "flux", "z_image", "cogview_4"],
)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """Where the tiny pipeline of a name is, made when it is first asked for."""
    root = tmp_path_factory.mktemp("pipelines")
    return cache(lambda name: tiny_pipelines.save(name, root))


@pytest.fixture(scope="session")
def teacher_of(folder_of):
    """The teacher of a name, with latents of 8 x 8 (16 x 16 for PixArt-Alpha, which looks at sizes)."""

    @cache
    def load(name: str) -> DiffusionTeacher:
        return DiffusionTeacher.from_pretrained(folder_of(name), load_vae=True, latent_size=8)

    return load


@pytest.fixture
def case(teacher_of, name):
    """A teacher, latents, noise, timesteps and what it is told of the captions."""
    teacher = teacher_of(name)
    generator = torch.Generator().manual_seed(1)
    latents, noise = (torch.randn(3, *teacher.latent_shape, generator=generator) for _ in range(2))
    return teacher, latents, noise, torch.tensor([150, 550, 900]), teacher.encode_captions(CAPTIONS)


def without_guidance(pipeline: DiffusionPipeline, edge: int) -> dict:
    """Arguments of a pipeline's call by which it runs three steps on captions alone."""
    takes = inspect.signature(pipeline.__call__).parameters
    name = type(pipeline).__name__
    options = {"height": edge, "width": edge, "num_inference_steps": 3, "generator": torch.Generator().manual_seed(0)}
    if name == "QwenImagePipeline":
        return options | {"true_cfg_scale": 1.0}
    options |= {"guidance_scale": 0.0 if name in ("ZImagePipeline", "Krea2Pipeline") else 1.0}
    return options | ({"use_resolution_binning": False} if "use_resolution_binning" in takes else {})


def unpacked(family, latents: torch.Tensor) -> torch.Tensor:
    """Latents as we see them, of those that the pipeline hands to its scheduler."""
    if latents.dim() != 3:
        return latents
    if type(family).__name__ == "Flux2":
        edge = int(latents.shape[1] ** 0.5)
        return latents.transpose(1, 2).reshape(len(latents), -1, edge, edge)
    edge = 2 * int(latents.shape[1] ** 0.5)
    return from_patches(latents, edge, edge)


@EVERY
@torch.no_grad()
def test_the_prediction_is_what_the_pipeline_hands_to_its_scheduler(folder_of, name):
    optional = {"text_encoder_3": None, "tokenizer_3": None} if name.endswith("without_t5") else {}
    pipeline = DiffusionPipeline.from_pretrained(folder_of(name), **optional)
    pipeline.set_progress_bar_config(disable=True)
    family = BY_PIPELINE[type(pipeline).__name__](pipeline)
    handed, seen, step = [], [], pipeline.scheduler.step

    def spy(*given, **more):
        handed.append([*given[:3], step(*given, **more)[0]])
        return (handed[-1][-1],)

    pipeline.scheduler.step = spy
    hook = family.denoiser.register_forward_pre_hook(
        lambda module, given, named: seen.append(given[0] if given else named["hidden_states"]), with_kwargs=True
    )
    picture = pipeline(prompt=list(CAPTIONS[:2]), **without_guidance(pipeline, 64), output_type="pt").images
    hook.remove()
    told = family.encode(CAPTIONS[:2], torch.device("cpu"))
    assert len(handed) == 3
    for (expected, t, sample, _), looked_at in zip(handed, seen, strict=True):
        noisy = unpacked(family, sample) if family.is_flow else looked_at  # some samplers scale what noise models see
        t = torch.as_tensor(t).expand(2)
        found = family.predict(noisy, Level(1 - t / 1000, t / 1000, t), told)
        expected = unpacked(family, expected)
        if name == "z_image":  # which is told (1000 - t) / 1000
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(found, expected)
    decoded = family.to_pixels(unpacked(family, handed[-1][-1])) / 2 + 0.5
    torch.testing.assert_close(decoded.clamp(0, 1), picture, rtol=1e-5, atol=1e-5)


@EVERY
def test_a_caption_s_error_is_its_own_whatever_stands_beside_it(case, name, tmp_path):
    teacher, latents, noise, timesteps, told = case
    errors = teacher.denoising_error(latents, told, timesteps, noise)
    for row, caption in enumerate(CAPTIONS):
        one = slice(row, row + 1)
        alone = teacher.encode_captions([caption])
        found = teacher.denoising_error(latents[one], alone, timesteps[one], noise[one])
        torch.testing.assert_close(found[0], errors[row], rtol=1e-5, atol=0)
    kept = PromptCache.build(tmp_path, teacher, CAPTIONS, batch_size=2)(CAPTIONS[::-1])
    found = teacher.denoising_error(latents, {name: value.flip(0) for name, value in kept.items()}, timesteps, noise)
    torch.testing.assert_close(found, errors, rtol=1e-5, atol=0)
    longer = lengthened(told, 40, teacher.family.mask)  # as a compiled denoiser is told
    torch.testing.assert_close(teacher.denoising_error(latents, longer, timesteps, noise), errors, rtol=1e-5, atol=0)
    others = teacher.denoising_error(latents, rows_of(told, torch.tensor([1, 2, 0])), timesteps, noise)
    assert (others - errors).abs().min() > 1e-6 * errors.max()


def test_scores_of_pictures_do_not_depend_on_the_batch(teacher_of):
    for name in ("cogview_4", "qwen_image"):
        teacher, pixels = teacher_of(name), torch.rand(2, 3, 64, 64) * 2 - 1
        scores = [teacher.diffusion_score(pixels, CAPTIONS, num_draws=2, batch_size=size) for size in (1, 4)]
        torch.testing.assert_close(*scores, rtol=1e-5, atol=0)


@ONE_EACH
def test_prediction_and_noise_make_up_the_latents_and_weightings_mean_the_same(case, name):
    teacher, latents, noise, timesteps, told = case
    alpha, sigma, _ = teacher.schedule.level(timesteps)
    a, s = alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)
    noisy = add_noise(latents, noise, alpha, sigma)
    predicted = teacher.predict(noisy, timesteps, told)
    found = predicted_noise(teacher.prediction_type, predicted, noisy, alpha, sigma)
    assert torch.equal(found, teacher.predict_noise(noisy, timesteps, told))
    picture = {
        "epsilon": (noisy - s * predicted) / a,
        "v_prediction": a * noisy - s * predicted,
        "flow": noisy - s * predicted,
    }[teacher.prediction_type]
    torch.testing.assert_close(a * picture + s * found, noisy, rtol=1e-5, atol=1e-5)
    error = (found - noise).square().mean((1, 2, 3))
    snr = (alpha / sigma).square()
    weights = {
        "constant": torch.ones(3),
        "sigma_squared": sigma.square(),
        "min_snr": snr.clamp(max=5) / snr,
        "velocity": alpha**-2,
    }
    assert set(weights) == set(WEIGHTINGS)
    for weighting, weight in weights.items():
        value = teacher.denoising_error(latents, told, timesteps, noise, weighting=weighting)
        torch.testing.assert_close(value, weight * error, rtol=1e-4, atol=0)
    if teacher.prediction_type == "flow":
        own = (predicted - (noise - latents)).square().mean((1, 2, 3))
        assert torch.equal(teacher.denoising_error(latents, told, timesteps, noise), own)


@ONE_EACH
def test_full_gradient_equals_central_differences(case, name):
    teacher, latents, noise, timesteps, told = case
    latents.requires_grad_()
    (gradient,) = torch.autograd.grad(teacher.denoising_error(latents, told, timesteps, noise).sum(), latents)
    direction = torch.randn_like(latents)
    with torch.no_grad():
        up, down = (
            teacher.denoising_error(latents + sign * 5e-3 * direction, told, timesteps, noise).double().sum()
            for sign in (1, -1)
        )
    slope = (gradient.double() * direction).sum().item()
    assert slope == pytest.approx(((up - down) / 1e-2).item(), rel=2e-2, abs=2e-3)


@ONE_EACH
def test_stop_gradient_is_autograd_s_with_the_prediction_held_fixed(case, name):
    """d eps_hat / d z_t is 1 of a flow, sigma of v; of noise, whose own prediction does not see z_t, 1 as in DreamFusion."""
    teacher, latents, noise, timesteps, told = case
    latents.requires_grad_()
    options = {"gradient": "stop_gradient", "weighting": "velocity"}
    (found,) = torch.autograd.grad(teacher.denoising_error(latents, told, timesteps, noise, **options).sum(), latents)
    alpha, sigma, _ = teacher.schedule.level(timesteps)
    a, s = alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)
    noisy = a * latents + s * noise
    held = teacher.predict(noisy.detach(), timesteps, told)
    own = {
        "epsilon": lambda: (held + noisy - noisy.detach() - noise) / a,
        "v_prediction": lambda: held - (a * noise - s * latents),
        "flow": lambda: held - (noise - latents),
    }[teacher.prediction_type]()
    (expected,) = torch.autograd.grad(own.square().mean((1, 2, 3)).sum(), latents)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


@EVERY
@torch.no_grad()
def test_latents_of_pictures_are_those_that_the_autoencoder_decodes(teacher_of, name, monkeypatch):
    teacher = teacher_of(name)
    pixels = torch.rand(2, 3, *(teacher.family.factor * edge for edge in teacher.latent_shape[1:])) * 2 - 1
    vae, given = teacher.vae, []
    latents, decode = teacher.encode_images(pixels), vae.decode
    assert latents.shape == (2, *teacher.latent_shape)
    monkeypatch.setattr(vae, "decode", lambda latents: given.append(latents) or decode(latents))
    assert teacher.decode(latents).shape == pixels.shape
    pixels = pixels.unsqueeze(2) if given[0].dim() == 5 else pixels
    encoded = vae.encode(pixels)
    mode = encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()
    torch.testing.assert_close(given[0], mode, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="session")
def shapes_pictures():
    """Of the shapes world, (16, 3, 32, 32) in [-1, 1]."""
    items = load_benchmark("shapes:validation").items[:8]
    pixels = np.stack([np.asarray(image.convert("RGB")) for item in items for image in item.images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def trained_on_shapes(kind: type, pictures: torch.Tensor, is_shifted: bool) -> torch.nn.Module:
    """The bundled teacher's autoencoder as one of a ``kind``, told how far its latents lie from mean 0 and variance 1."""
    trained = AutoencoderKL.from_pretrained(model_path("teacher"), subfolder="vae")
    autoencoder = kind.from_config(trained.config)
    kept = autoencoder.load_state_dict(trained.state_dict(), strict=False)
    assert not kept.unexpected_keys and all(name.startswith("bn.") for name in kept.missing_keys)
    latents = trained.encode(pictures).latent_dist.mode()
    if hasattr(autoencoder, "bn"):
        squares = torch.nn.functional.pixel_unshuffle(latents, 2).transpose(0, 1).flatten(1)
        autoencoder.bn.running_mean, autoencoder.bn.running_var = squares.mean(1), squares.var(1)
    else:
        shift = latents.mean().item() if is_shifted else None
        autoencoder.register_to_config(shift_factor=shift, scaling_factor=1 / latents.std().item())
    return autoencoder.eval()


TWICE = {"stable_diffusion_2", "pixart_alpha", "stable_diffusion_3_without_t5", "flux_schnell"}
OF_ANOTHER_FORM = {"sana", "qwen_image", "krea_2"}  # than the shapes world's autoencoder


@pytest.mark.parametrize("name", [name for name in tiny_pipelines.MAKERS if name not in TWICE | OF_ANOTHER_FORM])
@torch.no_grad()
def test_a_trained_autoencoder_s_pictures_come_back_by_way_of_latents_of_unit_variance(
    teacher_of, shapes_pictures, name, monkeypatch
):
    teacher = teacher_of(name)
    is_shifted = getattr(teacher.vae.config, "shift_factor", None) is not None
    autoencoder = trained_on_shapes(type(teacher.vae), shapes_pictures, is_shifted)
    for owner in (teacher, teacher.family.pipeline):
        monkeypatch.setattr(owner, "vae", autoencoder)
    latents = teacher.encode_images(shapes_pictures)
    assert latents.std().item() == pytest.approx(1, abs=0.01)
    if is_shifted or hasattr(autoencoder, "bn"):
        assert latents.mean().item() == pytest.approx(0, abs=0.01)
    error = (teacher.decode(latents) - shapes_pictures).square().mean()
    assert error < 0.01 * shapes_pictures.var()


PLANNED = [
    pytest.param(
        name, marks=() if name in ("stable_diffusion_xl", "stable_diffusion_3", "qwen_image") else pytest.mark.slow
    )
    for name in tiny_pipelines.MAKERS
]


@pytest.mark.parametrize("name", PLANNED)
def test_plan_counts_what_the_denoiser_and_the_encoders_compute(teacher_of, folder_of, name, clip_folder, tmp_path):
    options = {"latent_size": 8, "per_device_train_batch_size": 3, "health_steps": 0, "use_cpu": True}
    config = SDSCLIPConfig(output_dir=str(tmp_path), sds_gradient="stop_gradient", **options)
    planned = rehearse(clip_folder, str(folder_of(name)), config).flops
    teacher = teacher_of(name)
    caption = "a " + "dog " * 40
    told = teacher.encode_captions([caption] * 3)
    if teacher.family.mask is not None:
        words = 40 if name == "z_image" else 32  # there with the template's
        told = {key: value[:, :words] for key, value in told.items()}
    plain = sdpa_kernel(SDPBackend.MATH)  # of which the counter knows each product
    with FlopCounterMode(display=False) as counted, torch.no_grad(), plain:
        latents = torch.randn(3, *teacher.latent_shape)
        teacher.denoising_error(latents, told, torch.tensor([9, 500, 900]), torch.randn_like(latents))
    assert planned[Phase(DENOISER, FORWARD)] == pytest.approx(counted.get_total_flops(), rel=0.05)
    assert planned[Phase(ENCODER, FORWARD)] > 0


@pytest.mark.parametrize(("name", "apart"), [("flux", 4), ("qwen_image", 2), ("stable_diffusion_3", 1)])
def test_noise_is_as_strong_as_the_denoiser_believes(folder_of, name, apart):
    teacher = DiffusionTeacher.from_pretrained(folder_of(name), dtype="bfloat16", latent_size=8)
    told = []
    embed = next(part for key, part in teacher.denoiser.named_modules() if key.endswith("time_proj"))
    embed.register_forward_pre_hook(lambda module, given: told.append(given[0].float()))
    timesteps = torch.arange(700, 708)
    latents = torch.randn(8, *teacher.latent_shape)
    with torch.no_grad():
        teacher.denoising_error(latents, teacher.encode_captions(["a"] * 8), timesteps, torch.randn_like(latents))
    seen = told[0] * (1 if told[0].max() > 1 else 1000)
    assert len(seen.unique()) <= 8 / apart + 1
    torch.testing.assert_close(teacher.schedule.level(timesteps).sigma, seen / 1000, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "size", "told"),
    [
        ("stable_diffusion_3", 50, "places for 48 x 48"),
        ("aura_flow", 34, "places for 32 x 32"),
        ("flux", 7, "a multiple of 2"),
    ],
)
def test_a_size_that_the_denoiser_has_no_places_for_is_refused(folder_of, name, size, told):
    with pytest.raises(ValueError, match=rf"latent_size {size} x {size} .*{told}"):
        DiffusionTeacher.from_pretrained(folder_of(name), latent_size=size)


@pytest.mark.parametrize("name", ["stable_diffusion_xl", "stable_diffusion_3", "flux_2", "z_image"])
def test_latents_need_not_be_square(teacher_of, name):
    teacher = teacher_of(name)
    latents = torch.randn(1, teacher.latent_shape[0], 8, 4)
    error = teacher.denoising_error(
        latents, teacher.encode_captions(["a"]), torch.tensor([5]), torch.randn_like(latents)
    )
    assert error.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in FAMILIES if family.known], ids=lambda family: family.__name__)
def test_what_is_told_of_well_known_checkpoints_is_what_their_denoisers_have(family):
    spec = importlib.util.spec_from_file_location("teacher_costs", ROOT / "tools/teacher_costs.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    for known in family.known:
        weights, flops = tool.counted(family, known.name)
        assert (known.weights, known.cost) == pytest.approx((weights / 1e9, flops / 1e12), rel=0.03)
