"""Changes that make other words, in several scripts, and changes that make none."""

import unicodedata
from pathlib import Path

import numpy as np

from sdsclip_hf.data.duplicates import caption_key, plain_words
from sdsclip_hf.scoring.candidates import Corpus, mix_candidates

WORDS = [*["a", "an", "the", "red", "dog", "cat", "on", "mat"], "Straße", "café", "ÉTÉ", "किताब", "नदी", "เสือ", "كَتَبَ"]
WORDS += ["東京", "ねこ", "😀", "❤️", "👩\u200d🔬", "C++", "5", ">", "3", "50%", "-2", "1.5", "it's"]
COUNT = [*"😀😡🚗+#%<>=@&*/\\^~_$€°♀♂", "\u0301", "\u0307", "ि", "ी", "่", "้", "َ", "ُ", *"0123456789qzß東"]


def same(words: list[str], rng: np.random.Generator) -> str:
    """Other case, another form of the same letters, other white space, pauses behind words, "an" for "a"."""
    changed = []
    for word in words:
        if rng.random() < 0.3 and len(word.casefold()) == len(word):
            word = word.upper() if rng.random() < 0.5 else word.lower()
        if rng.random() < 0.3:
            word = unicodedata.normalize(str(rng.choice(["NFC", "NFD"])), word)
        if word in ("a", "an") and rng.random() < 0.5:
            word = "an" if word == "a" else "a"
        if rng.random() < 0.2 and word[-1].isalnum():
            word += rng.choice(list(".,;:!?"))
        changed.append(word)
    spaces = rng.choice([" ", "  ", "\t", "\u00a0", "\n"], len(changed))
    return "".join(map("".join, zip(changed, spaces, strict=True)))


def other(words: list[str], rng: np.random.Generator) -> str:
    """One sign, mark, letter or digit more, less or in another's place; or two words exchanged."""
    words, place = list(words), int(rng.integers(len(words)))
    if rng.random() < 0.2:
        words.append(str(rng.choice(COUNT)))
    else:
        at = int(rng.integers(len(words[place]) + 1))
        words[place] = words[place][:at] + str(rng.choice(COUNT)) + words[place][at:]
    return " ".join(words)


def folded(text: str) -> str:
    """Whether a change counts, by letters alone: what is left when only case and form are taken off."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def trial(rng: np.random.Generator, folder: Path) -> str:
    words = rng.choice(WORDS, int(rng.integers(1, 8))).tolist()
    caption, again, different = " ".join(words), same(words, rng), other(words, rng)
    assert plain_words(caption) == plain_words(again), (caption, again)
    assert caption_key(caption) == caption_key(again), (caption, again)
    assert folded(caption) != folded(different)
    assert plain_words(caption) != plain_words(different), (caption, different)
    assert caption_key(caption) != caption_key(different), (caption, different)
    assert mix_candidates(Corpus([caption, again, different], [0, 1, 2]), {"batch": 1})[0] == [different]
    return "told apart"
