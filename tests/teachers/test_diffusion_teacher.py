"""The teacher against diffusers' own pipeline and schedulers."""

import logging
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_pipeline
from diffusers import (
    DDIMScheduler,
    StableDiffusionPipeline,
)
from PIL import Image

from sdsclip_hf import SDSCLIPConfig
from sdsclip_hf.common.checkpoints import fingerprint
from sdsclip_hf.teachers.conditions import rolled, rows_of
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher
from sdsclip_hf.training.parts import place_teacher

CAPTIONS = ["a photo of a cat", "red dog on a blue mat", "a cat on a chair"]


@pytest.fixture(scope="module")
def pipeline(teacher_folder):
    pipeline = StableDiffusionPipeline.from_pretrained(teacher_folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def teacher(teacher_folder):
    return DiffusionTeacher.from_pretrained(teacher_folder, load_vae=True)


@pytest.fixture(scope="module")
def velocity_teacher(velocity_teacher_folder):
    return DiffusionTeacher.from_pretrained(velocity_teacher_folder)


@pytest.fixture
def case(teacher):
    """Latents, noise, timesteps and prompts of three samples."""
    latents, noise = torch.randn(2, 3, 4, 4, 4)
    return latents, noise, torch.tensor([20, 500, 950]), teacher.encode_captions(CAPTIONS)


def words_of(prompts: dict[str, torch.Tensor]) -> torch.Tensor:
    """What Stable Diffusion is told."""
    (words,) = prompts.values()
    return words


def pictures(count: int, width: int = 8, height: int = 8) -> list[Image.Image]:
    pixels = np.random.default_rng(3).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return [Image.fromarray(picture) for picture in pixels]


def to_pixels(images: list[Image.Image]) -> torch.Tensor:
    return torch.stack([torch.tensor(np.array(image)).permute(2, 0, 1).float() * 2 / 255 - 1 for image in images])


@pytest.mark.parametrize(
    ("folder", "prediction_type"), [("teacher_folder", "epsilon"), ("velocity_teacher_folder", "v_prediction")]
)
def test_from_pretrained_reads_what_the_folder_says(request, folder, prediction_type):
    name = request.getfixturevalue(folder)
    teacher = DiffusionTeacher.from_pretrained(name)
    assert teacher.prediction_type == prediction_type
    assert teacher.latent_shape == (4, 4, 4)
    assert teacher.num_timesteps == 1000
    assert teacher.name_or_path == name
    assert teacher.vae is None


def test_path_objects_load_like_strings(teacher_folder, teacher):
    loaded = DiffusionTeacher.from_pretrained(Path(teacher_folder)).denoiser.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in teacher.denoiser.state_dict().items())


def test_nothing_of_the_teacher_trains_or_leaves_evaluation_mode():
    parts = make_pipeline()
    for part in (parts.unet, parts.text_encoder, parts.vae):
        part.train()
    teacher = DiffusionTeacher(parts)
    assert not any(part.training for part in teacher.modules())
    assert not any(part.training for part in teacher.train().modules())
    assert len(list(teacher.parameters())) > 0
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_parent_s_train_does_not_wake_the_teacher(teacher):
    parent = torch.nn.ModuleList([teacher]).train()
    assert parent.training
    assert not any(part.training for part in teacher.modules())


