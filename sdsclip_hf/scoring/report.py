"""What a finished scoring tells in the terminal."""

import sys
from pathlib import Path

from sdsclip_hf.data.images import tell_bad_images
from sdsclip_hf.data.scores import LITTLE
from sdsclip_hf.scoring.folder import SURE


def print_report(scores: dict, folder: Path) -> None:
    """How many items there are, what was skipped, what stopping early saved, and whether the order carries a signal.

    Args:
        scores: what ``scores.json`` holds.
        folder: where they lie.
    """
    print(
        f"{scores['items']:,} items, {scores['ranked_share']:.1%} of them with two or more candidates, are in {folder}."
    )
    if (skipped := tell_bad_images(folder)) is not None:
        print(skipped)
    if tied := scores.get("tied_items"):
        print(f"{tied:,} items are not ranked: the ranker scores all of their candidates alike.")
    if scores["teacher"] is not None:
        calls, saved = scores["denoiser_calls"], scores["denoiser_calls_saved"]
        print(f"Denoiser calls: {calls:,} made, {saved:,} ({saved / (calls + saved):.0%}) saved by stopping early.")
        if fitted := scores.get("timestep_weights"):
            _tell_weights(fitted)
    if "alone" in (combined := scores.get("combined") or {}):
        parts = zip(combined["parts"], combined["alone"], strict=True)
        alone = ", ".join(f"{part['name']} {right:.1%}" for part, right in parts)
        print(
            f"Of the pairs of {combined['labelled']} pictures {combined['accuracy']:.1%} are right by all together "
            f"(cross-validated), {combined['uniform_accuracy']:.1%} by equal weights; alone: {alone}."
        )
    if "own_first_share" in scores:
        _tell_signal(scores)


def _tell_weights(fitted: dict) -> None:
    """What the fitted weights are, and whether they are worth more than equal ones."""
    before, labelled = f"{fitted['uniform_accuracy']:.1%}", fitted["labelled"]
    if len(set(fitted["weights"])) == 1:
        print(
            f"Timestep weights: equal; on {labelled} pictures no others are clearly better ({before} of pairs right)."
        )
        return
    told = sorted(zip(fitted["timesteps"], fitted["weights"], strict=True))
    print("Timestep weights: " + ", ".join(f"{timestep}: {weight:.2f}" for timestep, weight in told) + ".")
    print(
        f"Of the pairs of {labelled} pictures {fitted['accuracy']:.1%} are right by them (cross-validated), {before} by "
        "equal weights."
    )


def _tell_signal(scores: dict) -> None:
    """How sure the teacher is, and how often right; a warning where that is little, or no more than by chance."""
    own, chance = scores["own_first_share"], scores["own_first_by_chance"]
    ranked = scores["items"] * scores["ranked_share"] - scores.get("tied_items", 0)
    deviation = (chance * (1 - chance) / max(ranked, 1)) ** 0.5
    found = [
        (own < chance + 2 * deviation, f"it puts the picture's own caption first on {own:.0%}, by chance {chance:.0%}")
    ]
    if (sure := scores.get("sure_share")) is not None:
        text = f"the teacher is sure (confidence above {SURE}) of its first choice on {sure:.0%} of items"
        found.insert(0, (sure < LITTLE, text))
    for little, text in found:
        if little:
            print(
                f"warning: {text}: its scores carry little or no signal on this data. Score with a teacher that knows such "
                "pictures, or with more --num_draws.",
                file=sys.stderr,
            )
        else:
            print(f"{text[0].upper()}{text[1:]}.")
