"""L_CLIP in its two forms: the softmax over all answers of CLIP, and the sigmoid of each pair of SigLIP."""

from collections.abc import Callable
from typing import Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ContrastiveForm = Literal["auto", "softmax", "sigmoid"]
CONTRASTIVE_FORMS = get_args(ContrastiveForm)


class KnownAnswers(Protocol):
    """Tells which answers are right beside each row's own."""

    def true_of_images(self, rows: Tensor) -> Tensor:
        """Of the images of ``rows`` (b,): which captions and negatives, (b, B + M)."""
        ...

    def true_of_texts(self, rows: Tensor) -> Tensor:
        """Of the captions of ``rows`` (b,): which images, (b, B)."""
        ...


def contrastive_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    all_image_embeds: Tensor | None = None,
    all_text_embeds: Tensor | None = None,
    offset: int = 0,
    negative_embeds: Tensor | None = None,
    chunk_size: int | None = None,
    known: KnownAnswers | None = None,
) -> Tensor:
    """CLIP's symmetric cross-entropy over cosine similarities (Radford et al. 2021, arXiv 2103.00020, figure 3).

    Args:
        image_embeds: unit-length image embeddings of this process, (b, D).
        text_embeds: unit-length caption embeddings of this process, (b, D); row i belongs to image i.
        logit_scale: the factor on the cosines (already exponentiated), scalar.
        all_image_embeds: image embeddings of all processes, (B, D), gathered with gradient; default: this process's.
        all_text_embeds: the same for captions, (B, D).
        offset: the row of ``all_*`` at which this process's embeddings begin.
        negative_embeds: captions that belong to no image, (M, D), further wrong answers for every image: the hard
            negatives of NegCLIP (Yuksekgonul et al. 2023, arXiv 2210.01936).
        chunk_size: rows whose similarities are held at once, and computed again in the backward pass; default: all, (b, B).
        known: which further answers are right as well, and therefore no negatives, such as [`KnownPairs`]; default: none.

    Returns:
        Scalar: the mean over this process's rows. With gathered embeddings, the mean over processes is the loss of the
        whole batch, and averaging the processes' gradients, as DDP does, gives its gradient.

    Raises:
        ValueError: the two sides differ in number, or there is only one pair, which has no negatives.

    Example:

    ```python
    import torch
    from sdsclip_hf import contrastive_loss

    embeds = torch.eye(2)  # two pairs that match, at right angles to one another
    loss = contrastive_loss(embeds, embeds, logit_scale=torch.tensor(100.0))
    print(f"{loss:.4f}")  # 0.0000
    loss = contrastive_loss(embeds, embeds, torch.tensor(0.0))  # blind: ln 2
    print(f"{loss:.4f}")  # 0.6931
    ```
    """
    all_image_embeds = image_embeds if all_image_embeds is None else all_image_embeds
    answers = _answers(image_embeds, text_embeds, all_text_embeds, negative_embeds)
    labels = torch.arange(offset, offset + len(image_embeds), device=image_embeds.device)
    true_of_images, true_of_texts = (None, None) if known is None else (known.true_of_images, known.true_of_texts)
    # Over (b, B + M) similarities, and over (b, B).
    of_images = _cross_entropy(image_embeds, answers, logit_scale, labels, chunk_size, true_of_images)
    of_texts = _cross_entropy(text_embeds, all_image_embeds, logit_scale, labels, chunk_size, true_of_texts)
    return (of_images + of_texts) / 2


