# /// script
# requires-python = ">=3.10"
# dependencies = ["sdsclip_hf"]  # or from git: ["sdsclip_hf @ git+https://github.com/OWNER/sdsclip_hf"]
# ///
"""Time and memory of CoCoOp and IntCoOp: our learners against the way of the published code.

That encodes the prompts of each image by itself, padded to 77 tokens. Both have the same randomly initialised CLIP of
ViT-B/32's size, the same prompts and the same images, and take steps (loss and gradient) turn about; what counts is the
median of the ratios of neighbours. And the most memory that a step of ours takes, by the number of classes.
"""

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable, Sequence

import psutil
import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel, CLIPProcessor

from sdsclip_hf import shapes
from sdsclip_hf.prompts.learner import PromptLearner
from sdsclip_hf.prompts.losses import class_logits
from sdsclip_hf.prompts.methods import make_learner
from sdsclip_hf.prompts.prompt_texts import PromptTexts
from sdsclip_hf.prompts.settings import PromptSettings

FULL_LENGTH = 77
WORDS = ("red", "green", "blue", "left", "above", "circle", "square", "star", "cross", "triangle")
MIB = 2**20


def make_clip(small: bool = False) -> CLIPModel:
    """A CLIP of ViT-B/32's size for the bundled tokenizer; small: two narrow layers, to try this script."""
    ends = {"bos_token_id": 869, "eos_token_id": 870}
    narrow = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    text, vision = (ends | narrow, narrow | {"image_size": 32, "patch_size": 8}) if small else (ends, {})
    torch.manual_seed(0)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).eval()


def class_names(count: int) -> list[str]:
    """Names of two words, each another."""
    return [f"{WORDS[number % 10]} {WORDS[number // 10 % 10]} {number // 100}" for number in range(count)]


def padded(texts: PromptTexts) -> PromptTexts:
    """The same prompts at full length."""
    begin = texts.input_ids[0, 0]
    return PromptTexts(
        F.pad(texts.input_ids, (0, FULL_LENGTH - texts.input_ids.shape[1]), value=int(begin)), texts.slots
    )


def published_step(learner: PromptLearner, batch: dict) -> float:
    """Leave the gradient as the published code finds it, and give the loss.

    Each image's prompts by themselves, all at once, at full length; and back before the next image comes, so that the
    activations of one image are held.
    """
    images = len(batch["labels"])
    full = padded(learner._texts)
    chunk, learner.text.chunk_size = learner.text.chunk_size, len(learner.class_names)
    total = 0.0
    for number in range(images):
        own = {name: column[number : number + 1] for name, column in batch.items()}
        seen = learner.look(own["pixel_values"])
        contexts = learner.contexts(seen)
        embeds = learner.text(contexts, full)
        loss = F.cross_entropy(class_logits(seen.embeds, embeds, learner.clip.logit_scale.exp()), own["labels"])
        for weight, term in learner.extra_terms(embeds, contexts, own["labels"], own.get("attributes")).values():
            loss = loss + weight * term
        (loss / images).backward()
        total += loss.item() / images
    learner.text.chunk_size = chunk
    return total


def our_step(learner: PromptLearner, batch: dict) -> float:
    """Leave the gradient as the learner finds it, and give the loss."""
    loss = learner(**batch).loss
    loss.backward()
    return loss.item()


def timed(step: Callable, learner: PromptLearner, batch: dict) -> tuple[float, float]:
    """Seconds of a loss with its gradient, and the loss."""
    learner.zero_grad()
    started = time.perf_counter()
    loss = step(learner, batch)
    return time.perf_counter() - started, loss


class PeakMemory:
    """The most memory that this process has held inside the context, beyond what it held before, in MiB."""

    def __enter__(self) -> "PeakMemory":
        self._process, self._over = psutil.Process(), threading.Event()
        self._before = self._most = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self._most = max(self._most, self._process.memory_info().rss)

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()
        self.mib = (self._most - self._before) / MIB


def make_case(method: str, classes: int, batch_size: int, chunk: int, clip: CLIPModel) -> tuple[PromptLearner, dict]:
    """A learner and a batch for it."""
    tokenizer = CLIPProcessor.from_pretrained(shapes.model_path("student")).tokenizer
    tokenizer.model_max_length = FULL_LENGTH
    torch.manual_seed(1)
    settings = PromptSettings(method, prompt_chunk_size=chunk)
    learner = make_learner(clip, tokenizer, class_names(classes), settings).train()
    size = clip.config.vision_config.image_size
    batch = {"pixel_values": torch.randn(batch_size, 3, size, size), "labels": torch.arange(batch_size) % classes}
    return learner, batch | ({"attributes": ["red"] * batch_size} if learner.needs_attributes else {})


def compare(method: str, classes: int, args: argparse.Namespace, clip: CLIPModel) -> dict:
    """Pairs of steps of both ways, turn about."""
    learner, batch = make_case(method, classes, args.batch_size, args.chunk_size, clip)
    timed(our_step, learner, batch)  # what is computed once, such as L_reg's hand-written prompts
    seconds: dict[str, list[float]] = {"ours": [], "published": []}
    losses = {}
    for _ in range(args.pairs):
        for name, step in (("ours", our_step), ("published", published_step)):
            spent, losses[name] = timed(step, learner, batch)
            seconds[name].append(spent)
    ratios = [slow / fast for slow, fast in zip(seconds["published"], seconds["ours"], strict=True)]
    return {
        "method": method,
        "classes": classes,
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "times_faster": statistics.median(ratios),
        "relative_difference_of_loss": abs(losses["ours"] / losses["published"] - 1),
    }


def memory(classes: int, args: argparse.Namespace, clip: CLIPModel) -> float:
    """MiB of a step of CoCoOp with one image and so many prompts."""
    learner, batch = make_case("cocoop", classes, 1, args.chunk_size, clip)
    with PeakMemory() as peak:
        timed(our_step, learner, batch)
    return peak.mib


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--chunk_size", type=int, default=256, help="as --prompt_chunk_size")
    parser.add_argument("--pairs", type=int, default=3, help="of steps that are timed side by side; 0: memory alone")
    parser.add_argument("--memory_classes", type=int, nargs="*", default=[256, 512, 1000])
    parser.add_argument("--small", action="store_true", help="with a small CLIP, to try the script")
    args = parser.parse_args(argv)
    clip = make_clip(args.small)
    for count in args.memory_classes:
        print(json.dumps({"classes": count, "mib": round(memory(count, args, clip), 1)}), flush=True)
    for method in ("cocoop", "intcoop") if args.pairs else ():
        print(json.dumps(compare(method, args.classes, args, clip)), flush=True)


if __name__ == "__main__":
    main()