def test_noise_schedule_is_that_of_the_checkpoint(teacher):
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas_cumprod = np.cumprod(1 - betas)
    np.testing.assert_allclose(teacher.alphas, np.sqrt(alphas_cumprod), rtol=1e-4)
    np.testing.assert_allclose(teacher.sigmas, np.sqrt(1 - alphas_cumprod), rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", torch.bfloat16])
def test_dtype_is_that_of_the_weights_and_errors_stay_float32(teacher_folder, case, teacher, dtype):
    expected = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    half = DiffusionTeacher.from_pretrained(teacher_folder, dtype=dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {expected} == {half.dtype}
    latents, noise, timesteps, _ = case
    prompts = half.encode_captions(CAPTIONS)
    errors = half.denoising_error(latents, prompts, timesteps, noise)
    assert errors.dtype == torch.float32 == half.predict_noise(latents, timesteps, prompts).dtype
    torch.testing.assert_close(errors, teacher.denoising_error(latents, case[3], timesteps, noise), rtol=0.05, atol=0)


def test_encode_captions_equals_the_pipeline_s_own(teacher, pipeline):
    captions = [*CAPTIONS, "", "a cat on a mat " * 20]
    expected, _ = pipeline.encode_prompt(captions, "cpu", 1, do_classifier_free_guidance=False)
    assert expected.shape == (5, 16, 16)
    assert torch.equal(words_of(teacher.encode_captions(captions)), expected)


def test_epsilon_teacher_gives_the_denoiser_s_own_output(teacher, pipeline, case):
    latents, _, timesteps, prompts = case
    with torch.no_grad():
        expected = pipeline.unet(latents, timesteps, encoder_hidden_states=words_of(prompts)).sample
    torch.testing.assert_close(teacher.predict_noise(latents, timesteps, prompts), expected)


def test_velocity_teacher_converts_with_the_schedule(velocity_teacher, velocity_teacher_folder, case):
    latents, _, timesteps, _ = case
    prompts = velocity_teacher.encode_captions(CAPTIONS)
    schedule = DDIMScheduler.from_pretrained(velocity_teacher_folder, subfolder="scheduler").alphas_cumprod
    with torch.no_grad():
        velocity = velocity_teacher.denoiser(latents, timesteps, encoder_hidden_states=words_of(prompts)).sample
    predicted = velocity_teacher.predict_noise(latents, timesteps, prompts)
    for row, timestep in enumerate(timesteps.tolist()):
        alpha, sigma = schedule[timestep] ** 0.5, (1 - schedule[timestep]) ** 0.5
        torch.testing.assert_close(predicted[row], alpha * velocity[row] + sigma * latents[row])


class Fixed(torch.nn.Module):
    """A denoiser that answers with one tensor, whatever it is asked."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.dtype = answer, answer.dtype

    def forward(self, latents, timesteps, **prompts):
        return SimpleNamespace(sample=self.answer)


def test_the_true_velocity_is_read_as_the_true_noise(velocity_teacher_folder, case):
    latents, noise, timesteps, prompts = case
    scheduler = DDIMScheduler.from_pretrained(velocity_teacher_folder, subfolder="scheduler")
    teacher = DiffusionTeacher.from_pretrained(velocity_teacher_folder)
    teacher.denoiser = teacher.family.pipeline.unet = Fixed(scheduler.get_velocity(latents, noise, timesteps))
    noisy = scheduler.add_noise(latents, noise, timesteps)
    torch.testing.assert_close(teacher.predict_noise(noisy, timesteps, prompts), noise, rtol=1e-4, atol=1e-5)
    errors = teacher.denoising_error(latents, prompts, timesteps, noise)
    torch.testing.assert_close(errors, torch.zeros(3), rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["teacher", "velocity_teacher"])
def test_gradient_reaches_the_latents_and_no_weight(request, name, case):
    teacher = request.getfixturevalue(name)
    latents, noise, timesteps, prompts = case
    latents.requires_grad_(True)
    teacher.denoising_error(latents, prompts, timesteps, noise).sum().backward()
    assert latents.grad.flatten(1).norm(dim=1).min() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_denoising_error_equals_the_scheduler_and_unet_put_together_by_hand(teacher, pipeline, case):
    latents, noise, timesteps, prompts = case
    for row in range(3):
        t = timesteps[row : row + 1]
        noisy = pipeline.scheduler.add_noise(latents[row : row + 1], noise[row : row + 1], t)
        with torch.no_grad():
            predicted = pipeline.unet(noisy, t, encoder_hidden_states=words_of(prompts)[row : row + 1]).sample
        expected = (predicted - noise[row]).square().mean().item()
        got = teacher.denoising_error(latents, prompts, timesteps, noise)[row].item()
        assert got == pytest.approx(expected, rel=1e-4)


def test_denoising_error_of_a_row_does_not_depend_on_the_others(teacher, case):
    latents, noise, timesteps, prompts = case
    before = teacher.denoising_error(latents, prompts, timesteps, noise)
    words = words_of(prompts).clone()
    others = latents.clone(), noise.clone(), timesteps.clone(), {"encoder_hidden_states": words}
    for tensor in (*others[:3], words):
        tensor[0], tensor[2] = tensor[2].clone(), tensor[0].clone() * 2 % 900
    after = teacher.denoising_error(others[0], others[3], others[2], others[1])
    torch.testing.assert_close(after[1], before[1])
    assert not torch.isclose(after[0], before[0])


def test_denoising_error_depends_on_the_caption(teacher, case):
    latents, noise, timesteps, prompts = case
    shuffled = teacher.denoising_error(latents, rolled(prompts), timesteps, noise)
    assert not torch.isclose(shuffled, teacher.denoising_error(latents, prompts, timesteps, noise), rtol=1e-6).any()


def test_options_reach_the_loss(teacher, pipeline, case):
    latents, noise, timesteps, prompts = case
    errors = teacher.denoising_error(
        latents, prompts, timesteps, noise, reading="as_printed", weighting="sigma_squared"
    )
    with torch.no_grad():
        predicted = pipeline.unet(latents, timesteps, encoder_hidden_states=words_of(prompts)).sample
    sigma_squared = 1 - pipeline.scheduler.alphas_cumprod[timesteps]
    torch.testing.assert_close(errors, sigma_squared * (predicted - noise).square().mean((1, 2, 3)))


def gradient_and_kept_bytes(teacher, case):
    """The gradient of the error in the latents, and the bytes that are kept for it."""
    kept = {}
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.update({tensor.data_ptr(): tensor.nbytes}) or tensor, lambda tensor: tensor
    )
    latents = case[0].clone().requires_grad_()
    with hooks:
        error = teacher.denoising_error(latents, case[3], case[2], case[1]).sum()
    return torch.autograd.grad(error, latents)[0], sum(kept.values())


@pytest.mark.parametrize(
    "option",
    ["gradient_checkpointing", "channels_last", "packed"],
)
def test_speeding_up_changes_neither_gradient_nor_fingerprint(teacher_folder, teacher, case, option):
    fast = DiffusionTeacher.from_pretrained(teacher_folder).speed_up(**{option: True})
    expected, kept = gradient_and_kept_bytes(teacher, case)
    found, kept_fast = gradient_and_kept_bytes(fast, case)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert fingerprint(fast.denoiser) == fingerprint(teacher.denoiser)
    if option == "gradient_checkpointing":
        assert kept_fast < 0.6 * kept
    if option == "channels_last":
        assert fast.denoiser.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


def test_what_is_not_asked_for_again_is_undone(teacher_folder, teacher, case):
    again = DiffusionTeacher.from_pretrained(teacher_folder)
    again.speed_up(gradient_checkpointing=True, channels_last=True, compiled=True).speed_up()
    assert again.denoiser._compiled_call_impl is None
    assert again.denoiser.conv_in.weight.is_contiguous() and not again.denoiser.is_gradient_checkpointing
    for found, expected in zip(
        gradient_and_kept_bytes(again, case), gradient_and_kept_bytes(teacher, case), strict=True
    ):
        assert torch.equal(found, expected) if torch.is_tensor(found) else found == expected


@pytest.mark.slow
def test_a_compiled_denoiser_predicts_the_same_and_its_gradient_is_right_or_refused(
    teacher_folder, teacher, case, tmp_path
):
    fast = DiffusionTeacher.from_pretrained(teacher_folder)
    config = SDSCLIPConfig(output_dir=str(tmp_path), use_cpu=True, teacher_compile=True, per_device_train_batch_size=3)
    try:
        place_teacher(fast, config)
    except ValueError as refused:
        print(refused)
        assert re.search(r"another gradient .* leave --teacher_compile out", str(refused))
    else:
        expected, _ = gradient_and_kept_bytes(teacher, case)
        torch.testing.assert_close(gradient_and_kept_bytes(fast, case)[0], expected, rtol=1e-2, atol=1e-5)
    assert fast.denoiser._compiled_call_impl is not None
    with torch.no_grad():
        errors = [each.denoising_error(case[0], case[3], case[2], case[1]) for each in (fast, teacher)]
    torch.testing.assert_close(*errors, rtol=1e-4, atol=1e-6)
    assert fingerprint(fast.denoiser) == fingerprint(teacher.denoiser)


def test_smaller_latents_work(teacher_folder):
    teacher = DiffusionTeacher.from_pretrained(teacher_folder, latent_size=2, load_vae=True)
    assert teacher.latent_shape == (4, 2, 2)
    latents = teacher.encode_images(pictures(2, 20, 12))
    assert latents.shape == (2, 4, 2, 2)
    prompts = teacher.encode_captions(CAPTIONS[:2])
    assert teacher.denoising_error(latents, prompts, torch.tensor([3, 700]), torch.randn_like(latents)).shape == (2,)


def test_latents_are_shifted_as_diffusers_shifts_them():
    """As its pipelines of autoencoders with a shift_factor do: (z - shift) * scale in, z / scale + shift out."""
    parts = make_pipeline()
    parts.vae.register_to_config(shift_factor=0.7)
    teacher = DiffusionTeacher(parts)
    pixels = torch.rand(2, 3, 8, 8) * 2 - 1
    latents = teacher.encode_images(pixels)
    with torch.no_grad():
        mode = parts.vae.encode(pixels).latent_dist.mode()
        decoded = parts.vae.decode(mode).sample
    torch.testing.assert_close(latents, (mode - 0.7) * parts.vae.config.scaling_factor)
    torch.testing.assert_close(teacher.decode(latents), decoded.clamp(-1, 1), rtol=1e-4, atol=1e-4)


def test_latents_need_not_be_square():
    parts = make_pipeline(sample_size=(4, 6))
    teacher = DiffusionTeacher(parts)
    assert teacher.latent_shape == (4, 4, 6)
    assert teacher.encode_images(pictures(1, 20, 20)).shape == (1, 4, 4, 6)


@pytest.mark.parametrize(
    "call",
    [
        lambda teacher: teacher.encode_images(pictures(1)),
        lambda teacher: teacher.decode(torch.zeros(1, 4, 4, 4)),
        lambda teacher: teacher.diffusion_score(pictures(1), CAPTIONS),
    ],
    ids=["encode_images", "decode", "diffusion_score"],
)
def test_without_autoencoder_the_error_says_how_to_get_it(velocity_teacher, call):
    with pytest.raises(ValueError, match="load_vae=True"):
        call(velocity_teacher)


def test_encode_images_equals_the_autoencoder_s_scaled_mode(teacher, pipeline):
    images = pictures(3)
    with torch.no_grad():
        expected = pipeline.vae.encode(to_pixels(images)).latent_dist.mode() * 0.18215
    latents = teacher.encode_images(images)
    assert latents.shape == (3, 4, 4, 4)
    torch.testing.assert_close(latents, expected)
    torch.testing.assert_close(teacher.encode_images(to_pixels(images)), expected)


def test_wide_picture_is_cropped_around_its_centre(teacher):
    (image,) = pictures(1, width=12)
    torch.testing.assert_close(teacher.encode_images([image]), teacher.encode_images([image.crop((2, 0, 10, 8))]))


@pytest.mark.parametrize(("width", "height"), [(8, 8), (5, 3), (64, 17), (9, 100)])
def test_pictures_of_any_size_and_mode_give_latents_of_one_shape(teacher, width, height):
    (image,) = pictures(1, width, height)
    assert teacher.encode_images([image, image.convert("L"), image.convert("RGBA")]).shape == (3, 4, 4, 4)


def test_decode_equals_the_autoencoder_on_unscaled_latents(teacher, pipeline):
    latents = torch.randn(2, 4, 4, 4) / 5
    with torch.no_grad():
        expected = pipeline.vae.decode(latents / 0.18215).sample.clamp(-1, 1)
    decoded = teacher.decode(latents)
    assert decoded.shape == (2, 3, 8, 8)
    torch.testing.assert_close(decoded, expected)


def score_by_loops(pipeline, images, captions_of, draws: int, first: int, last: int, seed: int):
    """d(x, c) by one denoiser call for every image, caption and draw, from diffusers' parts alone."""
    noises = torch.randn(draws, 4, 4, 4, generator=torch.Generator().manual_seed(seed))
    timesteps = [round(first + (last - first) * draw / (draws - 1)) for draw in range(draws)]
    scores = []
    for image, captions in zip(images, captions_of, strict=True):
        latents = pipeline.vae.encode(to_pixels([image])).latent_dist.mode() * 0.18215
        for caption in captions:
            prompt, _ = pipeline.encode_prompt(caption, "cpu", 1, do_classifier_free_guidance=False)
            errors = []
            for noise, timestep in zip(noises, timesteps, strict=True):
                noisy = pipeline.scheduler.add_noise(latents, noise[None], torch.tensor([timestep]))
                predicted = pipeline.unet(noisy, timestep, encoder_hidden_states=prompt).sample[0]
                errors.append((predicted - noise).square().mean().item())
            scores.append(sum(errors) / draws)
    return torch.tensor(scores).view(len(images), -1)


@torch.no_grad()
@pytest.mark.parametrize("timestep_range", [None, (100, 700)])
def test_diffusion_score_equals_a_plain_loop(teacher, pipeline, timestep_range):
    images = pictures(2)
    scores = teacher.diffusion_score(images, CAPTIONS, num_draws=4, timestep_range=timestep_range, seed=7)
    first, last = timestep_range or (0, 999)
    assert scores.shape == (2, 3)
    expected = score_by_loops(pipeline, images, [CAPTIONS] * 2, 4, first, last, 7)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-6)
    assert (expected.max(1).values - expected.min(1).values > 1e-4).all(), "captions too alike to tell rows apart"


@torch.no_grad()
def test_captions_of_each_image_are_scored_against_that_image(teacher, pipeline):
    images = pictures(2)
    captions = [[CAPTIONS[0], "blue"], [CAPTIONS[2], CAPTIONS[0]]]
    scores = teacher.diffusion_score(images, captions, num_draws=3, seed=1)
    expected = score_by_loops(pipeline, images, captions, 3, 0, 999, 1)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-6)


