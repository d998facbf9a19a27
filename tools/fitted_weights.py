# /// script
# requires-python = ">=3.10"
# dependencies = ["sdsclip_hf"]  # or from git: ["sdsclip_hf @ git+https://github.com/OWNER/sdsclip_hf"]
# ///
"""What timestep weights that are fitted on some of the pictures of finished scores are worth on all the others.

python tools/fitted_weights.py outputs/study_scores/teacher_300-dd503723

Pictures to fit on are drawn anew for each set. Right is a wrong caption with a higher error than the picture's own. With
--by_kind also of weights for each kind of change, by which a wrong caption is held against the picture's own.
"""

import argparse
from functools import cache

import numpy as np

from sdsclip_hf.data.scores import CandidateScores
from sdsclip_hf.scoring.candidates import load_tagger
from sdsclip_hf.scoring.kinds import kind_of_change
from sdsclip_hf.scoring.labels import LabelledGaps, own_gaps
from sdsclip_hf.scoring.timestep_weights import FEWEST_LABELLED, fit_timestep_weights


def worth(pairs: LabelledGaps, labelled: int, sets: int, kinds: np.ndarray | None = None) -> np.ndarray:
    """Rows of (right by equal weights, right by fitted ones, whether others than equal ones were taken), in % of the others.

    Args:
        pairs: of all pictures.
        labelled: pictures to fit on.
        sets: how often they are drawn.
        kinds: of each pair; then the rows also have how many are right by weights fitted for each kind, of a kind of too
            few pictures by those of all.
    """
    groups, rng = np.array(pairs.groups), np.random.default_rng(0)
    pictures, rows = np.unique(groups), []
    for seed in range(sets):
        within = np.isin(groups, rng.choice(pictures, labelled, replace=False))
        weights = fit_timestep_weights(pairs.gaps[within], groups[within], seed).weights
        others = pairs.gaps[~within]
        row = [(others.sum(1) > 0).mean(), (others @ weights > 0).mean(), (weights != 1).any()]
        if kinds is not None:
            right = [_right(pairs.gaps, groups, within, kinds == kind, weights, seed) for kind in np.unique(kinds)]
            row.append(sum(right) / len(others))
        rows.append(row)
    return 100 * np.array(rows)


def _right(
    gaps: np.ndarray, groups: np.ndarray, within: np.ndarray, of_kind: np.ndarray, weights: np.ndarray, seed: int
) -> int:
    """How many of the other pairs of a kind are right by weights fitted on that kind's."""
    fit_on = within & of_kind
    if len(set(groups[fit_on])) >= FEWEST_LABELLED:
        weights = fit_timestep_weights(gaps[fit_on], groups[fit_on], seed).weights
    return np.count_nonzero(gaps[~within & of_kind] @ weights > 0)


def kinds_of(scores: CandidateScores) -> np.ndarray:
    """Of each pair of [`own_gaps`] the kind of change."""
    tagger, kind = load_tagger(), cache(kind_of_change)
    rows = (scores.data[int(number)] for number in np.flatnonzero(scores.ranked))
    return np.array(
        [kind(row["caption"], text, tagger) for row in rows for text in row["candidates"] if text != row["caption"]]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", nargs="+", help="folders of scores with all draws of each item")
    parser.add_argument("--labelled", type=int, default=50, help="pictures to fit on")
    parser.add_argument("--sets", type=int, default=20, help="how often they are drawn")
    parser.add_argument("--by_kind", action="store_true", help="also fit weights for each kind of change")
    args = parser.parse_args()
    for folder in args.scores:
        pairs = own_gaps(scores := CandidateScores.load(folder), len(scores.data))
        if len(set(pairs.groups)) <= args.labelled:
            raise SystemExit(f"error: {folder} has {len(set(pairs.groups))} pictures; give --labelled fewer.")
        rows = worth(pairs, args.labelled, args.sets, kinds_of(scores) if args.by_kind else None)
        gains = rows[:, 1] - rows[:, 0]
        print(f"{folder}: {len(set(pairs.groups)):,} pictures, {len(pairs.gaps):,} pairs")
        print("  right by one draw alone, %: " + " ".join(f"{100 * share:.1f}" for share in (pairs.gaps > 0).mean(0)))
        print(
            f"  right by equal weights {rows[:, 0].mean():.1f} %, gain by fitted ones {gains.mean():+.2f} points (worst set "
            f"{gains.min():+.2f}, best {gains.max():+.2f}); others than equal ones in {np.count_nonzero(rows[:, 2])} of "
            f"{len(rows)} sets"
        )
        if args.by_kind:
            gains = rows[:, 3] - rows[:, 0]
            print(f"  by weights for each kind of change {gains.mean():+.2f} points (worst set {gains.min():+.2f})")


if __name__ == "__main__":
    main()
