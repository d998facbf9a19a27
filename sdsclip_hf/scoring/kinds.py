"""What kind of change makes a wrong caption of a true one: of an attribute, an object, a relation, a count, or another."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sdsclip_hf.scoring.candidates import PUNCTUATION, Tagger

KINDS = ("attribute", "object", "relation", "count", "other")
NUMBERS = {"one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "dozen"}
COLORS = {"red", "green", "blue", "yellow", "purple", "orange", "pink", "brown", "black", "white", "gray", "grey"}
COLORS |= {"silver", "gold", "golden", "tan", "beige", "turquoise", "violet"}
PLACES = {"left", "right", "top", "bottom", "front", "back", "middle", "next", "above", "below", "behind", "beside"}
PLACES |= {"near", "far", "over", "under", "underneath", "beneath", "inside", "outside", "between", "on", "in"}
SMALL = {"a", "an", "the", "is", "are", "was", "were", "be", "there", "of", "to", "and", "with", "some", "its", "their"}
PARTS = {"CD": "c", "JJ": "j", "NN": "n", "VB": "v", "IN": "v", "TO": "v", "RB": "v"}
NUMBER, ADJECTIVE, NOUN, LINK = "cjnv"


class Word(NamedTuple):
    """A word that tells something, and as what it counts: a number, an adjective, a noun, or what links nouns."""

    text: str
    part: str


def kind_of_change(true: str, other: str, tagger: Tagger) -> str:
    """Which of ``KINDS`` turns a true caption into another.

    Of the same words in another order: ``attribute`` where an adjective, or ``count`` where a number, comes to another
    noun; ``relation`` where the things stay what they are and change places, or verbs do; ``other`` where all is mixed.
    Of other words, by those that are new or gone: numbers make ``count``, adjectives ``attribute``, verbs and words of
    place ``relation``, nouns ``object`` (alone, or in a part that is added or left out), several of these ``other``.

    Args:
        true: English.
        other: differs from it.
        tagger: from [`load_tagger`], or another with Penn tags.

    Example:

    ```python
    from sdsclip_hf.scoring.candidates import load_tagger
    from sdsclip_hf.scoring.kinds import kind_of_change

    tagger = load_tagger()
    print(kind_of_change("a red cat on a blue mat", "a blue cat on a red mat", tagger))  # attribute
    print(kind_of_change("a red cat on a blue mat", "a blue mat on a red cat", tagger))  # relation
    print(kind_of_change("two dogs in a car", "three dogs in a car", tagger))  # count
    ```
    """
    first, second = list(_words(tagger(true))), list(_words(tagger(other)))
    if Counter(word.text for word in first) == Counter(word.text for word in second):
        parts = dict(first)  # in an odd order the tagger may take the same word for something else
        return _of_order(first, [Word(word.text, parts[word.text]) for word in second])
    return _of_words(first, second)


def _words(tagged: Sequence[tuple[str, str]]) -> Iterator[Word]:
    before = ""
    for place, (word, tag) in enumerate(tagged):
        text = word.strip(PUNCTUATION).lower()
        following = tagged[place + 1][1][:2] if place + 1 < len(tagged) else ""
        if text and text not in SMALL:
            yield Word(text, _part(text, tag, before, following))
        before = tag[:2]


def _part(text: str, tag: str, before: str, following: str) -> str:
    if text in NUMBERS or text.isdecimal():
        return NUMBER
    if text in PLACES:
        return LINK
    if text in COLORS:
        return ADJECTIVE
    if before in ("DT", "PR", "JJ") and tag in ("VB", "VBP"):
        return NOUN  # "a green cross": what stands there is no verb
    if before in ("DT", "PR") and tag in ("VBN", "VBG") and following in ("NN", "JJ"):
        return ADJECTIVE  # "a parked car"
    return PARTS.get(tag[:2], LINK)


def _of_order(first: Sequence[Word], second: Sequence[Word]) -> str:
    moved = {part for part in PARTS.values() if _of_part(first, part) != _of_part(second, part)}
    if NOUN not in moved:
        kinds = {frozenset(NUMBER): "count", frozenset(ADJECTIVE): "attribute", frozenset(LINK): "relation"}
        return kinds.get(frozenset(moved), "other")
    if LINK in moved:
        return "other"
    if _things(first) == _things(second):
        return "relation"
    first, second = ([word for word in words if word.part != NUMBER] for words in (first, second))
    return "count" if _things(first) == _things(second) else "attribute"


def _of_part(words: Sequence[Word], part: str) -> list[str]:
    return [word.text for word in words if word.part == part]


def _things(words: Sequence[Word]) -> Counter:
    """The nouns with the numbers and adjectives before them."""
    parts = "".join(word.part for word in words)
    phrases = re.finditer(f"{NUMBER}?{ADJECTIVE}*{NOUN}+", parts)
    return Counter(tuple(word.text for word in words[slice(*found.span())]) for found in phrases)


def _of_words(first: Sequence[Word], second: Sequence[Word]) -> str:
    texts = [Counter(word.text for word in words) for words in (first, second)]
    gone, new = texts[0] - texts[1], texts[1] - texts[0]
    parts = {word.part for word in first if word.text in gone} | {word.part for word in second if word.text in new}
    nouns = [{_singular(word.text) for word in words if word.part == NOUN} for words in (first, second)]
    if NUMBER in parts and nouns[0] == nouns[1]:
        parts.discard(NOUN)  # "one cat", "two cats"
    if NOUN in parts and (parts == {NOUN} or not gone or not new):
        return "object"
    kinds = {NUMBER: "count", ADJECTIVE: "attribute", LINK: "relation"}
    return kinds.get("".join(parts), "other")


def _singular(noun: str) -> str:
    return re.sub(r"(?<=s|x|h)es$|s$", "", noun)
