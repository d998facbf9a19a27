"""The loss terms against plain loops, hand-derived gradients, finite differences and transformers' own CLIP loss."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_clip
from plain_contrastive import masked_by_loops, sigmoid_by_loops

from sdsclip_hf.data.duplicates import KnownPairs
from sdsclip_hf.losses import (
    GRADIENTS,
    RANKING_FORMS,
    READINGS,
    WEIGHTINGS,
    add_noise,
    contrastive_loss,
    distillation_loss,
    noise_weight,
    picture_ranking_loss,
    ranking_loss,
    ranking_temperature,
    rms,
    sigmoid_loss,
    teacher_confidence,
)

EVERY_FORM = list(itertools.product(READINGS, GRADIENTS, WEIGHTINGS))
SHAPE = (3, 2, 2, 2)
ELEMENTS = 8


def unit(rows: int, width: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, width, dtype=torch.float64), dim=-1)


def contrastive_by_loops(images, texts, scale: float) -> float:
    """Mean over all rows and both directions of -log softmax at the pair, in plain python."""
    total, count = 0.0, len(images)
    for i in range(count):
        of_image = [scale * sum(a * b for a, b in zip(images[i], texts[j], strict=True)) for j in range(count)]
        of_text = [scale * sum(a * b for a, b in zip(images[j], texts[i], strict=True)) for j in range(count)]
        for row in (of_image, of_text):
            total += math.log(sum(math.exp(logit) for logit in row)) - row[i]
    return total / (2 * count)


def test_contrastive_loss_equals_a_plain_loop():
    images, texts = unit(5, 7), unit(5, 7)
    expected = contrastive_by_loops(images.tolist(), texts.tolist(), 3.7)
    assert contrastive_loss(images, texts, torch.tensor(3.7, dtype=torch.float64)).item() == pytest.approx(expected)


def test_contrastive_loss_equals_that_of_transformers():
    clip = make_clip()
    pixels, ids = torch.randn(4, 3, 16, 16), torch.randint(0, 30, (4, 6))
    with torch.no_grad():
        output = clip(pixel_values=pixels, input_ids=ids, return_loss=True)
        loss = contrastive_loss(output.image_embeds, output.text_embeds, clip.logit_scale.exp())
    assert loss.item() == pytest.approx(output.loss.item(), rel=1e-5)


def test_contrastive_loss_of_uniform_embeddings_is_the_log_of_the_batch_size():
    same = F.normalize(torch.ones(6, 4), dim=-1)
    assert contrastive_loss(same, same, torch.tensor(50.0)).item() == pytest.approx(math.log(6), rel=1e-5)


@pytest.mark.parametrize("sizes", [(4, 4), (2, 2, 2, 2)])
def test_mean_of_local_losses_over_gathered_embeddings_has_value_and_gradient_of_the_whole_batch(sizes):
    inputs = torch.randn(2, 8, 6, dtype=torch.float64)
    weights = torch.randn(2, 6, 5, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    images, texts = F.normalize(inputs @ weights, dim=-1)
    similarity = scale * images @ texts.T
    whole = -(similarity.log_softmax(1).diagonal() + similarity.log_softmax(0).diagonal()).mean() / 2
    offsets = [0, *itertools.accumulate(sizes)][:-1]
    local = [
        contrastive_loss(images[start : start + size], texts[start : start + size], scale, images, texts, start)
        for start, size in zip(offsets, sizes, strict=True)
    ]
    averaged = sum(local) / len(local)
    assert averaged.item() == pytest.approx(whole.item())
    for of_local, of_whole in zip(
        torch.autograd.grad(averaged, (weights, scale), retain_graph=True),
        torch.autograd.grad(whole, (weights, scale)),
        strict=True,
    ):
        torch.testing.assert_close(of_local, of_whole)


def test_contrastive_loss_of_one_pair_raises_and_names_the_option():
    with pytest.raises(ValueError, match=r"at least two pairs.*per_device_train_batch_size"):
        contrastive_loss(unit(1, 4), unit(1, 4), torch.tensor(1.0))


def test_one_local_pair_with_gathered_negatives_is_allowed():
    images, texts = unit(3, 4), unit(3, 4)
    scale = torch.tensor(2.0, dtype=torch.float64)
    local = [contrastive_loss(images[i : i + 1], texts[i : i + 1], scale, images, texts, i).item() for i in range(3)]
    assert sum(local) / 3 == pytest.approx(contrastive_by_loops(images.tolist(), texts.tolist(), 2.0))


def test_contrastive_loss_of_unequal_sides_raises_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(2, 4\)"):
        contrastive_loss(unit(3, 4), unit(2, 4), torch.tensor(1.0))


@pytest.fixture
def rows_that_share():
    """Pictures, their captions (the first is in the batch) and further captions: a batch of 8, and 5 negatives.

    Rows 0 and 3 share a picture, 3 and 6 a caption, so that 0's is true of 6's picture by row 3's other captions alone.
    """
    pictures = ["A", "B", "C", "A", "D", "E", "F", "G"]
    captions = ["a", "b", "c ab", "d a", "e", "f c", "d g", "h"]
    return pictures, [words.split() for words in captions], ["a", "g", "x", "d", "x"]


def numbers(*words):
    return torch.tensor([int.from_bytes(word.encode(), "big") + 2**40 for word in words], dtype=torch.int64)


def known_pairs(pictures, captions, negatives=None) -> KnownPairs:
    width = max(map(len, captions))
    keys = torch.stack([F.pad(numbers(*words), (0, width - len(words))) for words in captions])
    return KnownPairs(numbers(*pictures), keys, None if negatives is None else numbers(*negatives))


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("parts", [1, 2])
def test_what_any_row_tells_to_be_true_is_no_negative(rows_that_share, parts, chunk):
    pictures, captions, others = rows_that_share
    known = known_pairs(pictures, captions, others)
    leaves = [unit(8, 6).requires_grad_(), unit(8, 6).requires_grad_(), unit(5, 6).requires_grad_()]
    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    images, texts, negatives = leaves
    expected = masked_by_loops(images, texts, negatives, scale, pictures, captions, others)
    size = 8 // parts
    found = [
        contrastive_loss(
            *(images[i : i + size], texts[i : i + size], scale, images, texts, i, negatives),
            chunk_size=chunk,
            known=known,
        )
        for i in range(0, 8, size)
    ]
    found = sum(found) / parts
    assert found.item() == pytest.approx(expected.item())
    for one, other in zip(
        torch.autograd.grad(found, [*leaves, scale]), torch.autograd.grad(expected, [*leaves, scale]), strict=True
    ):
        torch.testing.assert_close(one, other)
    unmasked = contrastive_loss(images, texts, scale, negative_embeds=negatives)
    assert abs(unmasked.item() - expected.item()) > 1e-3


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("parts", "chunk"), [(1, None), (1, 3), (2, 3), (4, None)])
def test_sigmoid_loss_is_that_of_the_loops_by_chunks_and_by_processes(rows_that_share, parts, chunk, masked):
    pictures, captions, others = rows_that_share
    known = known_pairs(pictures, captions, others) if masked else None
    if not masked:  # no two are the same
        pictures, captions, others = list("ABCDEFGH"), [[letter] for letter in "abcdefgh"], list("vwxyz")
    leaves = [unit(8, 6).requires_grad_(), unit(8, 6).requires_grad_(), unit(5, 6).requires_grad_()]
    leaves += [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (4.0, -2.0)]
    images, texts, negatives, scale, bias = leaves
    expected = sigmoid_by_loops(*leaves, pictures, captions, others)
    size = 8 // parts
    found = [
        sigmoid_loss(
            *(images[i : i + size], texts[i : i + size], scale, bias, texts, i, negatives),
            chunk_size=chunk,
            known=known,
        )
        for i in range(0, 8, size)
    ]
    found = sum(found) / parts
    assert found.item() == pytest.approx(expected.item())
    for one, other in zip(*(torch.autograd.grad(loss, leaves) for loss in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


def test_sigmoid_loss_of_one_pair_or_of_unequal_sides_raises():
    one = torch.tensor(1.0)
    with pytest.raises(ValueError, match=r"at least two pairs"):
        sigmoid_loss(unit(1, 4), unit(1, 4), one, one)
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(2, 4\)"):
        sigmoid_loss(unit(3, 4), unit(2, 4), one, one)


def test_rows_that_another_answer_is_right_for_are_counted(rows_that_share):
    pictures, captions, others = rows_that_share
    everyone = torch.arange(8)
    # 0 and 3 by their picture, 6 by its caption; 5 has "c" of 2 as another caption, and of 6 "g" is a negative.
    assert known_pairs(pictures, captions, others).are_shared(everyone).sum() == 5
    assert not known_pairs(pictures, captions).are_shared(torch.tensor([1, 4, 7])).any()
    assert not known_pairs("AB", [["a"], ["b"]], "x").are_shared(torch.arange(2)).any()


@pytest.mark.parametrize("seed", range(20))
def test_any_batch_of_duplicates_has_the_loss_of_the_loops(seed):
    rng = np.random.default_rng(seed)
    rows, extra = int(rng.integers(2, 9)), int(rng.integers(0, 4))
    pictures = rng.choice(list("ABCDE"), rows).tolist()
    captions = [rng.choice(list("abcdef"), int(rng.integers(1, 4)), replace=False).tolist() for _ in range(rows)]
    others = rng.choice(list("abcdefgh"), extra).tolist()
    images, texts, negatives = unit(rows, 5), unit(rows, 5), unit(extra, 5)
    scale = torch.tensor(3.0, dtype=torch.float64)
    expected = masked_by_loops(images, texts, negatives, scale, pictures, captions, others)
    known = known_pairs(pictures, captions, others)
    found = contrastive_loss(images, texts, scale, negative_embeds=negatives, known=known)
    assert found.item() == pytest.approx(float(expected), abs=1e-12)


class Denoiser(torch.nn.Module):
    """tanh(A u + b), the same nonlinear map for every sample; its inputs and gradient mode are recorded."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(ELEMENTS, ELEMENTS)
        self.seen, self.with_grad = [], []

    def forward(self, denoiser_input):
        self.seen.append(denoiser_input.detach().clone())
        self.with_grad.append(torch.is_grad_enabled())
        return torch.tanh(self.linear(denoiser_input.flatten(1))).view_as(denoiser_input)


