"""What prompt learning minimises, as pure functions of tensors.

Of B images and C classes; D is the width of the space that both share. The cross-entropy over [`class_logits`] is PyTorch's.
"""

from torch import Tensor


def class_logits(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor) -> Tensor:
    """How well each class fits each image.

    Args:
        image_embeds: unit length, (B, D).
        text_embeds: unit length: of each class (1, C, D), or of each class for each image (B, C, D).
        logit_scale: the factor on the cosines (already exponentiated), scalar.

    Returns:
        (B, C)
    """
    if len(text_embeds) == 1:
        return logit_scale * image_embeds @ text_embeds[0].T
    return logit_scale * (text_embeds @ image_embeds[:, :, None]).squeeze(-1)


def knowledge_loss(text_embeds: Tensor, reference_embeds: Tensor) -> Tensor:
    """KgCoOp's term (Yao et al. 2023, arXiv 2303.13283): one less the mean cosine of learned and hand-written prompts.

    Args:
        text_embeds: of the learned prompts, unit length, (C, D).
        reference_embeds: of the hand-written prompts of the same classes, unit length, (C, D).

    Returns:
        Scalar, from 0 to 2.
    """
    return 1 - (text_embeds * reference_embeds).sum(-1).mean()


def squared_distance(found: Tensor, wanted: Tensor) -> Tensor:
    """IntCoOp's L_attr and L_reg as they are read here: the mean over images of ||found - wanted||^2.

    Args:
        found, wanted: (B, D) each.

    Returns:
        Scalar.
    """
    return (found - wanted).square().sum(-1).mean()
