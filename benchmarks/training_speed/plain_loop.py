"""SDS-CLIP as one writes it down from the paper's formula, with nothing spared: what ours is compared with."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPModel, CLIPProcessor, CLIPTextModel, CLIPTokenizer


class PlainLoop:
    """L_CLIP + L_SDS and a bare optimiser.

    All captions are padded to the full length, for CLIP and the teacher; the teacher's text encoder reads them in every
    step; and the teacher's weights are left as they are loaded, so that autograd finds their gradients, too.

    Args:
        clip_folder: of a CLIPModel and its processor.
        teacher_folder: of a pipeline in Stable Diffusion's layout that predicts noise.
        latent_size: height and width of z0.
        mapper: h_w; default: a new one.
        learning_rate: of AdamW on CLIP's LayerNorms and h_w.
    """

    def __init__(
        self,
        clip_folder: str,
        teacher_folder: str,
        latent_size: int,
        mapper: nn.Linear | None = None,
        learning_rate: float = 1e-6,
    ):
        self.clip = CLIPModel.from_pretrained(clip_folder).requires_grad_(False)
        self.processor = CLIPProcessor.from_pretrained(clip_folder)
        self.unet = UNet2DConditionModel.from_pretrained(teacher_folder, subfolder="unet")
        self.text_encoder = CLIPTextModel.from_pretrained(teacher_folder, subfolder="text_encoder")
        self.tokenizer = CLIPTokenizer.from_pretrained(teacher_folder, subfolder="tokenizer")
        self.scheduler = DDPMScheduler.from_pretrained(teacher_folder, subfolder="scheduler")
        self.latent_shape = (self.unet.config.in_channels, latent_size, latent_size)
        pixels = self.unet.config.in_channels * latent_size**2
        self.mapper = mapper or nn.Linear(self.clip.config.projection_dim, pixels)
        for module in self.clip.modules():
            if isinstance(module, nn.LayerNorm):
                module.requires_grad_(True)
        trained = [parameter for parameter in self.clip.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW([*trained, *self.mapper.parameters()], lr=learning_rate)

    def step(self, images: Sequence[Image.Image], captions: Sequence[str]) -> None:
        """One optimiser step with t and eps of its own."""
        timesteps = torch.randint(0, self.scheduler.config.num_train_timesteps, (len(images),))
        loss = self.loss(images, captions, timesteps, torch.randn(len(images), *self.latent_shape))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def loss(self, images: Sequence[Image.Image], captions: Sequence[str], timesteps: Tensor, noise: Tensor) -> Tensor:
        """L = L_CLIP + L_SDS, scalar.

        Args:
            images, captions: B pairs.
            timesteps: t, (B,).
            noise: eps, (B, C, h, w).
        """
        pixels = self.processor.image_processor(list(images), return_tensors="pt").pixel_values
        tokens = self._pad(self.processor.tokenizer, captions)
        f_x = F.normalize(self.clip.get_image_features(pixel_values=pixels).pooler_output, dim=-1)  # (B, D)
        g_c = F.normalize(self.clip.get_text_features(**tokens).pooler_output, dim=-1)  # (B, D)
        logits, labels = self.clip.logit_scale.exp() * f_x @ g_c.T, torch.arange(len(images))
        contrastive = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        prompts = self.text_encoder(self._pad(self.tokenizer, captions).input_ids).last_hidden_state  # (B, 77, D')
        z_0 = self.mapper(f_x).view(-1, *self.latent_shape)
        z_t = self.scheduler.add_noise(z_0, noise, timesteps)
        predicted = self.unet(z_t, timesteps, encoder_hidden_states=prompts).sample
        return contrastive + F.mse_loss(predicted, noise)

    @staticmethod
    def _pad(tokenizer: CLIPTokenizer, captions: Sequence[str]):
        options = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
        return tokenizer(list(captions), return_tensors="pt", **options)
