"""How much of a picture is left at each timestep: z_t = alpha_t * z0 + sigma_t * eps, for every kind of diffusion."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from sdsclip_hf.losses import Weighting

FLOW = "flow"
PREDICTION_TYPES = ("epsilon", "v_prediction")
FLOW_STEPS = 1000
FLOW_RANGE = 20, 980  # at the ends a flow model's own training has next to no draws
LEAST_ALPHA = 2**-12  # in place of nothing at all, where a schedule ends in pure noise


class Level(NamedTuple):
    """Noise levels, (B,) each.

    Args:
        alpha, sigma: the coefficients.
        t: what the denoiser is told, from 0 to 1000.
    """

    alpha: Tensor
    sigma: Tensor
    t: Tensor


class Schedule(nn.Module):
    """The coefficients of every timestep of a model.

    Args:
        alphas, sigmas: (T,).
        prediction_type: ``epsilon``, ``v_prediction`` (v = alpha * eps - sigma * z0) or ``flow`` (eps - z0).
    """

    alphas: Tensor
    sigmas: Tensor

    def __init__(self, alphas: Tensor, sigmas: Tensor, prediction_type: str):
        super().__init__()
        self.register_buffer("alphas", alphas, persistent=False)
        self.register_buffer("sigmas", sigmas, persistent=False)
        self.prediction_type = prediction_type

    def __len__(self) -> int:
        return len(self.alphas)

    @property
    def is_flow(self) -> bool:
        return self.prediction_type == FLOW

    @property
    def default_range(self) -> tuple[int, int]:
        """First and last timestep that are drawn where nothing else is asked for."""
        return FLOW_RANGE if self.is_flow else (0, len(self) - 1)

    @property
    def default_weighting(self) -> Weighting:
        """The weighting that is meant where none is asked for: flow models learn by the error in the velocity."""
        return "velocity" if self.is_flow else "constant"

    def level(self, timesteps: Tensor) -> Level:
        """The noise levels of integer timesteps (B,)."""
        sigma = self.sigmas[timesteps]
        return Level(self.alphas[timesteps], sigma, 1000 * sigma if self.is_flow else timesteps)


def flow_schedule(told: Callable[[Tensor], Tensor]) -> Schedule:
    """alpha = 1 - t / 1000, sigma = t / 1000.

    Args:
        told: of what sigmas the denoiser is in fact told, so that the noise is as strong as it believes.
    """
    sigmas = told(torch.arange(FLOW_STEPS, dtype=torch.float32) / FLOW_STEPS)
    return Schedule(1 - sigmas, sigmas, FLOW)


def discrete_schedule(scheduler: DDPMScheduler) -> Schedule:
    """That of betas.

    Raises:
        ValueError: the model predicts neither noise nor velocity.
    """
    prediction_type = cast(Any, scheduler.config).prediction_type
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"the teacher's prediction_type {prediction_type!r} is not supported; choose a checkpoint that predicts "
            f"{' or '.join(PREDICTION_TYPES)}."
        )
    alphas_cumprod = scheduler.alphas_cumprod.double()
    alphas = alphas_cumprod.sqrt().float()
    return Schedule(
        alphas.where(alphas > 0, torch.tensor(LEAST_ALPHA)), (1 - alphas_cumprod).sqrt().float(), prediction_type
    )


def is_flow_scheduler(config: dict) -> bool:
    """Whether a scheduler's configuration is that of a flow model."""
    named = "Flow" in config.get("_class_name", "")
    return named or bool(config.get("use_flow_sigmas")) or config.get("prediction_type") == "flow_prediction"


def schedule_of(config: dict, is_flow: bool, told: Callable[[Tensor], Tensor] = lambda sigmas: sigmas) -> Schedule:
    """The schedule that a pipeline's scheduler tells, whatever sampler it is.

    Args:
        config: ``scheduler_config.json``.
        is_flow: whether the pipeline's models are flow models.
        told: see [`flow_schedule`].

    Raises:
        ValueError: it is one of another kind of model, or tells no betas, for which DDPMScheduler would take its own.
    """
    sampler = config.get("_class_name", "scheduler")
    if is_flow:
        if not is_flow_scheduler(config):
            raise ValueError(
                f"the teacher's {sampler} is no scheduler of a flow model, which this pipeline has; give the scheduler of "
                "the same checkpoint."
            )
        return flow_schedule(told)
    if is_flow_scheduler(config) or not {"beta_schedule", "trained_betas"} & config.keys():
        raise ValueError(
            f"the teacher's {sampler} has no schedule of betas (a flow or EDM model?), which this pipeline needs; give the "
            "scheduler of the same checkpoint."
        )
    return discrete_schedule(cast(DDPMScheduler, DDPMScheduler.from_config(config)))
