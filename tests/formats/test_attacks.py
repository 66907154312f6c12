"""Malicious files are refused with one sentence; no code is run, no declared size allocated.

Objects that no weight needs are skipped, and the weights are read unchanged.
"""

from pathlib import Path

import pytest
from attacks import ATTACKS, Attack, advisories, scanners, skipped_objects
from attacks.run import outcome, warm_up

from mae_convert.errors import CheckpointError
from mae_convert.formats import open_container


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    warm_up()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "attack",
    [pytest.param(a, marks=[pytest.mark.slow] if a.is_heavy else []) for a in ATTACKS],
    ids=str,
)
def test_malicious_file_is_refused_in_one_sentence_or_read_safely(
    tmp_path: Path, attack: Attack
) -> None:
    assert outcome(attack, tmp_path).complaint() is None


def _message(pickled: bytes, folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_container(skipped_objects.write(folder, pickled))
    return str(caught.value)


def test_weights_inside_an_object_are_refused_by_its_name(tmp_path: Path) -> None:
    inside = [skipped_objects.checkpoint(model) for model in skipped_objects.INSIDE.values()]
    among = [
        skipped_objects.checkpoint(skipped_objects.mapping(a=skipped_objects.tensor(), b=second))
        for second in skipped_objects.AMONG.values()
    ]
    for pickled in (*inside, *among):
        assert "loading the pickle would run code" in _message(pickled, tmp_path)


def test_object_constructed_with_the_weights_is_refused_by_name(tmp_path: Path) -> None:
    aliased = [
        skipped_objects.checkpoint(extra=extra) for extra in skipped_objects.ALIASED.values()
    ]
    passed = [skipped_objects.checkpoint(*both) for both in skipped_objects.PASSED.values()]
    for pickled in (*aliased, *passed):
        assert "its pickle passes the weights to" in _message(pickled, tmp_path)


def test_names_of_published_exploits_are_refused_even_if_no_weight_uses_them(
    tmp_path: Path,
) -> None:
    for name in advisories.GLOBALS.values():
        message = _message(skipped_objects.checkpoint(extra=advisories.call(name)), tmp_path)
        assert f"its pickle refers to {name.replace(' ', '.')}, " in message


def test_scanner_results_are_counted_in_a_table() -> None:
    files = [("row", ATTACKS[0], "a"), ("row", ATTACKS[1], "b"), ("other", ATTACKS[2], "c")]
    results = {"ours": dict.fromkeys("abc", "refused"), "x 1": {"a": "passed", "b": "flagged",
                                                              "c": "not read"}}  # fmt: skip
    assert scanners.table(files, results).splitlines()[2:] == [
        "| row | 2 | 2 refused | 1 passed, 1 flagged |",
        "| other | 1 | refused | not read |",
    ]