@pytest.fixture
def case():
    """Latents, noise, alpha, sigma of three samples and a denoiser; alpha^2 + sigma^2 = 1, SNR on both sides of 5."""
    generator = torch.Generator().manual_seed(5)
    latents, noise = torch.randn(2, *SHAPE, generator=generator)
    alpha = torch.tensor([0.95, 0.6, 0.2])
    return latents, noise, alpha, (1 - alpha**2).sqrt(), Denoiser()


def weight_by_hand(weighting: str, alpha: float, sigma: float, gamma: float) -> float:
    snr = (alpha / sigma) ** 2
    return {
        "constant": 1.0,
        "sigma_squared": sigma * sigma,
        "min_snr": min(snr, gamma) / snr,
        "velocity": alpha**-2,
    }[weighting]


def distillation_by_hand(case, reading: str, gradient: str, weighting: str, gamma: float = 5.0):
    """Values and gradients in z0, sample by sample in float64, with the denoiser's Jacobian written out."""
    latents, noise, alphas, sigmas, denoiser = case
    matrix = denoiser.linear.weight.detach().double().numpy()
    bias = denoiser.linear.bias.detach().double().numpy()
    values, gradients = [], []
    for row in range(len(latents)):
        z0, eps = (tensor[row].detach().double().flatten().numpy() for tensor in (latents, noise))
        alpha, sigma = alphas[row].item(), sigmas[row].item()
        slope = alpha if reading == "noised" else 1.0
        seen = alpha * z0 + sigma * eps if reading == "noised" else z0
        predicted = np.tanh(matrix @ seen + bias)
        residual = predicted - eps
        jacobian = slope * ((1 - predicted**2)[:, None] * matrix if gradient == "full" else np.eye(ELEMENTS))
        weight = weight_by_hand(weighting, alpha, sigma, gamma)
        values.append(weight * sum(residual**2) / ELEMENTS)
        gradients.append(weight * 2 / ELEMENTS * jacobian.T @ residual)
    return np.array(values), np.array(gradients).reshape(SHAPE)


