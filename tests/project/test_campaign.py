"""Random inputs of each kind, some of those that tools/campaign.py tries by hundreds; and a kill of each form of run."""

import numpy as np
import pytest
from sweeps import TRIALS, kills

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("kind", TRIALS)
def test_random_inputs_are_read_right_or_refused_by_name(kind, tmp_path, own_cache):
    for number in range(8):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert TRIALS[kind](np.random.default_rng([18, number]), folder)


@pytest.mark.slow
@pytest.mark.parametrize("form", kills.FORMS)
def test_a_run_that_was_killed_ends_as_one_that_was_not(form, tmp_path):
    assert kills.trial(form, np.random.default_rng(18), tmp_path)
