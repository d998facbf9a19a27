"""Words of the items that gain and lose the most."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from sdsclip_hf.evaluation.significance import difference_interval

MOST_WORDS = 10  # at each end
FEWEST_ITEMS = 5  # that have a word
PULL = 10  # average items that are added to each word's, so that rare ones do not stand first by chance


def words_of(texts: Iterable[str]) -> set[str]:
    """The words of some texts, in small letters."""
    return set(re.findall(r"\w+(?:['’-]\w+)*", " ".join(texts).lower()))


def gain_and_lose(texts: Sequence[Iterable[str]], first: np.ndarray, second: np.ndarray) -> dict[str, list[dict]]:
    """The words whose items the second model has right more often than the first, and less often.

    Args:
        texts: of N items, each its captions.
        first, second: (N,) bool, which items each model has right.

    Returns:
        ``gain`` and ``lose``, the farthest first: rows of ``word``, ``n`` (items), ``won``, ``lost``, ``value`` (the
        difference in accuracy) and its ``interval``.
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    for number, text in enumerate(texts):
        for word in words_of(text):
            rows_of[word].append(number)
    change = second.astype(int) - first.astype(int)
    pull = PULL * change.mean() if len(change) else 0.0
    rows = {word: np.array(rows) for word, rows in rows_of.items() if FEWEST_ITEMS <= len(rows) < len(texts)}
    value = {word: (change[of].sum() + pull) / (len(of) + PULL) for word, of in rows.items()}
    order = sorted(sorted(rows), key=lambda word: -value[word])
    count = min(MOST_WORDS, len(order) // 2)
    ends = {"gain": order[:count], "lose": order[len(order) - count :][::-1]}
    return {end: [_row(word, first[rows[word]], second[rows[word]]) for word in words] for end, words in ends.items()}


def _row(word: str, first: np.ndarray, second: np.ndarray) -> dict:
    return {
        "word": word,
        "n": len(first),
        "won": int((second & ~first).sum()),
        "lost": int((first & ~second).sum()),
        "value": float(second.mean() - first.mean()),
        "interval": difference_interval([(first, second)]),
    }