@pytest.mark.parametrize(("reading", "gradient", "weighting"), EVERY_FORM)
def test_distillation_loss_and_its_gradient_equal_a_derivation_by_hand(case, reading, gradient, weighting):
    latents, noise, alpha, sigma, denoiser = case
    latents.requires_grad_(True)
    loss = distillation_loss(
        latents, noise, alpha, sigma, denoiser, reading=reading, gradient=gradient, weighting=weighting
    )
    loss.sum().backward()
    values, gradients = distillation_by_hand(case, reading, gradient, weighting)
    np.testing.assert_allclose(loss.detach(), values, rtol=1e-4)
    np.testing.assert_allclose(latents.grad, gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("reading", "weighting"), itertools.product(READINGS, WEIGHTINGS))
def test_full_gradient_equals_central_differences(case, reading, weighting):
    latents, noise, alpha, sigma, denoiser = case
    options = {"reading": reading, "weighting": weighting}
    latents.requires_grad_(True)
    distillation_loss(latents, noise, alpha, sigma, denoiser, **options).sum().backward()
    step = 1e-2
    for index in itertools.product(*map(range, SHAPE)):
        shift = torch.zeros(SHAPE)
        shift[index] = step
        with torch.no_grad():
            up, down = (
                distillation_loss(latents + sign * shift, noise, alpha, sigma, denoiser, **options).sum()
                for sign in (1, -1)
            )
        assert latents.grad[index].item() == pytest.approx((up - down).item() / (2 * step), rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_stop_gradient_form_equals_the_pull_towards_the_denoised_latent(case, weighting):
    """0.5 w (alpha^2/sigma) (2/N) ||z0 - x0_hat||^2 with x0_hat = (z_t - sigma eps_hat) / alpha held fixed."""
    latents, noise, alpha, sigma, denoiser = case
    latents.requires_grad_(True)
    loss = distillation_loss(latents, noise, alpha, sigma, denoiser, gradient="stop_gradient", weighting=weighting)
    (of_loss,) = torch.autograd.grad(loss.sum(), latents)
    a, s = alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)
    noisy = a * latents + s * noise
    denoised = ((noisy - s * denoiser(noisy)) / a).detach()
    coefficients = zip(alpha.tolist(), sigma.tolist(), strict=True)
    weight = torch.tensor([weight_by_hand(weighting, *pair, 5.0) for pair in coefficients])
    distances = (latents - denoised).square().sum((1, 2, 3))
    (of_pull,) = torch.autograd.grad((0.5 * weight * alpha.square() / sigma * 2 / ELEMENTS * distances).sum(), latents)
    torch.testing.assert_close(of_loss, of_pull, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("gradient", "trains"), [("stop_gradient", False), ("full", True)])
