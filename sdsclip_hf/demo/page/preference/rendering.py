"""The results as HTML, in gradio's colours; on a page that has none of those, a notebook's, in ones that suit any."""

import base64
import io
from html import escape

from PIL import Image

from .scores import Scores

CAPTIONS = ("A", "B")
THUMBNAIL = 96  # pixels
STYLE = """<style>
.duel { line-height: 1.45; color: var(--text);
  --text: var(--body-text-color, inherit); --muted: var(--body-text-color-subdued, #8b8b96);
  --line: var(--border-color-primary, rgb(128 128 128 / .35)); --card: var(--block-background-fill, transparent);
  --fill: var(--background-fill-secondary, rgb(128 128 128 / .1)); --accent: var(--color-accent, #6366f1);
  --soft: var(--color-accent-soft, rgb(99 102 241 / .15)); --error-line: var(--error-border-color, #dc2626);
  --error-fill: var(--error-background-fill, rgb(220 38 38 / .1)); --error-text: var(--error-text-color, inherit); }
.duel :is(p, h2, h3, ul) { margin: 0; }
.duel h2 { font-size: 1.2em; font-weight: 600; margin: 4px 0 12px; }
.duel h3 { font-size: 1.05em; font-weight: 600; }
.duel .models { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); }
.duel article { padding: 16px; border: 1px solid var(--line); border-radius: 10px;
  background: var(--card); }
.duel .note { font-size: .88em; font-weight: 400; opacity: .78; overflow-wrap: anywhere; }
.duel .name { margin-bottom: 12px; }
.duel .caption { padding: 8px 12px; margin-bottom: 8px; border-left: 4px solid transparent; border-radius: 6px;
  background: var(--fill); }
.duel .caption.preferred { border-left-color: var(--accent); background: var(--soft); }
.duel .line { display: flex; justify-content: space-between; gap: 12px; overflow-wrap: anywhere; }
.duel .number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.duel .bar { height: 8px; margin: 6px 0 4px; border-radius: 4px; background: var(--line); }
.duel .bar div { height: 100%; border-radius: 4px; background: var(--muted); }
.duel .preferred .bar div { background: var(--accent); }
.duel .verdict { font-weight: 600; margin-top: 12px; }
.duel table { width: 100%; margin: 0 !important; padding: 0 !important; border-collapse: separate; border-spacing: 4px;
  table-layout: fixed; }
.duel :is(th, td) { padding: 8px 4px; border-radius: 6px; text-align: center; vertical-align: middle; }
.duel th { font-weight: 400; overflow-wrap: anywhere; }
.duel th[scope=row] { text-align: left; }
.duel tbody td { background: var(--fill); }
.duel td.preferred { background: var(--soft); box-shadow: inset 0 0 0 2px var(--accent);
  font-weight: 600; }
.duel th img { width: 64px; height: 64px; object-fit: contain; margin: 0 auto 4px; border-radius: 6px; }
.duel ul { list-style: none; padding: 0; margin-top: 12px; }
.duel li { display: flex; gap: 8px; padding: 2px 0; }
.duel .error { padding: 14px 16px; border-radius: 10px; border: 1px solid var(--error-line);
  background: var(--error-fill); color: var(--error-text); overflow-wrap: anywhere; }
</style>"""


def show_error(message: str) -> str:
    """What hinders the comparison."""
    return f'{STYLE}<div class="duel"><p class="error" role="alert">{escape(message)}</p></div>'


def show_scores(
    scores: dict[str, Scores], names: dict[str, str], pictures: list[Image.Image], captions: list[str]
) -> str:
    """The models' scores side by side, under a sentence that says what to see.

    Args:
        scores: heading -> the model's scores.
        names: heading -> the model's name.
        pictures: one, or two of which each belongs to the caption of its place.
        captions: two.
    """
    summary = _summary_of_one(scores) if len(pictures) == 1 else _summary_of_two(scores)
    show = _one_picture if len(pictures) == 1 else _two_pictures
    thumbnails = [_thumbnail(picture) for picture in pictures]
    cards = "".join(
        f'<article aria-label="{escape(heading)} model"><h3>{escape(heading)}</h3>'
        f'<p class="note name">{escape(names[heading])}</p>{show(model, captions, thumbnails)}{_notes(model)}</article>'
        for heading, model in scores.items()
    )
    return (
        f'{STYLE}<section class="duel" role="status"><h2>{escape(summary)}</h2>'
        f'<div class="models">{cards}</div></section>'
    )


