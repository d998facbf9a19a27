"""The contrastive loss written plainly, by what is known to be true of a picture."""

import torch


def masked_by_loops(images, texts, negatives, scale, pictures, captions, others):
    """The contrastive loss without what any row tells to be true: a sum of logs, one row and one answer at a time."""
    true = {(picture, text) for picture, words in zip(pictures, captions, strict=True) for text in words}
    drawn = [words[0] for words in captions]
    total = 0.0
    for i in range(len(images)):
        of_image = [scale * (images[i] @ texts[i])]
        of_image += [
            scale * (images[i] @ embed)
            for j, (embed, text) in enumerate(zip([*texts, *negatives], drawn + others, strict=True))
            if j != i and (pictures[i], text) not in true
        ]
        of_text = [scale * (texts[i] @ images[i])]
        of_text += [
            scale * (texts[i] @ images[j]) for j in range(len(images)) if j != i and (pictures[j], drawn[i]) not in true
        ]
        for row in (of_image, of_text):
            total = total + torch.stack(row).logsumexp(0) - row[0]
    return total / (2 * len(images))


def sigmoid_by_loops(images, texts, negatives, scale, bias, pictures, captions, others):
    """SigLIP's loss without what any row tells to be true: a sum of logs, one picture and one answer at a time."""
    true = {(picture, text) for picture, words in zip(pictures, captions, strict=True) for text in words}
    drawn = [words[0] for words in captions]
    total = 0.0
    for i in range(len(images)):
        for j, (embed, text) in enumerate(zip([*texts, *negatives], drawn + others, strict=True)):
            logit = scale * (images[i] @ embed) + bias
            if i == j or (pictures[i], text) not in true:
                total = total + torch.log1p(torch.exp(-logit if i == j else logit))
    return total / len(images)