def test_denoiser_is_differentiated_in_the_full_form_alone(case, gradient, trains):
    latents, noise, alpha, sigma, denoiser = case
    latents.requires_grad_(True)
    distillation_loss(latents, noise, alpha, sigma, denoiser, gradient=gradient).sum().backward()
    assert denoiser.with_grad == [trains]
    assert (denoiser.linear.weight.grad is not None) == trains
    assert latents.grad.abs().sum() > 0


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("reading", READINGS)
def test_denoiser_sees_the_input_that_the_reading_names(case, reading, gradient):
    latents, noise, alpha, sigma, denoiser = case
    distillation_loss(latents, noise, alpha, sigma, denoiser, reading=reading, gradient=gradient)
    seen = denoiser.seen[0]
    for row in range(3):
        noisy = alpha[row] * latents[row] + sigma[row] * noise[row]
        torch.testing.assert_close(seen[row], noisy if reading == "noised" else latents[row])


def test_default_form_is_noised_full_and_constant(case):
    latents, noise, alpha, sigma, denoiser = case
    latents.requires_grad_(True)
    loss = distillation_loss(latents, noise, alpha, sigma, denoiser)
    loss.sum().backward()
    values, gradients = distillation_by_hand(case, "noised", "full", "constant")
    np.testing.assert_allclose(loss.detach(), values, rtol=1e-4)
    np.testing.assert_allclose(latents.grad, gradients, rtol=1e-3, atol=1e-5)


def test_half_precision_inputs_give_a_float32_loss(case):
    latents, noise, alpha, sigma, _ = case
    loss = distillation_loss(latents.half(), noise.half(), alpha, sigma, lambda noisy: noisy.half())
    assert loss.dtype == torch.float32


