"""Look-alike captions for an image: words swapped by rule, the nearest other captions of a corpus, or any others."""

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from torch import Tensor

from sdsclip_hf.data.duplicates import plain_words
from sdsclip_hf.metrics.aro_relation.symmetric_relations import SYMMETRIC

Tagger = Callable[[str], list[tuple[str, str]]]
SOURCES = ("column", "swap", "nearest", "batch")
DEFAULT_COUNT = 3
SYMMETRIC_LINKS = {*SYMMETRIC, "and", "or", "both", "along with", "together with", "opposite", "alongside"}
# What "of" follows although the caption tells of no such thing: "a picture of a cat", "a cat left of a dog".
NO_THINGS = {"picture", "photo", "photograph", "image", "drawing", "painting", "sketch", "view", "shot", "close-up"}
NO_THINGS |= {"left", "right", "top", "bottom", "front", "back", "side", "middle", "inside", "outside", "kind", "sort"}
PUNCTUATION = ".,;:!?\"'`()[]“”‘’"  # what swapped captions leave out; signs and emojis stay
NEAREST_BLOCK, NEAREST_MARGIN = 256, 64


def load_tagger() -> Tagger:
    """TextBlob's part-of-speech tagger, whose lexicon comes with the package: a caption to (word, Penn tag) pairs.

    Raises:
        ImportError: it is not installed; the message says how.
    """
    try:
        from textblob.en.taggers import PatternTagger
    except ImportError as error:
        raise ImportError(
            'swapped candidates, and kinds of change, need a part-of-speech tagger: pip install "sdsclip_hf[candidates]".'
        ) from error
    return PatternTagger().tag


class Phrase(NamedTuple):
    """A noun phrase, as places among a caption's words: ``start`` to ``end``, the last noun, and its adjectives."""

    start: int
    end: int
    noun: int
    adjectives: tuple[int, ...]


def swapped_captions(caption: str, tagger: Tagger) -> list[str]:
    """What a caption becomes when two of its words or phrases change places: all of the same words.

    Adjectives are exchanged between noun phrases ("a red cat on a blue mat" to "a blue cat on a red mat"), nouns between
    noun phrases ("a red mat on a blue cat"), and whole phrases where what stands between them has a direction ("a blue
    mat on a red cat"; but not across "and" or "next to").

    Args:
        caption: English.
        tagger: from [`load_tagger`], or another with Penn tags.

    Returns:
        Captions that differ from each other and from ``caption``; none where nothing can be exchanged.
    """
    tagged = [(word, tag) for word, tag in tagger(caption) if word.strip(PUNCTUATION)]
    words = [word.lower() for word, _ in tagged]
    phrases = list(_phrases(tagged))
    found = []
    for first, second in combinations(phrases, 2):
        pairs = [(a, b) for a in first.adjectives for b in second.adjectives]
        pairs.append((first.noun, second.noun))
        found += [_exchange(words, (a, a + 1), (b, b + 1)) for a, b in pairs]
        if _has_direction(words, tagged, first, second):
            found.append(_exchange(words, (first.start, first.end), (second.start, second.end)))
    same = plain_words(" ".join(words))
    return [text for text in dict.fromkeys(found) if plain_words(text) != same]


def _phrases(tagged: Sequence[tuple[str, str]]) -> Iterator[Phrase]:
    """Runs of an optional determiner or number, adjectives, and at least one noun, except those that name no thing."""
    text, following = "", [word.lower() for word, _ in tagged[1:]] + [""]
    for (word, tag), after in zip(tagged, following, strict=False):
        kind = "d" if tag in ("DT", "CD", "PRP$") else "j" if tag[:2] == "JJ" else "n" if tag[:2] == "NN" else "."
        if tag in ("VB", "VBP") and text[-1:] in ("d", "j"):
            kind = "n"  # "a green cross": what stands there is no verb
        text += "." if after == "of" and word.lower() in NO_THINGS else kind
    for match in re.finditer(r"d?j*n+", text):
        adjectives = tuple(place for place in range(*match.span()) if text[place] == "j")
        yield Phrase(match.start(), match.end(), match.end() - 1, adjectives)


