"""CLIP's text tower written plainly from its weights, at full length, as the published code of CoOp and CoCoOp runs it."""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel


def plain_text_features(clip: CLIPModel, embeds: Tensor, ends: Tensor) -> Tensor:
    """Unit-length features (n, D) of embedded prompts (n, L, d) that end at the places ``ends`` (n,)."""
    tower, config = clip.text_model, clip.config.text_config
    n, length, width = embeds.shape
    heads = config.num_attention_heads
    states = embeds + tower.embeddings.position_embedding.weight[:length]
    unseen = torch.full((length, length), -torch.inf).triu(1)

    def split(x):
        return x.view(n, length, heads, width // heads).transpose(1, 2)

    for layer in tower.encoder.layers:
        attention = layer.self_attn
        normed = layer.layer_norm1(states)
        q, k, v = (split(part(normed)) for part in (attention.q_proj, attention.k_proj, attention.v_proj))
        weights = (q @ k.transpose(-1, -2) / (width // heads) ** 0.5 + unseen).softmax(-1)
        states = states + attention.out_proj((weights @ v).transpose(1, 2).reshape(n, length, width))
        hidden = layer.mlp.fc1(layer.layer_norm2(states))
        states = states + layer.mlp.fc2(hidden * torch.sigmoid(1.702 * hidden))  # quick_gelu
    at_end = tower.final_layer_norm(states)[torch.arange(n), ends]
    return F.normalize(at_end @ clip.text_projection.weight.T, dim=-1)


def plain_prompts(clip: CLIPModel, tokenizer, names: list[str], context: Tensor) -> tuple[Tensor, Tensor]:
    """Embedded prompts (C, 77, d) "[V]...[V] NAME." of a context (M, d), and the places of their ends (C,)."""
    table = clip.text_model.embeddings.token_embedding.weight
    rows, ends = [], []
    for name in names:
        ids = tokenizer(f"{name}.").input_ids  # begin, name, dot, end
        words = table[ids]
        pad = table[torch.zeros(77 - len(ids) - len(context), dtype=torch.long)]
        rows.append(torch.cat([words[:1], context, words[1:], pad]))
        ends.append(len(ids) + len(context) - 1)
    return torch.stack(rows), torch.tensor(ends)