def test_velocity_weighting_gives_the_mean_squared_error_of_the_velocity(case):
    latents, noise, alpha, sigma, denoiser = case
    loss = distillation_loss(latents, noise, alpha, sigma, denoiser, weighting="velocity")
    for row in range(3):
        a, s = alpha[row], sigma[row]
        noisy = a * latents[row] + s * noise[row]
        eps_hat = denoiser(noisy[None])[0]
        denoised = (noisy - s * eps_hat) / a
        error = (a * eps_hat - s * denoised) - (a * noise[row] - s * latents[row])
        assert loss[row].item() == pytest.approx(error.square().mean().item(), rel=1e-4)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weight_follows_the_formula_of_its_paper(gamma):
    snr = [0.01, 0.5, 1.0, 4.0, 20.0, 500.0]
    sigma = torch.tensor([(1 + ratio) ** -0.5 for ratio in snr], dtype=torch.float64)
    weight = noise_weight("min_snr", (1 - sigma**2).sqrt(), sigma, gamma)
    assert weight.tolist() == pytest.approx([min(ratio, gamma) / ratio for ratio in snr])


def test_min_snr_weight_is_one_where_nothing_but_noise_is_left():
    assert noise_weight("min_snr", torch.zeros(1), torch.ones(1)).tolist() == [1.0]


def test_snr_gamma_reaches_the_weight(case):
    latents, noise, alpha, sigma, denoiser = case
    loss = distillation_loss(latents, noise, alpha, sigma, denoiser, weighting="min_snr", snr_gamma=2.0)
    np.testing.assert_allclose(
        loss.detach(), distillation_by_hand(case, "noised", "full", "min_snr", 2.0)[0], rtol=1e-4
    )


@pytest.mark.parametrize(
    ("option", "choices"), [("reading", READINGS), ("gradient", GRADIENTS), ("weighting", WEIGHTINGS)]
)
def test_unknown_name_raises_with_the_value_and_every_choice(case, option, choices):
    with pytest.raises(ValueError, match="'nonsense'") as raised:
        distillation_loss(*case, **{option: "nonsense"})
    assert all(choice in str(raised.value) for choice in choices)


def test_velocity_weighting_without_signal_raises(case):
    latents, noise, alpha, sigma, denoiser = case
    alpha[1] = 0
    with pytest.raises(ValueError, match=r"velocity.*timestep_range"):
        distillation_loss(latents, noise, alpha, sigma, denoiser, weighting="velocity")


def test_add_noise_uses_each_sample_s_own_coefficients():
    mixed = add_noise(torch.ones(2, 1, 1, 2), 10 * torch.ones(2, 1, 1, 2), torch.tensor([1, 2]), torch.tensor([3, 4]))
    assert mixed.flatten(1).tolist() == [[31, 31], [42, 42]]


def test_rms_of_each_sample():
    latents = torch.tensor([[3.0, -4.0, 0.0, 0.0], [2.0, 2.0, -2.0, 2.0]]).view(2, 1, 2, 2)
    assert rms(latents).tolist() == pytest.approx([2.5, 2.0])


def test_negative_captions_are_further_wrong_answers_for_images_alone():
    images, texts, negatives = unit(4, 6), unit(4, 6), unit(3, 6)
    scale, total = 2.5, 0.0
    for i in range(4):
        of_image = [scale * float(images[i] @ text) for text in [*texts, *negatives]]
        of_text = [scale * float(texts[i] @ image) for image in images]
        total += math.log(sum(map(math.exp, of_image))) - of_image[i]
        total += math.log(sum(map(math.exp, of_text))) - of_text[i]
    loss = contrastive_loss(images, texts, torch.tensor(scale, dtype=torch.float64), negative_embeds=negatives)
    assert loss.item() == pytest.approx(total / 8)


def divergence_by_loops(image, captions, errors, temperature: float, scale: float) -> float:
    """KL of one image, in plain python, from the definition."""
    cosines = [sum(a * b for a, b in zip(image, caption, strict=True)) for caption in captions]
    teacher = [math.exp(-(error - min(errors)) / temperature) for error in errors]
    student = [math.exp(scale * (cosine - max(cosines))) for cosine in cosines]
    pairs = [(t / sum(teacher), s / sum(student)) for t, s in zip(teacher, student, strict=True)]
    return sum(t * math.log(t / s) for t, s in pairs if t > 0)


