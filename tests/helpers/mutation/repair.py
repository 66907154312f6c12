"""Count the faults in weights, tables and configurations that are repaired bit for bit."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.checkpoint.fingerprint import checkpoint_fingerprint
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.diagnose.repair import plan_repair, write_repaired
from mae_convert.diagnose.tensor_repairs import differing
from mae_convert.errors import MaeConvertError
from mutation.population import SUFFIX, Mutant

KINDS = ("weights", "tables", "configurations")
KNOWN, RESTORED, NOT = "known cause", "with --restore", "not repaired"
COMPARED = ("norm_pix_loss", "mask_ratio", "image_mean", "image_std")


@dataclass(frozen=True)
class Repaired:
    """The outcome of the repair of one fault.

    Attributes:
        mutant: the fault.
        result: `KNOWN` if the fault was named and the result is the source bit for bit, `RESTORED`
            if that requires the option ``restore``, or `NOT`.
        words: the changes, or the reason why nothing was changed.
    """

    mutant: Mutant
    result: str
    words: str


def repairs(mutants: Iterable[Mutant], folder: Path) -> list[Repaired]:
    """Repair every fault that is not refused before anything runs."""
    folder.mkdir(parents=True)
    runnable = [mutant for mutant in mutants if mutant.refused is None]
    return [_repaired(mutant, folder / str(n)) for n, mutant in enumerate(runnable)]


def _repaired(mutant: Mutant, path: Path) -> Repaired:
    a, b = _pair(mutant)
    target = path.with_name(path.name + SUFFIX.get(b.layout.name, ".pth"))
    try:
        planned = plan_repair(a, b)
        if not planned.changes:
            return Repaired(mutant, NOT, "there is nothing to repair")
        write_repaired(planned, target)
        right = same(a, open_checkpoint(target))
    except MaeConvertError as error:
        return Repaired(mutant, NOT, str(error))
    words = "; ".join(planned.changes)
    if not right:
        return Repaired(mutant, NOT, f"the result differs: {words}")
    return Repaired(mutant, RESTORED if planned.unexplained else KNOWN, words)


def _pair(mutant: Mutant) -> tuple[Checkpoint, Checkpoint]:
    """Return both sides as the correct tables read them.

    If a faulty table reads a valid file, the target is the result of that table.
    """
    a, b = (open_checkpoint(run.checkpoint.path) for run in (mutant.a, mutant.b))
    if mutant.kind == "tables" and not differing(a, b):
        return a, mutant.b.checkpoint
    return a, b


def same(a: Checkpoint, b: Checkpoint) -> bool:
    """Return whether two checkpoints have the same tensors bit for bit and the same fields."""
    fields = [[checkpoint.configuration.value(name) for name in COMPARED] for checkpoint in (a, b)]
    if a.task != "pretrain":  # fields of pre-training mean nothing then
        fields = [values[1 if a.task == "encoder" else 2 :] for values in fields]
    return checkpoint_fingerprint(a) == checkpoint_fingerprint(b) and fields[0] == fields[1]


def table(results: Sequence[Repaired]) -> str:
    """Return the score as a Markdown table."""
    lines = ["| faults in | repaired bit for bit | of these, with `--restore` |", "|---|---|---|"]
    for kind in KINDS:
        counts = Counter(r.result for r in results if r.mutant.kind == kind)
        right = counts[KNOWN] + counts[RESTORED]
        if total := sum(counts.values()):
            lines.append(f"| {kind} | {right} of {total} | {counts[RESTORED]} |")
    return "\n".join(lines)


def remarks(results: Sequence[Repaired]) -> list[str]:
    """Return the faults that were not repaired, with the reason."""
    return [f"{r.mutant.kind}: {r.mutant.name}: {r.words}" for r in results if r.result == NOT]
