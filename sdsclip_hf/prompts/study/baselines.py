"""What prompts are compared with: a linear probe of the frozen image tower, and LoRA in both towers."""

import math

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import CLIPModel, PreTrainedTokenizerBase

from sdsclip_hf.prompts.labelled_images import LabelledImages, collate
from sdsclip_hf.prompts.losses import class_logits
from sdsclip_hf.prompts.settings import PromptSettings
from sdsclip_hf.prompts.zero_shot import ZeroShot
from sdsclip_hf.students.kinds import caption_reader, image_features, logit_scale, text_features

PROBE_C = 0.316  # of the example in OpenAI's repository of CLIP
PROBE_STEPS = 200
LORA_LAYERS = ("q_proj", "k_proj", "v_proj")


class LinearProbe(nn.Module):
    """Logistic regression on the frozen image features, as CLIP's authors had it: ||W||^2 / 2 + C sum of cross-entropies.

    Args:
        clip: gives the features.
        data: images without augmentation.
        c: C.
    """

    def __init__(self, clip: CLIPModel, data: LabelledImages, c: float = PROBE_C):
        super().__init__()
        self.clip, self.class_names = clip.requires_grad_(False).eval(), data.class_names
        features, labels = self.features(data)
        self.linear = nn.Linear(features.shape[-1], len(data.class_names)).to(features.device)
        nn.init.zeros_(self.linear.weight), nn.init.zeros_(self.linear.bias)
        optimizer = torch.optim.LBFGS(
            self.linear.parameters(), max_iter=PROBE_STEPS, line_search_fn="strong_wolfe", tolerance_change=1e-9
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = self.linear.weight.square().sum() / 2 + c * F.cross_entropy(
                self.linear(features), labels, reduction="sum"
            )
            value.backward()
            return value

        optimizer.step(loss)

    @torch.no_grad()
    def features(self, data: LabelledImages, batch_size: int = 64) -> tuple[Tensor, Tensor]:
        """Features (N, D), not of unit length, and labels (N,)."""
        batches = list(DataLoader(data, batch_size, collate_fn=collate))
        device = self.clip.device
        found = [
            image_features(self.clip, {"pixel_values": batch["pixel_values"].to(device)}).float() for batch in batches
        ]
        return torch.cat(found), torch.cat([batch["labels"] for batch in batches]).to(device)

    @torch.no_grad()
    def accuracy(self, data: LabelledImages) -> float | None:
        """Among the classes that it was fitted on; None for others, which it cannot tell."""
        if data.class_names != self.class_names:
            return None
        features, labels = self.features(data)
        return float((self.linear(features).argmax(-1) == labels).float().mean())


def tune_lora(
    clip: CLIPModel,
    tokenizer: PreTrainedTokenizerBase,
    data: LabelledImages,
    settings: PromptSettings,
    seed: int,
    *,
    rank: int = 2,
    alpha: float = 1.0,
    dropout: float = 0.25,
    learning_rate: float = 2e-4,
    batch_size: int = 32,
    steps_per_shot: int = 500,
) -> ZeroShot:
    """LoRA in the attentions of both towers, by the cross-entropy over hand-written prompts, and the tuned model by them.

    The defaults are those of CLIP-LoRA (Zanella and Ben Ayed 2024, arXiv 2405.18541): rank 2, all layers, AdamW with a
    cosine to nothing.

    Args:
        clip: is changed.
        tokenizer: that goes with it.
        data: to train on.
        settings: tell the template.
        seed: of what is initialised, drawn and dropped.
        rank, alpha, dropout: of the adapters.
        learning_rate, batch_size: of AdamW.
        steps_per_shot: steps for each picture that a class has.
    """
    torch.manual_seed(seed)
    tuned = ZeroShot(clip, tokenizer, data.class_names, settings.without_context())
    adapters = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(LORA_LAYERS))
    inject_adapter_in_model(adapters, clip)
    read = caption_reader(clip, tokenizer)
    captions = {name: value.to(clip.device) for name, value in read(tuned.hand_written()).items()}
    steps = steps_per_shot * data.shots
    trained = [one for one in clip.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=1e-2, betas=(0.9, 0.999))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    clip.train()
    for batch in _endless(data, batch_size, steps, seed):
        images = F.normalize(image_features(clip, {"pixel_values": batch["pixel_values"].to(clip.device)}), dim=-1)
        texts = F.normalize(text_features(clip, **captions), dim=-1)
        loss = F.cross_entropy(class_logits(images, texts[None], logit_scale(clip)), batch["labels"].to(clip.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    clip.requires_grad_(False).eval()
    return tuned


def _endless(data: LabelledImages, batch_size: int, steps: int, seed: int):
    """Batches of the data in random orders, epoch after epoch, ``steps`` of them."""
    generator, done, epoch = torch.Generator().manual_seed(seed), 0, 0
    while done < steps:
        data.set_epoch(epoch)
        whole = len(data) >= batch_size
        for batch in DataLoader(
            data, batch_size, shuffle=True, generator=generator, collate_fn=collate, drop_last=whole
        ):
            if done == steps:
                return
            yield batch
            done += 1
        epoch += 1