def cosines_of(images, candidates):
    return torch.einsum("bd,bkd->bk", images, candidates)


def test_ranking_loss_equals_a_plain_loop():
    images, candidates, errors = unit(5, 6), torch.stack([unit(4, 6) for _ in range(5)]), torch.rand(5, 4)
    found = ranking_loss(cosines_of(images, candidates), errors, temperature=0.2, logit_scale=7.0)
    for row in range(5):
        expected = divergence_by_loops(images[row].tolist(), candidates[row].tolist(), errors[row].tolist(), 0.2, 7.0)
        assert found[row].item() == pytest.approx(expected, rel=1e-5)


def test_missing_candidates_count_for_nothing():
    cosines, errors = torch.rand(2, 4), torch.rand(2, 4)
    known = torch.tensor([[True, True, True, False], [True, False, True, False]])
    found = ranking_loss(cosines, errors.masked_fill(~known, math.nan), 0.1, 5.0)
    for row in range(2):
        kept = known[row]
        expected = ranking_loss(cosines[row : row + 1, kept], errors[row : row + 1, kept], 0.1, 5.0)
        assert found[row].item() == pytest.approx(expected.item(), rel=1e-5)


def test_ranking_loss_is_zero_at_the_teacher_s_distribution_and_does_not_depend_on_order():
    cosines = torch.tensor([[0.9, 0.2, -0.3]])
    errors, scale, temperature = -cosines * 4.0 * 0.05, 4.0, 0.05  # -d / tau = s * cos
    assert ranking_loss(cosines, errors, temperature, scale).item() == pytest.approx(0, abs=1e-6)
    errors = torch.tensor([[0.1, 0.5, 0.2]])
    order = torch.tensor([2, 0, 1])
    first = ranking_loss(cosines, errors, temperature, scale)
    assert ranking_loss(cosines[:, order], errors[:, order], temperature, scale).item() == pytest.approx(first.item())


@pytest.mark.parametrize("form", RANKING_FORMS)
def test_ranking_gradient_equals_finite_differences(form):
    images, candidates, errors = unit(2, 3), torch.stack([unit(3, 3) for _ in range(2)]), torch.rand(2, 3)
    errors[0, 2] = math.nan

    def loss(values):
        return ranking_loss(cosines_of(values, candidates), errors, 0.3, 2.0, form).sum()

    values = images.clone().requires_grad_(True)
    loss(values).backward()
    assert values.grad.isfinite().all()
    for place in itertools.product(range(2), range(3)):
        step = torch.zeros_like(images)
        step[place] = 1e-2  # the divergence itself is in float32
        slope = (loss(images + step) - loss(images - step)) / 2e-2
        assert values.grad[place].item() == pytest.approx(slope.item(), abs=2e-3)


def test_likelihood_is_that_of_the_teacher_s_word_over_all_that_may_be_true():
    """Caption by caption: the student believes that it is right, and the teacher would then say this."""
    errors, cosines = [[0.3, 0.1, 0.6], [0.5, 0.2, math.nan]], torch.rand(2, 3)
    found = ranking_loss(cosines, torch.tensor(errors), 0.2, 4.0, form="likelihood")
    for row in range(2):
        said = [math.exp(-error / 0.2) for error in errors[row] if not math.isnan(error)]
        beliefs = [math.exp(4 * cosine) for cosine in cosines[row, : len(said)].tolist()]
        expected = sum(belief * word for belief, word in zip(beliefs, said, strict=True)) / sum(beliefs) / sum(said)
        assert found[row].item() == pytest.approx(-math.log(expected), rel=1e-5)


def test_as_evidence_a_teacher_that_knows_nothing_moves_nothing_and_a_sure_one_is_believed():
    def slopes(errors, form):
        cosines = torch.tensor([[0.3, 0.1, -0.2]], requires_grad=True)
        ranking_loss(cosines, torch.tensor([errors]), 0.1, 5.0, form).sum().backward()
        return cosines.grad[0].tolist()

    unsure, sure = [0.4, 0.4, 0.4], [9.0, 0.0, 9.0]
    assert slopes(unsure, "likelihood") == pytest.approx([0, 0, 0], abs=1e-6)
    assert max(map(abs, slopes(unsure, "divergence"))) > 1  # that it knows nothing is learnt, too
    assert slopes(sure, "likelihood") == pytest.approx(slopes(sure, "divergence"), abs=1e-5)


