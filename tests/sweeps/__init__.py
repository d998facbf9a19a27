"""Random inputs of a kind, each tried and judged: some in the suite, hundreds by ``tools/campaign.py``.

A trial takes random numbers and an empty folder, and tells in a word or two how it went. What went wrong is an error, as is
one that the package should have told in its own words.
"""

from sweeps import captions, checkpoints, data_files, duplicates, hub, names, options, pictures, rows, scores

TRIALS = {
    "pictures": pictures.trial,
    "captions": captions.trial,
    "names of files and folders": names.trial,
    "rows": rows.trial,
    "data files": data_files.trial,
    "duplicates in a batch": duplicates.trial,
    "checkpoints": checkpoints.trial,
    "scores": scores.trial,
    "options": options.trial,
    "pushes to a Hub that errs": hub.trial,
}