def test_draws_are_the_score_s_own(teacher):
    timesteps, noises = teacher.draws(4, (100, 700), seed=7)
    assert timesteps.tolist() == [100, 300, 500, 700]
    assert torch.equal(noises, torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(7)))
    assert teacher.draws(3)[0].tolist() == [0, 500, 999]
    with pytest.raises(ValueError, match="timestep_range 0 to 1000"):
        teacher.draws(3, (0, 1000))


@pytest.mark.parametrize("batch_size", [2, 64])
def test_errors_of_a_draw_are_those_of_each_pair(teacher, case, batch_size):
    latents, noise, timesteps, prompts = case
    rows = torch.tensor([0, 2, 2, 1, 0]), torch.tensor([2, 2, 0, 1, 1])
    options = {"weighting": "velocity", "batch_size": batch_size}
    errors = teacher.draw_errors(latents, prompts, *rows, timesteps[1], noise[0], **options)
    for error, image, caption in zip(errors, *rows, strict=True):
        one = latents[image][None], rows_of(prompts, caption[None]), timesteps[1:2], noise[:1]
        torch.testing.assert_close(error, teacher.denoising_error(*one, weighting="velocity")[0], rtol=1e-5, atol=0)


def test_captions_may_be_encoded_in_batches(teacher):
    torch.testing.assert_close(teacher.encode_captions(CAPTIONS, 2), teacher.encode_captions(CAPTIONS))