def test_unknown_form_is_named():
    with pytest.raises(ValueError, match="'hinge'; choose from divergence, likelihood"):
        ranking_loss(torch.rand(1, 2), torch.rand(1, 2), 0.1, 1.0, form="hinge")


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_ranking_temperature_must_be_above_zero(temperature):
    with pytest.raises(ValueError, match="must be above 0"):
        ranking_loss(torch.rand(1, 2), torch.rand(1, 2), temperature, 1.0)


def test_picture_ranking_loss_equals_a_plain_loop_and_finite_differences():
    pictures, captions = torch.stack([unit(3, 4) for _ in range(5)]), unit(5, 4)
    probabilities = torch.rand(5, 3)
    probabilities[0] = torch.tensor([1.0, 0.0, math.nan])  # by labels, and a picture that is not there
    probabilities[1] = torch.tensor([1.0, math.nan, math.nan])
    probabilities[2:] /= probabilities[2:].sum(1, keepdim=True)

    def loss(captions, pictures):
        return picture_ranking_loss(pictures, captions, probabilities, 3.0)

    found = loss(captions, pictures)
    for row, value in enumerate(found.tolist()):
        there = [k for k in range(3) if not probabilities[row, k].isnan()]
        exps = [math.exp(3 * sum((pictures[row, k] * captions[row]).tolist())) for k in there]
        shares = [one / sum(exps) for one in exps]
        wanted = [probabilities[row, k].item() for k in there]
        plain = sum(p * math.log(p / q) for p, q in zip(wanted, shares, strict=True) if p > 0)
        assert value == pytest.approx(plain, abs=1e-5)
    assert found[1] == 0
    values = captions.clone().requires_grad_(True), pictures.clone().requires_grad_(True)
    loss(*values).sum().backward()
    for number, value in enumerate(values):
        for place in itertools.product(*map(range, value.shape)):
            step = [torch.zeros_like(one) for one in values]
            step[number][place] = 1e-2
            above, below = (
                loss(*(one.detach() + sign * d for one, d in zip(values, step, strict=True))) for sign in (1, -1)
            )
            slope = (above - below).sum().item() / 2e-2
            assert value.grad[place].item() == pytest.approx(slope, abs=2e-3)


def test_one_candidate_is_nothing_to_rank():
    with pytest.raises(ValueError, match="fewer than two"):
        ranking_loss(torch.rand(1, 2), torch.tensor([[0.3, math.nan]]), 0.1, 1.0)


def test_temperature_is_a_share_of_the_median_gap():
    errors = torch.tensor([[0.1, 0.5, 0.9], [0.7, 0.3, math.nan], [0.2, 0.21, 5.0]])
    assert ranking_temperature(errors, share=0.1) == pytest.approx(0.1 * 0.4)
    with pytest.raises(ValueError, match="say nothing"):
        ranking_temperature(torch.ones(3, 2))


def test_confidence_is_that_of_a_paired_comparison():
    torch.manual_seed(0)
    shared = torch.randn(2, 1, 8) * 10  # common draws: large, and the same for both candidates
    errors = shared + torch.randn(2, 2, 8) * 0.1
    errors[0, 1] += 0.02
    errors[1, 1] += 5.0
    found = teacher_confidence(errors)
    for row in range(2):
        differences = (errors[row, 1] - errors[row, 0]).double().numpy()
        z = abs(differences.mean()) / (differences.std(ddof=1) / math.sqrt(8))
        assert found[row].item() == pytest.approx(math.erf(z / math.sqrt(2)), abs=1e-4)
    assert found[0] < 0.9 < 0.999 < found[1]


def test_confidence_is_by_the_draws_that_were_made_of_the_candidates_there_are():
    errors = torch.rand(3, 2, 6)
    padded = torch.full((3, 4, 9), math.nan)
    padded[:, 1, :6], padded[:, 3, :6] = errors[:, 0], errors[:, 1]
    assert torch.allclose(teacher_confidence(padded), teacher_confidence(errors), atol=1e-6)


def test_confidence_needs_two_draws():
    with pytest.raises(ValueError, match="two draws"):
        teacher_confidence(torch.rand(3, 2, 1))