def sigmoid_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    all_text_embeds: Tensor | None = None,
    offset: int = 0,
    negative_embeds: Tensor | None = None,
    chunk_size: int | None = None,
    known: KnownAnswers | None = None,
) -> Tensor:
    """SigLIP's loss, a verdict on each image and caption by itself (Zhai et al. 2023, arXiv 2303.15343, algorithm 1).

    -log sigmoid(y (s cos + b)), with y = 1 for an image's own caption and -1 for any other, summed over all captions of an
    image. No answer hangs on another, so that rows may be taken in chunks, and by several processes, as they come.

    Args:
        image_embeds: unit-length image embeddings of this process, (b, D).
        text_embeds: unit-length caption embeddings of this process, (b, D); row i belongs to image i.
        logit_scale: s, the factor on the cosines (already exponentiated), scalar.
        logit_bias: b, which is added to them, scalar.
        all_text_embeds, offset, negative_embeds, chunk_size, known: see [`contrastive_loss`].

    Returns:
        Scalar: the mean over this process's rows. With gathered captions, the mean over processes is the loss of the whole
        batch, and averaging the processes' gradients, as DDP does, gives its gradient.

    Raises:
        ValueError: the two sides differ in number, or there is only one pair, which has no negatives.

    Example:

    ```python
    import torch
    from sdsclip_hf.losses import sigmoid_loss

    embeds = torch.eye(2)  # two pairs that match, at right angles to one another
    loss = sigmoid_loss(embeds, embeds, logit_scale=torch.tensor(20.0), logit_bias=torch.tensor(-10.0))
    print(f"{loss:.4f}")  # 0.0001
    loss = sigmoid_loss(embeds, embeds, torch.tensor(0.0), torch.tensor(0.0))  # blind: 2 ln 2
    print(f"{loss:.4f}")  # 1.3863
    ```
    """
    answers = _answers(image_embeds, text_embeds, all_text_embeds, negative_embeds)
    labels = torch.arange(offset, offset + len(image_embeds), device=image_embeds.device)

    def of_rows(rows: Tensor, right: Tensor, answers: Tensor, scale: Tensor, reduction: str) -> Tensor:
        logits = scale * rows @ answers.T + logit_bias
        verdicts = F.logsigmoid(torch.where(_is_own(right, logits), logits, -logits))
        if known is not None:
            verdicts = verdicts.masked_fill(known.true_of_images(right), 0.0)
        return -verdicts.sum() / (len(rows) if reduction == "mean" else 1)

    return _in_chunks(of_rows, image_embeds, labels, answers, logit_scale, chunk_size)


def _is_own(labels: Tensor, logits: Tensor) -> Tensor:
    """Which answer is each row's own, of the shape of ``logits``."""
    return labels[:, None] == torch.arange(logits.shape[1], device=logits.device)


def _answers(image_embeds: Tensor, text_embeds: Tensor, all_texts: Tensor | None, negatives: Tensor | None) -> Tensor:
    """All that an image can be answered with, (B + M, D).

    Raises:
        ValueError: the two sides differ in number, or there is only one pair.
    """
    if image_embeds.shape != text_embeds.shape:
        raise ValueError(
            f"image_embeds {tuple(image_embeds.shape)} and text_embeds {tuple(text_embeds.shape)} must have one shape: "
            "row i of each makes a pair."
        )
    all_texts = text_embeds if all_texts is None else all_texts
    if len(all_texts) < 2:
        raise ValueError(
            "the contrastive loss needs at least two pairs, since a batch of one has no negatives; "
            "raise --per_device_train_batch_size or --per_device_eval_batch_size."
        )
    return all_texts if negatives is None else torch.cat([all_texts, negatives])


def _cross_entropy(
    queries: Tensor,
    answers: Tensor,
    scale: Tensor,
    labels: Tensor,
    chunk_size: int | None,
    true_of: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    """The mean over the rows of ``scale * queries @ answers.T``, of which ``chunk_size`` are in memory at once.

    What ``true_of`` tells to be right beside the labels is left out.
    """

    def of_rows(rows: Tensor, right: Tensor, answers: Tensor, scale: Tensor, reduction: str) -> Tensor:
        logits = scale * rows @ answers.T
        if true_of is not None:
            logits = logits.masked_fill(true_of(right), -torch.inf)
        return F.cross_entropy(logits, right, reduction=reduction)

    return _in_chunks(of_rows, queries, labels, answers, scale, chunk_size)


def _in_chunks(
    of_rows: Callable[..., Tensor],
    queries: Tensor,
    labels: Tensor,
    answers: Tensor,
    scale: Tensor,
    chunk_size: int | None,
) -> Tensor:
    """The mean of ``of_rows`` over the rows, of which ``chunk_size`` are in memory at once."""
    if chunk_size is None or chunk_size >= len(queries):
        return of_rows(queries, labels, answers, scale, "mean")
    chunks = zip(queries.split(chunk_size), labels.split(chunk_size), strict=True)
    parts = [checkpoint(of_rows, rows, right, answers, scale, "sum", use_reentrant=False) for rows, right in chunks]
    return torch.stack(parts).sum() / len(queries)
