"""What these metrics share: reading their inputs, and bootstrap intervals. Each metric's folder has this same file."""

import numbers

import numpy as np


class CheckedInputs:
    """Reads scores before ``evaluate`` stores them, so that a wrong shape is told in the metric's own words.

    It stands before ``evaluate.Metric`` among a metric's bases. The metric gives ``read_inputs``, which takes the inputs
    by name and returns them as arrays by name.
    """

    def add_batch(self, **inputs):
        """Add the scores of some items, to be computed on later."""
        expected = self._feature_names()
        if set(inputs) != set(expected):
            raise ValueError(
                f"{self.name} takes {' and '.join(expected)}; it was given {', '.join(inputs) or 'nothing'}."
            )
        arrays = self.read_inputs(**inputs)
        super().add_batch(**{name: array.tolist() for name, array in arrays.items()})

    def add(self, **inputs):
        """Add the scores of one item, to be computed on later."""
        self.add_batch(**{name: [value] for name, value in inputs.items()})


class Bootstrap:
    """Percentile intervals of accuracies under resampling of the items.

    An item is right or wrong, so the share that is right in a resample of n items, of which a share p is right, is
    Binomial(n, p) / n exactly. It is drawn from that distribution, which needs no resample of the items.

    Args:
        confidence: in (0, 1).
        n_resamples: how many are drawn; 0 gives no intervals.
        seed: each interval is drawn with a new generator of this seed, so that it hangs on its own items alone.

    Raises:
        ValueError: a value outside these limits.
    """

    def __init__(self, confidence=0.95, n_resamples=1000, seed=0):
        if not 0 < confidence < 1:
            raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, as 0.95 does.")
        for name, value in (("n_resamples", n_resamples), ("seed", seed)):
            if not isinstance(value, numbers.Integral) or value < 0:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 0.")
        self.confidence, self.n_resamples, self.seed = confidence, int(n_resamples), int(seed)

    def interval(self, groups):
        """(low, high) of the unweighted mean of the groups' accuracies, each group resampled by itself.

        Args:
            groups: bool arrays, one a group: which of its items are right. A single group gives a plain accuracy.
        """
        counts = np.array([len(right) for right in groups])
        shares = np.array([right.mean() for right in groups])
        rng = np.random.default_rng(self.seed)
        means = (rng.binomial(counts, shares, size=(self.n_resamples, len(counts))) / counts).mean(axis=1)
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(means, [tail, 1 - tail])
        return float(low), float(high)

    def intervals(self, scores):
        """``{"intervals": {name: (low, high)}}`` of scores given as name -> groups; ``{}`` without resamples."""
        if not self.n_resamples:
            return {}
        return {"intervals": {name: self.interval(list(groups)) for name, groups in scores.items()}}


def read_numbers(name, values, shape):
    """The values as a float64 array with at least one item; ``shape`` says in errors what was asked for."""
    if values is None:
        raise ValueError(f"{name} is missing; give {shape}.")
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is ragged or holds what is no number; it must be {shape}. ({error})") from error
    if array.ndim and len(array) == 0:
        raise ValueError(f"{name} is empty; give at least one item.")
    return array


def refuse_nan(name, array):
    """Raise ValueError with the first item that holds NaN; None was read as NaN."""
    bad = np.flatnonzero(np.isnan(array).any(axis=tuple(range(1, array.ndim))))
    if bad.size:
        raise ValueError(f"{name} of item {bad[0]} hold NaN ({bad.size} such items); mend the model or leave them out.")


def read_labels(name, labels, count):
    """The items' labels as an array of ``count`` strings; numbers are written as text."""
    if isinstance(labels, str):
        raise ValueError(f"{name} is the single text {labels!r}; give a list with one of them an item.")
    labels = list(labels)
    if len(labels) != count:
        raise ValueError(f"{len(labels)} {name} for {count} items; give one an item.")
    for item, label in enumerate(labels):
        if not isinstance(label, str | numbers.Number) or label != label:
            raise ValueError(f"{name} of item {item} is {label!r}; it must be text or a number.")
    return np.array([str(label) for label in labels])


def by_group(values, labels):
    """The rows of ``values`` (N, ...) by their label, as label -> rows, labels in alphabetical order."""
    names, places = np.unique(labels, return_inverse=True)
    order = np.argsort(places, kind="stable")
    ends = np.cumsum(np.bincount(places))[:-1]
    return dict(zip(names.tolist(), np.split(values[order], ends), strict=True))
