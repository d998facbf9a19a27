"""The frozen text tower, reading prompts some of whose token embeddings are learned vectors."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import CLIPModel, PreTrainedTokenizerBase

from sdsclip_hf.prompts.prompt_texts import PromptTexts, tokens
from sdsclip_hf.students.kinds import caption_reader, text_features


class SplicedText:
    """CLIP's text features of prompts, in float32 and of unit length.

    The tower runs as it is, causal mask and end of text its own: vectors are put in behind its embedding of tokens. Prompts
    are as long as the longest of them, not 77, and go through it in chunks; of several chunks each is computed again in the
    backward pass, so that the memory for activations is bounded by one.

    Args:
        clip: frozen.
        tokenizer: the one that goes with it.
        chunk_size: prompts in a chunk.
    """

    def __init__(self, clip: CLIPModel, tokenizer: PreTrainedTokenizerBase, chunk_size: int):
        self.clip, self.tokenizer, self.chunk_size = clip, tokenizer, chunk_size
        self.embedding = clip.text_model.get_input_embeddings()
        self.reader = caption_reader(clip, tokenizer)
        self._fixed: dict[str, Tensor] = {}

    def __call__(self, contexts: Tensor, texts: PromptTexts) -> Tensor:
        """The features of each class's prompt, one for all images or one for each.

        Args:
            contexts: the learned vectors, (B or 1, C or 1, M, d): of each image or all, of each class or all.
            texts: of C classes, with places for M vectors.

        Returns:
            (B or 1, C, D)
        """
        images, classes = len(contexts), len(texts.input_ids)
        parts = torch.arange(images * classes, device=contexts.device).split(self.chunk_size)
        again = len(parts) > 1 and torch.is_grad_enabled()
        found = [
            checkpoint(self._encode, part, contexts, texts, use_reentrant=False)
            if again
            else self._encode(part, contexts, texts)
            for part in parts
        ]
        return torch.cat(found).view(images, classes, -1)

    def _encode(self, numbers: Tensor, contexts: Tensor, texts: PromptTexts) -> Tensor:
        """The features (n, D) of the prompts of these numbers, image by image."""
        classes = len(texts.input_ids)
        rows = numbers % classes
        own = contexts[numbers // classes, rows % contexts.shape[1]]  # (n, M, d)
        with self._put_in(own, texts.slots[rows]):
            return F.normalize(text_features(self.clip, texts.input_ids[rows]).float(), dim=-1)

    @contextmanager
    def _put_in(self, vectors: Tensor, slots: Tensor) -> Iterator[None]:
        """Let the embedding of tokens have ``vectors`` (n, M, d) in the places ``slots`` (n, M)."""

        def put(_module, _inputs, embeds: Tensor) -> Tensor:
            return embeds.scatter(1, slots[:, :, None].expand_as(vectors), vectors.to(embeds.dtype))

        handle = self.embedding.register_forward_hook(put)
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def of_words(self, texts: Sequence[str]) -> Tensor:
        """The features (N, D) of N texts in plain words, each computed once."""
        new = [text for text in dict.fromkeys(texts) if text not in self._fixed]
        device = self.embedding.weight.device
        with torch.autocast(device.type, enabled=False):
            for start in range(0, len(new), self.chunk_size):
                part = new[start : start + self.chunk_size]
                read = {name: value.to(device) for name, value in self.reader(part).items()}
                self._fixed |= zip(part, F.normalize(text_features(self.clip, **read).float(), dim=-1), strict=True)
        return torch.stack([self._fixed[text] for text in texts]).to(device)

    @torch.no_grad()
    def embed_words(self, text: str) -> Tensor:
        """The token embeddings of a text, (tokens, d), in float32.

        Raises:
            ValueError: the text has no token.
        """
        ids = tokens(self.tokenizer, text)
        if not ids:
            raise ValueError(f"{text!r} has no token; give words.")
        return self.embedding.weight[ids].float()
