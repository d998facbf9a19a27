"""From what was put into the page to what it shows."""

from PIL import Image

from .model import ModelError, load
from .rendering import show_error, show_scores


def compare(
    first: Image.Image | None,
    second: Image.Image | None,
    caption_a: str | None,
    caption_b: str | None,
    models: dict[str, str],
    names: dict[str, str] | None = None,
) -> str:
    """What each model makes of two captions and one or two pictures, as HTML; or what hinders it, in plain words.

    Args:
        first: picture 1, which in Winoground's terms belongs to caption A.
        second: picture 2, which belongs to caption B; None if there is one picture.
        caption_a: caption A.
        caption_b: caption B.
        models: heading -> the model's folder or Hub id, in the order in which they are shown.
        names: heading -> what the model is called on the page; default: as in ``models``.
    """
    captions = [(caption or "").strip() for caption in (caption_a, caption_b)]
    pictures = [picture for picture in (first, second) if picture is not None]
    missing = _missing(pictures, captions)
    if missing:
        return show_error(missing)
    try:
        scores = {heading: load(name).score(pictures, captions) for heading, name in models.items()}
    except ModelError as error:
        return show_error(str(error))
    return show_scores(scores, names or models, pictures, captions)


def _missing(pictures: list[Image.Image], captions: list[str]) -> str:
    if not pictures:
        return "There is no picture yet. Drop one above, or click to choose a file."
    if not all(captions):
        empty = [name for name, caption in zip("AB", captions, strict=True) if not caption]
        return f"Caption {' and caption '.join(empty)} {'are' if len(empty) > 1 else 'is'} empty. Write both captions."
    if captions[0] == captions[1]:
        return "The two captions are the same. Write two that differ, if only in the order of their words."
    return ""