def _has_direction(words: Sequence[str], tagged: Sequence[tuple[str, str]], first: Phrase, second: Phrase) -> bool:
    """Whether exchanging the phrases changes the meaning: a verb or a preposition between them that is not symmetric."""
    link = words[first.end : second.start]
    tags = [tag for _, tag in tagged[first.end : second.start]]
    bare = [word for word in link if word not in ("is", "are", "was", "were", "the")]
    return any(tag[:2] in ("IN", "TO", "VB", "RB") for tag in tags) and " ".join(bare) not in SYMMETRIC_LINKS


def _exchange(words: Sequence[str], first: tuple[int, int], second: tuple[int, int]) -> str:
    (a, b), (c, d) = first, second
    swapped = [*words[:a], *words[c:d], *words[b:c], *words[a:b], *words[d:]]
    return " ".join(_agree(swapped))


def _agree(words: Sequence[str]) -> Iterator[str]:
    """ "a" before a consonant and "an" before a vowel."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        yield ("an" if following[:1] in tuple("aeiou") else "a") if word in ("a", "an") else word


class Corpus:
    """Captions of images, to take other images' captions from.

    A caption of the same words as one that is true of the image is never taken, nor the same words twice.

    Args:
        captions: N captions.
        owners: N numbers or names of the images that they belong to; all captions of an image are true of it.
        also_true: further captions that are true of an image, but are not to be taken, by its number or name.
    """

    def __init__(
        self,
        captions: Sequence[str],
        owners: Sequence[Hashable],
        also_true: Mapping[Hashable, Iterable[str]] | None = None,
    ):
        self.captions, self.owners = list(captions), list(owners)
        self._plain = [plain_words(caption) for caption in captions]
        self._true: dict[Hashable, set[str]] = {}
        for text, owner in zip(self._plain, self.owners, strict=True):
            self._true.setdefault(owner, set()).add(text)
        for owner, texts in (also_true or {}).items():
            self._true.setdefault(owner, set()).update(map(plain_words, texts))

    def true_words(self, number: int) -> set[str]:
        """The true captions of caption ``number``'s image, as [`plain_words`] has them."""
        return set(self._true[self.owners[number]])

    def nearest(self, embeds: Tensor, count: int) -> list[list[str]]:
        """For each caption the ``count`` most similar ones of other images, the most similar first.

        Args:
            embeds: unit-length embeddings of the captions, (N, D).
            count: how many.

        Raises:
            ValueError: a caption has fewer than ``count`` others.
        """
        total, found = len(self.captions), []
        for start in range(0, total, NEAREST_BLOCK):
            similar = embeds[start : start + NEAREST_BLOCK] @ embeds.T  # (block, N)
            order = similar.topk(min(total, count + NEAREST_MARGIN), dim=1).indices.tolist()
            for number, row in enumerate(order, start):
                chosen = self._first_others(number, row, count)
                if len(chosen) < count:  # the nearest are mostly the image's own, or the same words
                    row = similar[number - start].argsort(descending=True).tolist()
                    chosen = self._first_others(number, row, count)
                found.append(self._enough(number, chosen, count))
        return found

    def random(self, count: int, seed: int = 0) -> list[list[str]]:
        """For each caption ``count`` ones of other images drawn at random, such as a batch has.

        Raises:
            ValueError: a caption has fewer than ``count`` others.
        """
        rng, total, found = np.random.default_rng(seed), len(self.captions), []
        for number in range(total):
            chosen = self._first_others(number, rng.integers(total, size=4 * count + 16).tolist(), count)
            if len(chosen) < count:
                chosen = self._first_others(number, rng.permutation(total).tolist(), count)
            found.append(self._enough(number, chosen, count))
        return found

    def _first_others(self, number: int, order: Sequence[int], count: int) -> list[int]:
        seen, chosen = self.true_words(number), []
        for place in order:
            if len(chosen) == count:
                break
            if self._plain[place] not in seen:
                seen.add(self._plain[place])
                chosen.append(place)
        return chosen

    def _enough(self, number: int, chosen: Sequence[int], count: int) -> list[str]:
        if len(chosen) < count:
            raise ValueError(
                f"caption {self.captions[number]!r} has only {len(chosen)} others that are not true of its image, not "
                f"{count}; ask for fewer candidates or give a larger corpus."
            )
        return [self.captions[place] for place in chosen]


