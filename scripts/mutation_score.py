"""Count the faults in weights, mapping tables, configurations and code that `verify` detects.

.venv/bin/python scripts/mutation_score.py                 all faults (half an hour on 2 cores)
.venv/bin/python scripts/mutation_score.py --sample 5      some faults of each kind
.venv/bin/python scripts/mutation_score.py --family prithvi  faults of a family of video models
.venv/bin/python scripts/mutation_score.py --good-pairs 200  pairs that compute the same function
.venv/bin/python scripts/mutation_score.py --repair        faults that are repaired bit for bit
.venv/bin/python scripts/mutation_score.py --reduce        faults for which the script that
                                                           `verify --reduce` writes reproduces the
                                                           first difference (also with --sample and
                                                           --family)

The exit status is 1 if a fault is not detected, or if a pair that computes the same function fails.
Without --family it is also 1 if too few faults are explained: a changed tensor must be named first
for 95 % of the faults in weights and mapping tables, and the cause must be named for 90 % of the
other faults. With --repair and --reduce the exit status is 0.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

from mutation.families import FAMILIES, FamilyPopulation
from mutation.good_pairs import verify_pairs
from mutation.population import Mutant, Population
from mutation.reduce import KINDS as REDUCIBLE
from mutation.reduce import reductions
from mutation.reduce import remarks as reduce_remarks
from mutation.reduce import table as reduce_table
from mutation.repair import KINDS as REPAIRABLE
from mutation.repair import remarks as repair_remarks
from mutation.repair import repairs
from mutation.repair import table as repair_table
from mutation.report import KINDS, failures, markdown, remarks, score
from mutation.score import Outcome, outcomes

LEAST_SUSPECTED = 0.95
LEAST_NAMED = 0.9
KINDS_OF_FAMILIES = ("weights", "tables", "configurations", "code")
WEIGHTS = 150  # number of faults of each of the four kinds of fault in weights


def main() -> int:
    """Compute the requested scores and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sample", type=int, help="maximum number of faults of each kind and framework"
    )
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this kind of fault")
    helped = "faults of this family of video models (default: of the image MAE)"
    parser.add_argument("--family", choices=FAMILIES, action="append", help=helped)
    parser.add_argument(
        "--good-pairs",
        type=int,
        default=0,
        metavar="N",
        help="verify N pairs that compute the same function, instead of faults",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repair", action="store_true", help="count repaired faults")
    parser.add_argument(
        "--reduce",
        action="store_true",
        help="count the faults for which the script that `verify --reduce` writes reproduces the "
        "first difference",
    )
    options = parser.parse_args()
    if options.good_pairs:
        return good_pairs(options.good_pairs, options.seed)
    if options.reduce:
        for family in options.family or [None]:
            score_reductions(family, options.kind or REDUCIBLE, options.sample, options.seed)
        return 0
    if options.repair:
        return score_repairs(options.kind or REPAIRABLE, options.sample, options.seed)
    good = [scored(family, options) for family in options.family or [None]]
    return 0 if all(good) else 1


def scored(family: str | None, options: argparse.Namespace) -> bool:
    """Print the score of a family's faults and return whether it passes; see `is_good`.

    Args:
        family: a family of video models; None for the image MAE.
        options: the parsed command line.
    """
    start = time.monotonic()
    scored_outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="mutation-score-") as folder:
        population = population_of(family, Path(folder), options.seed)
        kinds = KINDS if family is None else KINDS_OF_FAMILIES
        for kind in options.kind or kinds:
            mutants = faults(population, kind, options.sample)
            scored_outcomes += outcomes(mutants, Path(folder) / kind)
            print(f"{kind}: {len(mutants)} faults, {time.monotonic() - start:.0f} s", flush=True)
    print(f"\n{family or 'mae'}\n\n{markdown(scored_outcomes)}\n")
    print("\n".join(remarks(scored_outcomes, causes=family is None)))
    return is_good(scored_outcomes, names_causes=family is None)


def population_of(family: str | None, folder: Path, seed: int) -> Population:
    """Return the models of a family, in which faults are inserted.

    Args:
        family: a family of video models; None for the image MAE.
        folder: the directory to which the checkpoints are written.
        seed: the seed of the random choices.
    """
    return FamilyPopulation.of(family, folder, seed) if family else Population(folder, seed)


