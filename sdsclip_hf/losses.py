"""The loss terms, as pure functions of tensors.

L = lambda_clip * L_CLIP + lambda_sds * L_SDS + lambda_rank * L_rank. L_SDS is the paper's (arXiv 2307.09233),
E_{t, eps} || eps_theta(h_w(f_phi(x)), t, c) - eps ||^2; L_rank is this project's own ranking distillation.

The paper's symbols: ``image_embeds`` are f_phi(x), ``latents`` are z0 = h_w(f_phi(x)), ``predict_noise`` is eps_theta
with its timesteps t and captions c bound, ``noise`` is eps, and ``alpha``, ``sigma`` belong to the noise schedule:
z_t = alpha_t * z0 + sigma_t * eps.
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from sdsclip_hf.contrastive_losses import KnownAnswers as KnownAnswers
from sdsclip_hf.contrastive_losses import contrastive_loss as contrastive_loss
from sdsclip_hf.contrastive_losses import sigmoid_loss as sigmoid_loss

Reading = Literal["noised", "as_printed"]
Gradient = Literal["full", "stop_gradient"]
Weighting = Literal["constant", "sigma_squared", "min_snr", "velocity"]
Prediction = Literal["epsilon", "v_prediction", "flow"]
RankingTargets = Literal["teacher", "labels"]
RankingForm = Literal["divergence", "likelihood"]
READINGS, GRADIENTS, WEIGHTINGS, RANKING_TARGETS = map(get_args, (Reading, Gradient, Weighting, RankingTargets))
FEWEST_CALIBRATED = 20  # images
NO_WORSE = 1.92  # nats: half of the 95 % point of chi-square with one degree of freedom
PREDICTIONS, RANKING_FORMS = map(get_args, (Prediction, RankingForm))


def noise_weight(weighting: Weighting, alpha: Tensor, sigma: Tensor, snr_gamma: float = 5.0) -> Tensor:
    """The weight w(t) on the squared error of the predicted noise.

    ``constant``: 1, the paper's. ``sigma_squared``: sigma_t^2, score distillation's (DreamFusion, arXiv 2209.14988).
    ``min_snr``: min(SNR, gamma) / SNR with SNR = alpha^2 / sigma^2 (arXiv 2303.09556). ``velocity``: 1 / alpha_t^2,
    which turns the error in the noise into the error in the velocity, v = alpha * eps - sigma * z0 or a flow's eps - z0,
    so that the high noise at which the layout of a picture is decided keeps its say.

    Args:
        weighting: one of the names above.
        alpha, sigma: the schedule's coefficients at the sampled timesteps, (B,).
        snr_gamma: gamma of ``min_snr``, a ratio without unit.

    Returns:
        (B,)

    Raises:
        ValueError: an unknown name, or on a CPU ``velocity`` where alpha is zero, which a GPU is not waited for.

    Example:

    ```python
    import torch
    from sdsclip_hf.losses import noise_weight

    alpha, sigma = torch.tensor([0.8, 0.5]), torch.tensor([0.6, 0.75**0.5])
    print(noise_weight("velocity", alpha, sigma))  # tensor([1.5625, 4.0000])
    ```
    """
    if weighting == "constant":
        return torch.ones_like(alpha)
    if weighting == "sigma_squared":
        return sigma.square()
    if weighting == "min_snr":
        return (snr_gamma * sigma.square() / alpha.square()).clamp(max=1)
    if weighting == "velocity":
        if alpha.device.type == "cpu" and (alpha == 0).any():
            raise ValueError("weighting 'velocity' is infinite where alpha_t is 0; lower the end of timestep_range.")
        return 1 / alpha.square()
    raise ValueError(f"unknown weighting {weighting!r}; choose from {', '.join(WEIGHTINGS)}.")


def add_noise(latents: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """z_t = alpha_t * z0 + sigma_t * eps, for (B, C, h, w) latents and (B,) coefficients."""
    shape = (-1, *[1] * (latents.dim() - 1))
    return alpha.view(shape) * latents + sigma.view(shape) * noise


def predicted_noise(prediction: Prediction, predicted: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """eps_hat: what a denoiser's own prediction says of the noise.

    Args:
        prediction: ``epsilon``, the noise; ``v_prediction``, v = alpha * eps - sigma * z0; ``flow``, eps - z0.
        predicted: by the denoiser, (B, C, h, w).
        noisy: z_t, which it saw, (B, C, h, w).
        alpha, sigma: the schedule's coefficients, (B,): alpha^2 + sigma^2 = 1, or for ``flow`` alpha + sigma = 1.

    Returns:
        (B, C, h, w). The clean latents that it means are (z_t - sigma * eps_hat) / alpha.

    Raises:
        ValueError: an unknown prediction.

    Example:

    ```python
    import torch
    from sdsclip_hf.losses import add_noise, predicted_noise

    latents, noise, half = torch.zeros(1, 4, 8, 8), torch.ones(1, 4, 8, 8), torch.tensor([0.5])
    noisy = add_noise(latents, noise, half, half)
    print(torch.equal(predicted_noise("flow", noise - latents, noisy, half, half), noise))  # True
    ```
    """
    shape = (-1, *[1] * (noisy.dim() - 1))
    if prediction == "epsilon":
        return predicted
    if prediction == "v_prediction":
        return alpha.view(shape) * predicted + sigma.view(shape) * noisy
    if prediction == "flow":
        return noisy + alpha.view(shape) * predicted
    raise ValueError(f"unknown prediction {prediction!r}; choose from {', '.join(PREDICTIONS)}.")


def distillation_loss(
    latents: Tensor,
    noise: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    predict: Callable[[Tensor], Tensor],
    *,
    prediction: Prediction = "epsilon",
    reading: Reading = "noised",
    gradient: Gradient = "full",
    weighting: Weighting = "constant",
    snr_gamma: float = 5.0,
) -> Tensor:
    """L_SDS of each sample: the weighted error of the denoiser that sees ``latents`` (arXiv 2307.09233).

    Reading ``noised`` (default) puts forward noise on the latents, as a denoiser expects: it sees
    z_t = alpha_t * z0 + sigma_t * eps. Reading ``as_printed`` gives it z0 itself, as the paper's formula stands; the
    target is then independent of the input.

    Gradient ``full`` (default) runs back through the denoiser. ``stop_gradient`` calls the denoiser under no_grad and
    leaves its Jacobian out, as DreamFusion does; the value is the same. The predicted noise then follows z_t as it stands:
    d eps_hat / d z_t is 1 where the denoiser predicts noise or a flow, and sigma_t where it predicts v.

    The error is the squared error of the predicted noise times w(t), whatever the denoiser predicts, so that weightings
    mean the same for all. The squared norm is taken as a mean over the N elements, so that lambda does not depend on the
    latent size.

    Args:
        latents: z0 = h_w(f_phi(x)), (B, C, h, w).
        noise: eps, standard normal, (B, C, h, w).
        alpha, sigma: the schedule's coefficients at the sampled timesteps, (B,).
        predict: the frozen denoiser, from its input (B, C, h, w) to its prediction (B, C, h, w).
        prediction: what that is, see [`predicted_noise`].
        reading: ``noised`` or ``as_printed``.
        gradient: ``full`` or ``stop_gradient``.
        weighting: w(t), see [`noise_weight`]. ``velocity`` is a flow model's own training loss, finite at alpha = 0, too.
        snr_gamma: gamma of weighting ``min_snr``.

    Returns:
        (B,) float32

    Raises:
        ValueError: an unknown reading, gradient, weighting or prediction.

    Example:

    ```python
    import torch
    from sdsclip_hf import distillation_loss

    latents, noise = torch.randn(2, 4, 8, 8), torch.ones(2, 4, 8, 8)
    alpha, sigma = torch.full((2,), 0.6), torch.full((2,), 0.8)
    blind = torch.zeros_like  # a denoiser that finds no noise
    print(distillation_loss(latents, noise, alpha, sigma, blind))  # tensor([1., 1.])

    def perfect(noisy):
        return (noisy - 0.6 * latents) / 0.8

    print(f"{distillation_loss(latents, noise, alpha, sigma, perfect).sum():.4f}")  # 0.0000
    ```
    """
    if reading not in READINGS:
        raise ValueError(f"unknown reading {reading!r}; choose from {', '.join(READINGS)}.")
    if gradient not in GRADIENTS:
        raise ValueError(f"unknown gradient {gradient!r}; choose from {', '.join(GRADIENTS)}.")
    latents, noise, alpha, sigma = latents.float(), noise.float(), alpha.float(), sigma.float()
    seen = add_noise(latents, noise, alpha, sigma) if reading == "noised" else latents
    with torch.set_grad_enabled(torch.is_grad_enabled() and gradient == "full"):
        predicted = predict(seen).float()
    if gradient == "stop_gradient" and prediction == "epsilon":
        predicted = predicted + (seen - seen.detach())  # nothing, whose derivative is one
    if prediction == "flow" and reading == "noised":  # eps_hat - eps is alpha times this, which may be 0
        error = (predicted - (noise - latents)).square().flatten(1).mean(1)
        if weighting == "velocity":
            return error
        return noise_weight(weighting, alpha, sigma, snr_gamma) * alpha.square() * error
    found = predicted_noise(prediction, predicted, seen, alpha, sigma)
    return noise_weight(weighting, alpha, sigma, snr_gamma) * (found - noise).square().flatten(1).mean(1)


def ranking_loss(
    cosines: Tensor,
    errors: Tensor,
    temperature: float,
    logit_scale: Tensor | float,
    form: RankingForm = "divergence",
) -> Tensor:
    """Ranking distillation, this project's own term: KL(softmax_k(-d(x, c_k) / tau) || softmax_k(s * cos(f(x), g(c_k)))).

    In this form, ``divergence`` of q from p, the student is to believe what the teacher does. Form ``likelihood`` is
    -log sum_k p_k q_k: the teacher's word is evidence, as likely under each caption as q tells, and the student is to
    believe what explains it (the forward correction of noisy labels, Patrini et al. 2017, arXiv 1609.03683). Both gradients
    are s (p - r): r is q in the first, and in the second proportional to p q, which is p where the teacher tells nothing.

    Args:
        cosines: cos(f(x), g(c_k)) of each image with its K candidate captions, (B, K).
        errors: the teacher's d(x, c_k), (B, K); lower means a better match. All K of a row must share their draws. NaN
            where an image has fewer candidates.
        temperature: tau, in units of d, above 0. As evidence q must say how often it is right: [`calibrated_temperature`].
        logit_scale: s, the factor on the cosines, scalar.
        form: one of the names above.

    Returns:
        (B,), in nats. The divergence is zero where the student's distribution is the teacher's.

    Raises:
        ValueError: the temperature is not above 0, an image has fewer than two candidates, or the form is unknown.

    Example:

    ```python
    import torch
    from sdsclip_hf import ranking_loss

    errors = torch.tensor([[0.1, 0.3]])  # the teacher prefers the first of two captions
    agrees, differs = torch.tensor([[0.5, 0.3]]), torch.tensor([[0.3, 0.5]])
    print(f"{ranking_loss(agrees, errors, temperature=0.1, logit_scale=10.0).item():.2f}")  # 0.00
    print(f"{ranking_loss(differs, errors, temperature=0.1, logit_scale=10.0).item():.2f}")  # 1.52
    ```
    """
    if not temperature > 0:
        raise ValueError(f"the ranking temperature is {temperature}; it must be above 0. Set --ranking_temperature.")
    if len(errors) and (~errors.isnan()).sum(1).min() < 2:
        raise ValueError("an image has fewer than two scored candidates; there is nothing to rank. Leave it out.")
    return ranking_losses(cosines, errors, temperature, logit_scale, form)


def ranking_losses(
    cosines: Tensor, errors: Tensor, temperature: float, logit_scale: Tensor | float, form: RankingForm
) -> Tensor:
    """[`ranking_loss`] of what is known to fit, without a look at the numbers, which a GPU would have to end first."""
    known = ~errors.isnan()
    teacher = _masked_log_softmax(-errors / temperature, known)
    student = _masked_log_softmax(logit_scale * cosines, known)
    if form == "likelihood":
        return -(student + teacher).masked_fill(~known, -torch.inf).logsumexp(1)
    if form != "divergence":
        raise ValueError(f"unknown form of the ranking loss {form!r}; choose from {', '.join(RANKING_FORMS)}.")
    return (teacher.exp() * (teacher - student)).masked_fill(~known, 0.0).sum(1)


def picture_ranking_loss(
    pictures: Tensor, captions: Tensor, probabilities: Tensor, logit_scale: Tensor | float
) -> Tensor:
    """The same over pictures: KL(p_k || softmax_k(s * cos(f(x_k), g(c)))), of each caption with its K candidate pictures.

    Args:
        pictures: unit-length f(x_k), (B, K, D).
        captions: unit-length g(c), (B, D).
        probabilities: p_k, how likely each picture is the one that the caption tells of, (B, K); by labels 1 and 0. NaN
            where a caption has fewer candidates.
        logit_scale: s, the factor on the cosines, scalar.

    Returns:
        (B,), in nats; zero where the student's distribution is p, and for a caption with one picture.

    Example:

    ```python
    import torch
    from sdsclip_hf.losses import picture_ranking_loss

    pictures = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # the right one, and a wrong one
    captions, right = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    print(f"{picture_ranking_loss(pictures, captions, right, logit_scale=2.0).item():.3f}")  # 0.127
    ```
    """
    known = ~probabilities.isnan()
    target = probabilities.masked_fill(~known, 0.0)
    cosines = torch.einsum("bkd,bd->bk", pictures, captions)
    student = _masked_log_softmax(logit_scale * cosines, known)
    return (torch.xlogy(target, target) - target * student).masked_fill(~known, 0.0).sum(1)


def _masked_log_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Over the last axis, with finite values outside the mask, which hold no probability."""
    return logits.float().masked_fill(~mask, torch.finfo(torch.float32).min / 2).log_softmax(-1)


