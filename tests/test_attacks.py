"""Hostile files are refused in one sentence: none runs, or allocates on its own word.

What no weight needs is passed over; then the weights are read as they are.
"""

from pathlib import Path

import pytest
from attacks import ATTACKS, Attack
from attacks.run import outcome, warm_up


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    warm_up()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "attack",
    [pytest.param(a, marks=[pytest.mark.slow] if a.is_heavy else []) for a in ATTACKS],
    ids=str,
)
def test_a_hostile_file_is_refused_in_a_sentence_or_read_unharmed(
    tmp_path: Path, attack: Attack
) -> None:
    assert outcome(attack, tmp_path).complaint() is None
