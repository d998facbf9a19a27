"""IntCoOp as read from its abstract and reviews (Ghosal et al. 2024, arXiv 2406.13683).

Told there: attributes in the prompt, "A photo of a [a] [cls]"; an extractor A of the frozen image tower with learned tokens
in several layers; a context that hangs on the image by cross-attention; L = L_CE + l1 L_attr + l2 L_reg. The paper's code
cannot be had. What L_attr and L_reg compare, the shapes of the parts and their order in the prompt are this project's
reading: see the options of [`PromptSettings`].
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdsclip_hf.prompts.learner import PromptLearner, Seen
from sdsclip_hf.prompts.losses import squared_distance
from sdsclip_hf.prompts.prompt_texts import spoken
from sdsclip_hf.prompts.visual_tokens import VisualTokens
from sdsclip_hf.students.kinds import image_features


class IntCoOp(PromptLearner):
    """The prompt "[V(x)]...[V(x)] A(x) NAME.": a context that looks at the image, and one token that tells its attribute.

    A(x) is a linear map of the image feature that the frozen tower gives with learned tokens inside. V(x) is multi-head
    attention from the context to the frozen tower's patches. L_attr = ||A(x) - e(a)||^2 with e(a) the mean token embedding
    of the attribute's words; L_reg = ||t(x, y) - t("a photo of a [a] [cls].")||^2 of the right class's unit-length text
    features.
    Attributes are needed in training alone.
    """

    of_image = True
    may_be_class_specific = False
    needs_attributes = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        settings, config = self.settings, self.clip.config
        width, vision = self.context.shape[-1], config.vision_config
        if settings.class_token_position != "end":
            raise ValueError(
                f"class_token_position is {settings.class_token_position!r}, but intcoop puts the attribute before the "
                "class name; leave --class_token_position out."
            )
        if settings.attribute_space == "feature" and config.projection_dim != width:
            raise ValueError(
                f"attribute_space 'feature' needs text features as wide as token embeddings; this CLIP's are "
                f"{config.projection_dim} and {width} wide. Set --attribute_space token."
            )
        layers = min(settings.visual_token_layers, vision.num_hidden_layers)
        self.visual_tokens = VisualTokens(layers, settings.visual_tokens, vision.hidden_size)
        self.to_token = nn.Linear(config.projection_dim, width)
        if settings.context_attention != "none":
            heads, of_patches = config.text_config.num_attention_heads, vision.hidden_size
            self.attention = nn.MultiheadAttention(width, heads, kdim=of_patches, vdim=of_patches, batch_first=True)

    @property
    def vectors_in_prompt(self) -> int:
        """M + 1: the context and A(x)."""
        return super().vectors_in_prompt + 1

    def contexts(self, seen: Seen) -> Tensor:
        """(B, 1, M + 1, d), A(x) the last."""
        attribute = self.attribute_tokens(seen.pixel_values)
        return torch.cat([self._looking(seen.patches), attribute[:, None]], dim=1)[:, None]

    def attribute_tokens(self, pixel_values: Tensor) -> Tensor:
        """A(x) of B images, (B, d)."""
        with self.visual_tokens.inside(self.clip.vision_model):
            features = image_features(self.clip, {"pixel_values": pixel_values})
        with torch.autocast(features.device.type, enabled=False):
            return self.to_token(F.normalize(features.float(), dim=-1))

    def _looking(self, patches: Tensor) -> Tensor:
        """V(x) of B images, (B, M, d), by their patches."""
        context = self.context.expand(len(patches), -1, -1)
        if self.settings.context_attention == "none":
            return context
        with torch.autocast(context.device.type, enabled=False):
            seen = self.attention(context, patches, patches, need_weights=False)[0]
        return context + seen if self.settings.context_attention == "residual" else seen

    def extra_terms(
        self, text_embeds: Tensor, contexts: Tensor, labels: Tensor, attributes: Sequence[str] | None
    ) -> dict[str, tuple[float, Tensor]]:
        """L_attr and L_reg.

        Raises:
            ValueError: there are no attributes.
        """
        if attributes is None:
            raise ValueError(
                "intcoop learns from an attribute of each image, and the batch has none; give the dataset a column of them "
                "(--attribute_column)."
            )
        wanted = torch.stack([self._attribute(word) for word in attributes]).to(contexts.device)
        names = [spoken(self.class_names[label]) for label in labels.tolist()]
        told = [
            self.settings.template.replace("{}", f"{word} {name}") for word, name in zip(attributes, names, strict=True)
        ]
        own = text_embeds[torch.arange(len(labels), device=labels.device), labels]
        return {
            "attribute": (self.settings.attribute_weight, squared_distance(contexts[:, 0, -1], wanted)),
            "regularizer": (self.settings.regularizer_weight, squared_distance(own, self.text.of_words(told))),
        }

    def _attribute(self, words: str) -> Tensor:
        """What A(x) is to be near, (d,)."""
        if self.settings.attribute_space == "token":
            return self.text.embed_words(words).mean(0)
        return self.text.of_words([words])[0]