def ranking_temperature(errors: Tensor, share: float = 0.1) -> float:
    """A temperature that fits the spread of d: ``share`` of the median gap between an image's two best candidates.

    Args:
        errors: d(x, c_k), (N, K), NaN where an image has fewer candidates.
        share: above 0.

    Raises:
        ValueError: the median gap is 0, so that the scores say nothing.

    Example:

    ```python
    import torch
    from sdsclip_hf.losses import ranking_temperature

    errors = torch.tensor([[0.1, 0.3, 0.4], [0.2, 0.4, 0.9]])  # gaps of 0.2 between the two best
    print(f"{ranking_temperature(errors, share=0.1):.3f}")  # 0.020
    ```
    """
    best, second = _nan_last(errors).topk(2, largest=False).values.unbind(-1)
    gap = (second - best).median().item()
    if not gap > 0:
        raise ValueError(
            f"the median gap between the teacher's two best candidates is {gap}: its scores say nothing. Score the captions "
            "with another teacher or candidates, or set --ranking_temperature."
        )
    return share * gap


def calibrated_temperature(errors: Tensor, own: Tensor) -> float:
    """The temperature at which softmax_k(-d / tau) says how often the teacher is right, by images' own captions.

    Temperature scaling (Guo et al. 2017, arXiv 1706.04599), over a grid of eighths of an octave around the median gap. Of
    all tau under which the own captions are no less likely than under the best (by a likelihood ratio at 95 %) it takes the
    largest: the best for a teacher that was never seen to err is 0.

    Args:
        errors: d(x, c_k), (N, K), NaN where an image has fewer candidates; two or more of each.
        own: which candidate is the image's own caption, (N,).

    Raises:
        ValueError: there are fewer than 20 images.

    Example:

    ```python
    import torch
    from sdsclip_hf.losses import calibrated_temperature

    errors = torch.tensor([[0.0, 1.0]]).repeat(1000, 1)  # always for the first of two, and always as sure ...
    own = torch.tensor([0] * 750 + [1] * 250)  # ... but right in three of four
    temperature = calibrated_temperature(errors, own)
    print((-errors[0] / temperature).softmax(0))  # tensor([0.7311, 0.2689])
    ```
    """
    if len(errors) < FEWEST_CALIBRATED:
        raise ValueError(
            f"{len(errors)} pictures have two or more scored candidates; calibrating their teacher takes "
            f"{FEWEST_CALIBRATED}. Score more, or set --ranking_temperature."
        )
    errors, known = errors.double(), ~errors.isnan()
    best, second = _nan_last(errors).topk(2, largest=False).values.unbind(-1)
    gap = (second - best).median().item() or (second - best).mean().item() or 1.0
    tried = gap * 2.0 ** torch.arange(-12, 12.125, 0.125)
    logits = (-errors / tried[:, None, None]).masked_fill(~known, -torch.inf)  # (T, N, K)
    fits = -F.cross_entropy(logits.transpose(1, 2), own.expand(len(tried), -1), reduction="none").sum(1)
    return tried[fits >= fits.max() - NO_WORSE].max().item()


