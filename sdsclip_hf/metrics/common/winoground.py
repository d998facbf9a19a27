"""Winoground's rules (Thrush et al. 2022, section 3.2). Each metric of pairs has this same file."""

from .scoring import by_group, read_labels, read_numbers, refuse_nan


def read_scores(scores):
    """``{"scores": (N, 2, 2)}`` in float64, captions in rows and images in columns.

    Raises:
        ValueError: no items, a ragged list, or another shape.
    """
    array = read_numbers("scores", scores, "N items of 2 captions x 2 images")
    if array.shape[1:] != (2, 2):
        raise ValueError(f"scores has shape {array.shape}; it must be (items, 2 captions, 2 images).")
    return {"scores": array}


def right_items(scores):
    """Which items are right, as ``{"text": bool (N,), "image": bool (N,), "group": bool (N,)}``; a tie is wrong.

    Args:
        scores: (N, 2, 2), captions in rows and images in columns; higher means a better match.
    """
    text = (scores[:, 0, 0] > scores[:, 1, 0]) & (scores[:, 1, 1] > scores[:, 0, 1])
    image = (scores[:, 0, 0] > scores[:, 0, 1]) & (scores[:, 1, 1] > scores[:, 1, 0])
    return {"text": text, "image": image, "group": text & image}


def tied_items(scores, part="group"):
    """Which items have an exact tie in a comparison that the score makes, as bool (N,).

    Args:
        scores: (N, 2, 2), captions in rows and images in columns.
        part: "text" compares the captions, "image" the images, "group" both.
    """
    text = (scores[:, 0, :] == scores[:, 1, :]).any(axis=1)
    image = (scores[:, :, 0] == scores[:, :, 1]).any(axis=1)
    return {"text": text, "image": image, "group": text | image}[part]


def summarize(scores, tags, parts, bootstrap, name="winoground_{}_score"):
    """The scores of all items, and under "tags" those of each tag.

    Args:
        scores: (N, 2, 2), captions in rows and images in columns.
        tags: N tags, or None.
        parts: of "group", "text" and "image"; the ties are those of the first.
        bootstrap: the [`Bootstrap`] of the intervals.
        name: of a part's score.

    Raises:
        ValueError: what ``read_scores`` refuses, NaN, or tags that are no N texts.
    """
    scores = read_scores(scores)["scores"]
    refuse_nan("scores", scores)
    result = _summary(scores, parts, bootstrap, name)
    if tags is not None:
        groups = by_group(scores, read_labels("tags", tags, len(scores)))
        result["tags"] = {tag: _summary(rows, parts, bootstrap, name) for tag, rows in groups.items()}
    return result


def _summary(scores, parts, bootstrap, name):
    right = {name.format(part): right_items(scores)[part] for part in parts}
    counts = {"n": len(scores), "ties": int(tied_items(scores, parts[0]).sum())}
    accuracies = {name: float(items.mean()) for name, items in right.items()}
    return accuracies | counts | bootstrap.intervals({name: [items] for name, items in right.items()})
