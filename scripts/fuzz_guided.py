"""Coverage-guided fuzzing with atheris, a fuzzer for Python.

Inputs that reach new code are mutated further.
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import atheris

if TYPE_CHECKING:
    from fuzz import Tally
    from fuzz_seeds import Seed

LARGEST_INPUT = 1 << 17


def run_guided(
    seed: "Seed", runs: int, number: int, work: Path, judge: Callable, tally: "Tally"
) -> None:
    """Examine inputs that atheris mutates from a seed, print the tally, and end the process.

    Args:
        seed: a valid checkpoint, and its mutations.
        runs: the number of inputs.
        number: the number of the shard's first input; it determines the random seed of atheris.
        work: a directory for the inputs.
        judge: `fuzz.judge`, which examines an input and counts the outcome.
        tally: the counts of the outcomes; all are 0.
    """
    from fuzz import limit_this_process

    atheris.instrument_all()
    limit_this_process()
    corpus, folder = work / "corpus", work / "case"
    corpus.mkdir()
    shutil.copytree(seed.folder, folder)
    shutil.copy(seed.folder / seed.name, corpus / "seed")

    def examine_one(data: bytes) -> None:
        (folder / seed.name).write_bytes(data)
        judge(folder / seed.opened, tally, f"{seed.container} guided {number}")
        if tally.inputs >= runs:
            print(json.dumps(asdict(tally)), flush=True)
            shutil.rmtree(work, ignore_errors=True)
            os._exit(0)

    def mutate(data: bytes, largest: int, chosen: int) -> bytes:
        chance = random.Random(chosen)
        try:
            return chance.choice(seed.spoilers)(data, chance)[:largest]
        except Exception:  # the function cannot parse the bytes: let atheris mutate them
            return atheris.Mutate(data, largest)

    options = [f"-max_len={LARGEST_INPUT}", f"-seed={number + 1}", "-verbosity=0"]
    atheris.Setup(["fuzz", *options, str(corpus)], examine_one, custom_mutator=mutate)
    atheris.Fuzz()