def _summary_of_one(scores: dict[str, Scores]) -> str:
    choices = {heading: model.caption_of(0) for heading, model in scores.items()}
    if len(set(choices.values())) == 1:
        return f"Both models prefer {_caption(next(iter(choices.values())))}."
    return f"{', '.join(f'{heading} prefers {_caption(choice)}' for heading, choice in choices.items())}."


def _summary_of_two(scores: dict[str, Scores]) -> str:
    right = [heading for heading, model in scores.items() if model.winoground()["group"]]
    with_whom = "both models" if len(right) == len(scores) else f"{right[0]} alone" if right else "neither model"
    return f"All four comparisons are right with {with_whom}."


def _caption(choice: int | None) -> str:
    return "neither caption (an exact tie)" if choice is None else f"caption {CAPTIONS[choice]}"


def _picture(choice: int | None) -> str:
    return "neither picture (an exact tie)" if choice is None else f"picture {choice + 1}"


def _one_picture(model: Scores, captions: list[str], _: list[str]) -> str:
    choice = model.caption_of(0)
    lines = "".join(
        f'<div class="caption{" preferred" if choice == number else ""}">'
        f'<div class="line"><span><b>{CAPTIONS[number]}</b> {escape(caption)}</span>'
        f'<span class="number">{_percent(model.share(number, 0))}</span></div>'
        f'<div class="bar" aria-hidden="true"><div style="width: {100 * model.share(number, 0):.1f}%"></div></div>'
        f'<div class="note number">score {model.logit(number, 0):.2f}</div></div>'
        for number, caption in enumerate(captions)
    )
    return f'{lines}<p class="verdict">Prefers {_caption(choice)}</p>'


def _two_pictures(model: Scores, captions: list[str], thumbnails: list[str]) -> str:
    head = "".join(
        f'<th scope="col"><img src="{source}" alt="">Picture {number}</th>'
        for number, source in enumerate(thumbnails, start=1)
    )
    rows = "".join(
        f'<tr><th scope="row"><b>{CAPTIONS[number]}</b> {escape(caption)}</th>'
        f"{''.join(_cell(model, number, picture) for picture in (0, 1))}</tr>"
        for number, caption in enumerate(captions)
    )
    reasons = {
        "text": f"picture 1 prefers {_caption(model.caption_of(0))}, picture 2 {_caption(model.caption_of(1))}",
        "image": f"caption A prefers {_picture(model.picture_of(0))}, caption B {_picture(model.picture_of(1))}",
        "group": "text and image together",
    }
    verdicts = "".join(
        f'<li><span aria-hidden="true">{"✓" if right else "✗"}</span><div><b>{name.capitalize()}: '
        f"{'right' if right else 'wrong'}</b>"
        f'<div class="note">{reasons[name]}</div></div></li>'
        for name, right in model.winoground().items()
    )
    return (
        f'<table class="scores"><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table><ul>{verdicts}</ul>'
    )


def _cell(model: Scores, caption: int, picture: int) -> str:
    preferred = " preferred" if model.caption_of(picture) == caption else ""
    note = f'<div class="note">{_percent(model.share(caption, picture))}</div>'
    return f'<td class="number{preferred}">{model.logit(caption, picture):.2f}{note}</td>'


def _notes(model: Scores) -> str:
    return "".join(
        f'<p class="note">Caption {CAPTIONS[number]} is longer than this model reads; its end was left out.</p>'
        for number in model.cut
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _thumbnail(picture: Image.Image) -> str:
    """The picture, made small, as a data URI."""
    small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