def score_reductions(
    family: str | None, kinds: Sequence[str], sample: int | None, seed: int
) -> None:
    """Write a script for each faulty model; print how many reproduce the first difference.

    Args:
        family: a family of video models; None for the image MAE.
        kinds: the kinds of faults.
        sample: the number of faults to draw from each group; None as for `faults`.
        seed: the seed of the random choices.
    """
    scored_reductions = []
    with tempfile.TemporaryDirectory(prefix="reduce-score-") as folder:
        population = population_of(family, Path(folder), seed)
        for kind in kinds:
            scored_reductions += reductions(
                faults(population, kind, sample), Path(folder) / f"{kind}-reduced"
            )
    print(f"{family or 'mae'}\n\n{reduce_table(scored_reductions)}\n")
    print("\n".join(reduce_remarks(scored_reductions)), flush=True)


def score_repairs(kinds: Sequence[str], sample: int | None, seed: int) -> int:
    """Repair faults without running a model; print how many results equal the source exactly.

    Args:
        kinds: the kinds of faults.
        sample: the number of faults to draw from each group; None as for `faults`.
        seed: the seed of the random choices.

    Returns:
        The exit status, 0.
    """
    start, scored_repairs = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="repair-score-") as folder:
        population = Population(Path(folder), seed)
        for kind in kinds:
            scored_repairs += repairs(
                faults(population, kind, sample), Path(folder) / f"{kind}-repaired"
            )
            print(f"{kind}: {time.monotonic() - start:.0f} s", flush=True)
    print("\n" + repair_table(scored_repairs) + "\n")
    print("\n".join(repair_remarks(scored_repairs)))
    return 0


def faults(population: Population, kind: str, sample: int | None) -> list[Mutant]:
    """Return the faults of one kind.

    Args:
        population: the models of a family, and their faults.
        kind: one of `KINDS`.
        sample: the number of faults to draw from each group, such as the faults of one table. With
            None, all faults are returned, except for the kind "weights", whose groups are large:
            from each of these groups, as many faults are drawn as the constant `WEIGHTS` specifies.
    """
    if kind == "weights":
        mutants = population.weights(sample or WEIGHTS, by_tensorflow=sample or 60)
    elif kind == "tables":
        mutants = population.tables(sample, by_tensorflow=sample or 1000)
    elif kind == "configurations":
        mutants = population.configurations(sample, by_tensorflow=sample or 30)
    elif kind == "code":
        mutants = population.code(sample, sample)
    else:
        mutants = population.precision(sample, sample)
    return list(mutants)


def is_good(results: list[Outcome], *, names_causes: bool = True) -> bool:
    """Return whether all faults were detected and enough faults were explained.

    Enough means at least the fraction `LEAST_SUSPECTED` of the faults in tensors, and at least the
    fraction `LEAST_NAMED` of the other faults.

    Args:
        results: all outcomes.
        names_causes: whether faults must also be explained; False if no causes were looked for.
    """
    scores = [score(kind, results) for kind in KINDS]
    semantic = [s for s in scores if s.kind in ("configurations", "code", "precision")]
    suspected = sum(s.suspected for s in scores if s.kind in ("weights", "tables"))
    tensors = sum(s.judged for s in scores if s.kind in ("weights", "tables"))
    named, total = sum(s.named for s in semantic), sum(s.total for s in semantic)
    missed = failures(results)
    return (
        not missed["not detected"]
        and (not names_causes or suspected >= LEAST_SUSPECTED * tensors)
        and (not names_causes or named >= LEAST_NAMED * total)
    )


def good_pairs(number: int, seed: int) -> int:
    """Verify `number` pairs of checkpoints that compute the same function; print the failing pairs.

    Returns:
        The exit status: 1 if a pair fails, otherwise 0.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="good-pairs-") as folder:
        failed = verify_pairs(number, seed, Path(folder))
    for name, checks in failed.items():
        print(f"{name}: {checks}")
    print(f"{number - len(failed)} of {number} good pairs pass, {time.monotonic() - start:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