def teacher_confidence(errors: Tensor) -> Tensor:
    """How sure the teacher is of its first choice: 2 P(the best candidate beats the second) - 1, by its own draws.

    The difference of two candidates' errors under shared draws is taken as normal around its mean over the draws, with
    the standard error that the draws show.

    Args:
        errors: d of each draw, (N, K, R), NaN where an image has fewer candidates or draws; at least two draws each.

    Returns:
        (N,) in [0, 1]; 0 at chance.

    Raises:
        ValueError: there is only one draw.

    Example:

    ```python
    import torch
    from sdsclip_hf.losses import teacher_confidence

    sure = [[0.11, 0.10, 0.12], [0.31, 0.30, 0.34]]  # two candidates, three draws
    unsure = [[0.1, 0.3, 0.2], [0.3, 0.1, 0.2]]
    confidence = teacher_confidence(torch.tensor([sure, unsure]))
    print([round(value, 2) for value in confidence.tolist()])  # [1.0, 0.0]
    ```
    """
    rows = torch.arange(len(errors), device=errors.device)
    best, second = _nan_last(errors.nanmean(-1)).topk(2, largest=False).indices.unbind(-1)
    differences = errors[rows, second] - errors[rows, best]  # (N, R)
    draws = (~differences.isnan()).sum(-1)
    if len(draws) and draws.min() < 2:
        raise ValueError(
            "the teacher's confidence needs at least two draws an item; score the captions with --num_draws 2 or more."
        )
    mean = differences.nanmean(-1)
    variance = (differences - mean[:, None]).square().nansum(-1) / (draws - 1)
    return torch.erf(mean / (variance / draws).sqrt().clamp_min(1e-12) / 2**0.5)