def test_weighting_reaches_the_diffusion_score(teacher, pipeline):
    images, t = pictures(2), 300
    options = {"num_draws": 1, "timestep_range": (t, t)}
    plain = teacher.diffusion_score(images, CAPTIONS, **options)
    weighted = teacher.diffusion_score(images, CAPTIONS, weighting="velocity", **options)
    torch.testing.assert_close(weighted, plain / pipeline.scheduler.alphas_cumprod[t])


def test_equal_captions_get_equal_scores_since_draws_are_shared(teacher):
    scores = teacher.diffusion_score(pictures(2), ["a cat", "a dog", "a cat"], num_draws=2)
    torch.testing.assert_close(scores[:, 0], scores[:, 2], rtol=1e-5, atol=0)
    assert not torch.isclose(scores[:, 0], scores[:, 1], rtol=1e-5).any()


@pytest.mark.parametrize("batch_size", [1, 4, 5])
def test_batch_size_does_not_change_the_scores(teacher, batch_size):
    images = pictures(3)
    whole = teacher.diffusion_score(images, CAPTIONS, num_draws=2, batch_size=64)
    parts = teacher.diffusion_score(images, CAPTIONS, num_draws=2, batch_size=batch_size)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


def test_seed_decides_the_draws(teacher):
    first, again, other = (teacher.diffusion_score(pictures(1), CAPTIONS, num_draws=2, seed=s) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.isclose(first, other, rtol=1e-3).any()


def test_list_of_captions_equals_the_same_list_for_each_image(teacher):
    images = pictures(2)
    torch.testing.assert_close(
        teacher.diffusion_score(images, CAPTIONS, num_draws=2),
        teacher.diffusion_score(images, [CAPTIONS, CAPTIONS], num_draws=2),
    )


@pytest.mark.parametrize(
    "captions", [[["a cat"], ["a cat", "a dog"]], [["a cat"]], [["a cat"]] * 3], ids=["ragged", "too few", "too many"]
)
def test_candidate_lists_that_do_not_fit_the_images_raise(teacher, captions):
    with pytest.raises(ValueError, match="2 images need 2 lists of captions of one length"):
        teacher.diffusion_score(pictures(2), captions, num_draws=1)


@pytest.mark.parametrize("timestep_range", [(0, 1000), (-1, 5), (500, 400)])
def test_timestep_range_outside_the_schedule_raises_with_its_limits(teacher, timestep_range):
    with pytest.raises(ValueError, match=r"timestep_range {} to {}.*<= 999".format(*timestep_range)):
        teacher.diffusion_score(pictures(1), CAPTIONS, num_draws=1, timestep_range=timestep_range)


def test_a_textual_inversion_of_several_vectors_is_read_as_the_pipeline_does(teacher_folder):
    teacher = DiffusionTeacher.from_pretrained(teacher_folder)
    pipeline = teacher.family.pipeline
    pipeline.tokenizer.add_tokens(["<mine>", "<mine>_1"])
    pipeline.text_encoder.resize_token_embeddings(len(pipeline.tokenizer))
    with torch.no_grad():
        expected, _ = pipeline.encode_prompt(["a <mine>"], "cpu", 1, False)
    torch.testing.assert_close(teacher.encode_captions(["a <mine>"])["encoder_hidden_states"], expected)


def test_what_pipelines_warn_of_at_a_long_caption_is_not_heard(teacher, caplog):
    library = logging.getLogger("diffusers")
    library.addHandler(caplog.handler)
    try:
        teacher.encode_captions(["a red cat " * 100])
        assert not caplog.records
        logging.getLogger("diffusers.pipelines").warning("heard again")
        assert [record.message for record in caplog.records] == ["heard again"]
    finally:
        library.removeHandler(caplog.handler)
