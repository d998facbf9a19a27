"""BLIP's image-text matching head as a ranker (Li et al., arXiv 2201.12086, section 3.2)."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdsclip_hf.common.tokenizers import max_length
from sdsclip_hf.rankers.pair_ranker import PairRanker
from sdsclip_hf.students.kinds import inference


class MatchingHeadRanker(PairRanker):
    """log(P(match) / P(no match)) by a ``BlipForImageTextRetrieval``: the text encoder reads the caption with the picture.

    A picture is encoded once, whatever the number of its captions.

    Args:
        model, processor, name, revision, batch_size: see [`PairRanker`].

    Example:

    ```python
    from transformers import AutoImageProcessor, AutoTokenizer, BlipConfig, BlipForImageTextRetrieval, BlipProcessor

    from sdsclip_hf.rankers.matching_head import MatchingHeadRanker
    from sdsclip_hf.shapes import load_shapes, model_path

    # A small model of random weights; load_ranker("Salesforce/blip-itm-base-coco") makes a ranker of a trained one.
    words = AutoTokenizer.from_pretrained(model_path("student"))
    pictures = AutoImageProcessor.from_pretrained(model_path("student"))
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = size | {"vocab_size": len(words), "bos_token_id": words.bos_token_id, "encoder_hidden_size": 32}
    config = BlipConfig(text_config=text, vision_config=size | {"image_size": 32, "patch_size": 8})
    processor = BlipProcessor(pictures, words)

    ranker = MatchingHeadRanker(BlipForImageTextRetrieval(config), processor, "a random BLIP")
    image = load_shapes("test", per_scene=1)[0]["image"]
    (scores,) = ranker.scores([image], [["a red circle", "a blue square"]])
    print(scores.shape)  # (2,)
    ```
    """

    kind = "itm"

    def score_pairs(self, images: Sequence[Image.Image], captions: Sequence[str]) -> np.ndarray:
        places: dict[int, int] = {}
        of_pair = [places.setdefault(id(image), len(places)) for image in images]
        distinct = list({id(image): image for image in images}.values())
        ids, size = self._tokenize(captions), self.batch_size
        order = sorted(range(len(ids)), key=lambda pair: len(ids[pair]))  # so that little is padding
        found = np.empty(len(ids), np.float32)
        with inference(self.model):
            states = torch.cat(
                [self._encode(distinct[start : start + size]) for start in range(0, len(distinct), size)]
            )
            for start in range(0, len(order), size):
                pairs = order[start : start + size]
                found[pairs] = self._log_odds(states[[of_pair[pair] for pair in pairs]], [ids[pair] for pair in pairs])
        return found

    def _tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        tokenizer = self.processor.tokenizer
        longest = max_length(tokenizer, self.model.config.text_config)
        return tokenizer(list(captions), truncation=True, max_length=longest).input_ids

    def _encode(self, images: list[Image.Image]) -> Tensor:
        """What the vision tower makes of B pictures, (B, patches, D)."""
        pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        return self.model.vision_model(pixel_values=pixels.to(self.model.device, self.model.dtype)).last_hidden_state

    def _log_odds(self, states: Tensor, ids: list[list[int]]) -> np.ndarray:
        """Of B captions, each with its picture's states, (B,)."""
        padded = self.processor.tokenizer.pad({"input_ids": ids}, padding_side="right", return_tensors="pt")
        read = self.model.text_encoder(
            input_ids=padded["input_ids"].to(states.device),
            attention_mask=padded["attention_mask"].to(states.device),
            encoder_hidden_states=states,
            encoder_attention_mask=torch.ones(states.shape[:2], dtype=torch.long, device=states.device),
        )
        no_match, match = self.model.itm_head(read.last_hidden_state[:, 0]).float().unbind(1)
        return (match - no_match).cpu().numpy()