def parse_sources(texts: Sequence[str]) -> dict[str, int]:
    """How many candidates at most of which source, from ``SOURCE[:COUNT]`` each, e.g. ``swap:2``.

    Raises:
        ValueError: an unknown source, one named twice, or a count that is no number above 0.
    """
    sources: dict[str, int] = {}
    for text in texts:
        source, colon, count = text.partition(":")
        if source not in SOURCES:
            raise ValueError(f"unknown source of candidates {text!r}; choose from {', '.join(SOURCES)}.")
        if source in sources:
            raise ValueError(f"the source of candidates {source!r} is named twice; give it once, with its COUNT.")
        if colon and not (count.isdecimal() and int(count) > 0):
            raise ValueError(f"{text!r}: the count of candidates is {count!r}; give a whole number above 0.")
        sources[source] = int(count) if colon else DEFAULT_COUNT
    if not sources:
        raise ValueError(f"no source of candidates is given; choose from {', '.join(SOURCES)}.")
    return sources


def mix_candidates(
    corpus: Corpus,
    sources: Mapping[str, int],
    *,
    given: Sequence[Sequence[str]] | None = None,
    tagger: Tagger | None = None,
    embeds: Tensor | None = None,
    seed: int = 0,
) -> list[list[str]]:
    """Candidates of several sources for each caption of a corpus, none of the same words as another or as a true caption.

    Args:
        corpus: N captions.
        sources: how many at most of which source, see [`parse_sources`]. Of ``column`` the first so many are taken, of
            ``swap`` any, of ``nearest`` the nearest, and ``batch`` draws other captions at random.
        given: N lists of captions, for source ``column``.
        tagger: for source ``swap``, see [`swapped_captions`].
        embeds: unit-length embeddings of the captions, (N, D), for source ``nearest``.
        seed: of what is drawn.

    Raises:
        ValueError: the corpus is too small for ``nearest`` or ``batch``.
    """
    offers = {
        "column": lambda count: given,
        "swap": lambda count: [_swaps(text, tagger, [seed, number, 4]) for number, text in enumerate(corpus.captions)],
        "nearest": lambda count: corpus.nearest(embeds, count),
        "batch": lambda count: corpus.random(count, seed),
    }
    found: list[list[str]] = [[] for _ in corpus.captions]
    taken = [corpus.true_words(number) for number in range(len(corpus.captions))]
    for source, count in sources.items():
        for chosen, words, texts in zip(found, taken, offers[source](count), strict=True):
            chosen += _take_new(texts, count, words)
    return found


def _take_new(texts: Sequence[str], count: int, taken: set[str]) -> list[str]:
    """The first ``count`` captions of other words than those ``taken``, to which theirs are added."""
    chosen = []
    for text in texts:
        if len(chosen) == count:
            break
        if plain_words(text) not in taken:
            taken.add(plain_words(text))
            chosen.append(text)
    return chosen


def _swaps(caption: str, tagger: Tagger, seed: Sequence[int]) -> list[str]:
    """The swaps of a caption in random order."""
    swaps = swapped_captions(caption, tagger)
    return [swaps[place] for place in np.random.default_rng(seed).permutation(len(swaps))]
