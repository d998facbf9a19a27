"""h_w: the linear map from CLIP's embeddings to the latents of a diffusion model."""

import json
import math
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


class LatentMapper(nn.Module):
    """h_w: one linear map from a unit-length embedding to the denoiser's latent.

    The weights start so that z0 has RMS ``scale``, the scale of the latents that the denoiser was trained on. The map
    may be trained in whitened coordinates (see [`whiten`]); it is saved as the single linear map that it is.

    Args:
        embed_dim: D, the width of CLIP's joint embedding space.
        latent_shape: (C, h, w) of the teacher.
        unit_rms: scale every z0 to RMS ``scale`` exactly. Without it the mapper may collapse to a blank that is easy
            to denoise, and the loss falls while the caption ceases to matter.
        scale: RMS of z0, at the start or (``unit_rms``) always. Latents of Stable Diffusion have about 1.

    Example:

    ```python
    import torch
    from sdsclip_hf import LatentMapper

    mapper = LatentMapper(embed_dim=512, latent_shape=(4, 64, 64))  # ViT-B/32 and Stable Diffusion 1.5
    embeds = torch.nn.functional.normalize(torch.randn(2, 512), dim=-1)
    latents = mapper(embeds)
    print(latents.shape)  # torch.Size([2, 4, 64, 64])
    print(f"{latents[0].square().mean().sqrt():.3f}")  # 1.000
    ```
    """

    center: Tensor
    axes: Tensor
    linear: nn.Linear
    latent_shape: tuple[int, int, int]

    def __init__(self, embed_dim: int, latent_shape: tuple[int, int, int], unit_rms: bool = True, scale: float = 1.0):
        super().__init__()
        channels, height, width = latent_shape
        self.latent_shape, self.unit_rms, self.scale = (channels, height, width), unit_rms, scale
        self.linear = nn.Linear(embed_dim, math.prod(latent_shape))
        nn.init.normal_(self.linear.weight, std=scale / math.sqrt(embed_dim))
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("center", torch.zeros(embed_dim))
        self.register_buffer("axes", torch.eye(embed_dim) * math.sqrt(embed_dim))  # gives unit RMS to unit vectors

    def forward(self, embeds: Tensor) -> Tensor:
        """(B, D) to (B, C, h, w)."""
        whitened = (embeds - self.center) @ self.axes
        flat = self.linear(whitened.to(self.linear.weight.dtype))  # FSDP casts weights, but not buffers
        if self.unit_rms:
            flat = self.scale * flat / flat.square().mean(-1, keepdim=True).add(1e-8).sqrt()
        return flat.view(-1, *self.latent_shape)

    @torch.no_grad()
    def whiten(self, embeds: Tensor, floor: float = 1e-2) -> None:
        """Train the map from here on in coordinates in which ``embeds`` have mean 0 and covariance 1.

        CLIP's embeddings vary by orders of magnitude more in some directions than in those that tell a scene from its
        swap; in their own coordinates gradient descent hardly finds the latter.

        Args:
            embeds: a sample of embeddings, (N, D).
            floor: directions whose variance is at most this share of the largest are left out. The map then does not
                answer to what the sample never showed, and L_SDS cannot lower itself by moving embeddings there.

        Raises:
            ValueError: the sample does not vary.
        """
        if len(embeds) < 2 or not (embeds != embeds[0]).any():
            raise ValueError(
                f"whitening needs embeddings that differ; got {len(embeds)}, all alike. Give it more pictures and captions, "
                "or leave --mapper_whitening out."
            )
        embeds = embeds.cpu().double()  # which Apple's GPUs have not
        variances, directions = torch.linalg.eigh(torch.cov(embeds.T))
        kept = variances > floor * variances.max()
        directions = directions[:, kept]
        self.center.copy_(embeds.mean(0))
        self.axes.copy_((directions * variances[kept].rsqrt()) @ directions.T)

    def as_linear(self) -> nn.Linear:
        """The whole map, before any scaling to unit RMS, as one linear layer on unit-length embeddings."""
        weight = self.linear.weight.detach() @ self.axes.T
        outputs, inputs = weight.shape
        linear = nn.Linear(inputs, outputs)
        linear.weight.data.copy_(weight)
        linear.bias.data.copy_(self.linear.bias.detach() - weight @ self.center)
        return linear

    def save(self, path: Path) -> None:
        """Write the one linear map, with what the module needs to be made again in the file's metadata."""
        settings = {"latent_shape": self.latent_shape, "unit_rms": self.unit_rms, "scale": self.scale}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.as_linear().state_dict().items()}
        save_file(tensors, path, metadata={"format": "pt", "latent_mapper": json.dumps(settings)})

    @classmethod
    def load(cls, path: str | Path) -> "LatentMapper":
        """Read what [`save`] wrote."""
        with safe_open(path, "pt") as file:
            settings = json.loads(file.metadata()["latent_mapper"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        mapper = cls(tensors["weight"].shape[1], **settings)
        mapper.linear.load_state_dict(tensors)
        mapper.axes.copy_(torch.eye(len(mapper.axes)))
        return mapper