def _nan_last(errors: Tensor) -> Tensor:
    return errors.masked_fill(errors.isnan(), torch.inf)


def rms(latents: Tensor) -> Tensor:
    """Root mean square of each sample, (B, ...) to (B,)."""
    return latents.float().square().flatten(1).mean(1).sqrt()


def spread(latents: Tensor) -> Tensor:
    """How much the latents of a batch differ, as a share of their RMS: 0 when the mapper gives one blank for all."""
    flat = latents.float().flatten(1)
    return (flat - flat.mean(0)).square().mean().sqrt() / flat.square().mean().sqrt().clamp(min=1e-12)


def gradient_norms(terms: dict[str, Tensor], parameters: Sequence[Tensor]) -> dict[str, Tensor]:
    """How hard each term pulls at the trained weights, and whether they pull the same way (arXiv 2603.04803).

    Args:
        terms: the weighted terms, scalars; the first is the contrastive one where that is switched on.
        parameters: the weights that train. Their graph is kept for the backward pass that follows.

    Returns:
        ``grad_norm_NAME`` for each term, and ``grad_cosine`` between the first and the sum of the others.
    """
    flat = {}
    for name, term in terms.items():
        gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
        pairs = zip(gradients, parameters, strict=True)
        flat[name] = torch.cat([(torch.zeros_like(p) if g is None else g).float().flatten() for g, p in pairs])
    first, *others = flat.values()
    norms = {f"grad_norm_{name}": gradient.norm() for name, gradient in flat.items()}
    return norms | {"grad_cosine": torch.cosine_similarity(first, torch.stack(others).sum(0), dim=0)}
