"""Readable names of a verdict's checks; a group of checks is summarised by its worst check."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mae_convert.errors import OptionStyle, as_argument, as_field, render
from mae_convert.families import native_frameworks
from mae_convert.runtime.sides import INSTALL
from mae_convert.text import for_terminal, format_number, listing
from mae_convert.verify.assumptions import blocking, how_to_confirm, in_words, shared
from mae_convert.verify.judge import (
    ARRAYS,
    NATIVE,
    READ,
    SOURCE_AT_HAND,
    SPECIFIED,
    UNIT_ROUNDOFF,
    WHOLE,
    Check,
    Verdict,
    unread_in_words,
)
from mae_convert.verify.localise import execution_order

GROUPS = (
    ("configuration/", "configuration fields that change the function"),
    ("weights/", "tensors that are not bit-identical"),
    ("shape/", "shapes"),
    ("file/", "files that changed since the verification"),
    (WHOLE, "tensors that only one side has are declared as dropped"),
    (NATIVE, "both sides loaded natively by their libraries"),
    (SOURCE_AT_HAND, "the source is available"),
    (READ, "configuration fields that a library may use and that mae-convert does not read"),
    (SPECIFIED, "assumptions that both sides make about the function"),
    ("certificate/", "the certificate"),
)
SIGNED = tuple(
    f"certificate/{name}"
    for name in ("signature", "files without a signature", "statement", "subjects", "predicate")
)
AGAINST = "against "
FUNCTION = "function/"
DEPTH = re.compile(
    r"(encoder|decoder)\.(embedding|norm|blocks\.\d+\.output)|head\.norm|last_hidden_state|logits"
)


@dataclass(frozen=True)
class Line:
    """One line of a summary: name, worst measured value, and whether all checks passed."""

    title: str
    measured: str
    limit: str
    passed: bool

    def in_words(self) -> str:
        """Return title, measured value and limit, such as "logits: 1.0e+00, limit 1.0e-10"."""
        return _compared(self.title, self.measured, self.limit)


def summary(checks: Iterable[Check]) -> list[Line]:
    """Return one line for each group of checks."""
    groups: dict[str, list[Check]] = {}
    for check in checks:
        groups.setdefault(_title(check.name), []).append(check)
    return [_line(title, group) for title, group in groups.items()]


def check_in_words(check: Check) -> str:
    """Return a check as text: name, measured value, and limit or expected value."""
    measured, limit = map(format_number, (check.measured, check.limit))
    if check.name.startswith(("configuration/", "shape/")):
        return f"{check.name}: {_or_missing(measured)} in B, {_or_missing(limit)} in A"
    return _compared(check.name, measured, limit)


def _or_missing(value: str) -> str:
    return "missing" if value == "None" else value


def _compared(name: str, measured: str, limit: str) -> str:
    """Return a check as text: name, value, and limit (or expected value, if it is not a number)."""
    return f"{name}: {measured}, {'limit' if limit[:1].isdigit() else 'expected'} {limit}"


def _line(title: str, group: Sequence[Check]) -> Line:
    worst = max(group, key=_severity)
    failed = sum(not check.passed for check in group)
    measured, limit = format_number(worst.measured), format_number(worst.limit)
    if worst.name.startswith("configuration/") or (
        len(group) > 1 and not isinstance(worst.measured, int | float)
    ):
        measured, limit = f"{failed} differ", "0"
    many = f" ({len(group)})" if len(group) > 1 else ""
    return Line(title + many, measured, limit, failed == 0)


def _severity(check: Check) -> tuple[bool, float]:
    """Return a sort key: passed checks come first, then the ratio of measured value to limit."""
    measured, limit = check.measured, check.limit
    if not isinstance(measured, int | float) or not isinstance(limit, int | float):
        return not check.passed, 0.0 if check.passed else math.inf
    if not math.isfinite(measured):
        return not check.passed, math.inf
    if not limit:  # a count that must be 0
        return not check.passed, float(measured)
    return not check.passed, measured / limit


def _title(name: str, runner: str | None = None) -> str:
    """Return the title of the summary line to which a check belongs.

    Args:
        name: the name of the check.
        runner: the library or code to name instead of "B", for a check of ``--against``.
    """
    if name.startswith(AGAINST):
        group, _, rest = name.partition("/")
        return f"{group}, {_title(rest, group.removeprefix('against '))}"
    for prefix, title in GROUPS:
        if name.startswith(prefix):
            return title
    kind, _, rest = name.partition("/")
    if kind == "isolated":
        return _title_of_isolated(rest)
    if kind == "function":
        return f"float64: {_steps(rest) or rest}"
    side, _, rest = rest.partition("/")
    of = runner if runner and side == "B" else side
    return f"{kind}: rounding error of {of}, {_steps(rest) or 'results'}"


def _title_of_isolated(name: str) -> str:
    """Return the title of the summary line for a check of an isolated step.

    In such a check, both sides run one step of the model with A's input.

    Args:
        name: the name of the check without "isolated/", such as "float64/encoder.blocks.0".
    """
    dtype, _, rest = name.partition("/")
    if dtype == "float64":
        return "float64: result of each step of B, from A's input of the step"
    side = rest.partition("/")[0]
    return f"{dtype}: rounding error of {side} in each step, from A's input of the step"


def _steps(name: str) -> str | None:
    """Return "gradients" or "intermediate activations" if a result is one of these, by its name.

    The result is None for an output of the model.
    """
    if name.startswith("grad/"):
        return "gradients"
    return "intermediate activations" if "." in name else None


def by_depth(verdict: Verdict) -> list[tuple[str, float]]:
    """Return how far A and B are apart in float64 after each block and in the outputs.

    Each item is the name of the result and the relative L2 distance, in execution order. The
    distance is infinite if the shapes differ.
    """
    distances = [
        (check.name.removeprefix(FUNCTION), check.measured)
        for check in verdict.checks
        if check.name.startswith(FUNCTION) and isinstance(check.measured, int | float)
    ]
    depths = [(n, float(e)) for n, e in distances if DEPTH.fullmatch(n)]
    return sorted(depths, key=lambda item: execution_order(item[0]))


def verdict_in_words(verdict: Verdict, style: OptionStyle = as_field) -> tuple[str, str]:
    """Return the verdict in one or two words, and a sentence that explains it.

    Args:
        verdict: the verdict.
        style: how the sentence writes the names of options.
    """
    failed = verdict.failed()
    if any(w.get("framework") == ARRAYS for w in verdict.witnesses):
        return _verdict_on_arrays(verdict)
    if failed and all(_is_numeric(check) for check in failed):
        names = listing(sorted(set(map(_runner_of_check, failed))), "and")
        return "IMPRECISE", (
            "the same function in float64 and the same weights, but the rounding errors of "
            f"{names} are too large for the precision of the run"
        )
    if failed and all(check.name.startswith("proof/") for check in failed):
        return "NOT PROVEN", f"nothing differs, but {_reason_proof_failed(failed, verdict, style)}"
    if failed and all(_is_nan(check.measured) for check in failed):
        if not all(check.name.startswith(AGAINST) for check in failed):
            models = "A and B are the same function"
            return "NOT FINITE", f"outputs are NaN, so it cannot be determined whether {models}"
        return "NOT FINITE", (
            "A and B agree in everything that was compared, but outputs of "
            f"{listing(_runners(failed), 'and')} are NaN"
        )
    if not verdict.passed:
        return _difference_in_words(verdict, failed)
    if verdict.replayed:
        return "PASSED", (
            "B still computes the certified results; the source was not available, so this does "
            "not prove that B is the same function as the source"
        )
    if verdict.proven:
        common = ", in everything that was compared" if verdict.not_compared else ""
        return "PASSED and proven", f"{_same(verdict)}{common}"
    return "PASSED", f"not proven: {_reason_not_proven(verdict)}"


def _difference_in_words(verdict: Verdict, failed: Sequence[Check]) -> tuple[str, str]:
    """Return "DIFFERENT" or "NOT SIGNED", and a sentence that names what differs."""
    if verdict.replayed and failed and all(check.name in SIGNED for check in failed):
        return "NOT SIGNED", (
            "B computes the results that its certificate records, but the signature of B or the "
            "signed statement is not valid"
        )
    if verdict.replayed:
        return "DIFFERENT", "B is not the certified model, or its outputs have changed"
    if failed and all(check.name.startswith(AGAINST) for check in failed):
        names = _runners(failed)
        return "DIFFERENT", (
            f"A and B agree in everything that was compared, but {listing(names, 'and')} "
            f"{'computes' if len(names) == 1 else 'compute'} another function"
        )
    return "DIFFERENT", "A and B differ in the function that they compute or in their weights"


def _runners(checks: Iterable[Check]) -> list[str]:
    """Return the additional runners whose results at least one of the checks compares.

    Additional runners are libraries or external code that the option ``--against`` specifies.
    """
    return sorted({check.name.partition("/")[0].removeprefix(AGAINST) for check in checks})


def _verdict_on_arrays(verdict: Verdict) -> tuple[str, str]:
    """Return the verdict on another program's arrays, and a sentence that explains it."""
    if not verdict.passed:
        return "DIFFERENT", "B's arrays differ from A's results by more than rounding errors"
    return "PASSED", (
        "not proven: every compared array agrees with A's results, but the weights and "
        "configuration of the other program are unknown"
    )


def _same(verdict: Verdict) -> str:
    """Return a phrase that states that both sides have the same function and the same weights.

    If B's conversion record declares changes of A, such as another image size, the phrase states
    that B is A after these changes, and names them.
    """
    if not verdict.steps:
        return "the same function, the same weights"
    kinds = dict.fromkeys(str(step["step"]).replace("_", " ") for step in verdict.steps)
    return (
        "the same function and the same weights as the source after the declared changes"
        f" ({', '.join(kinds)})"
    )


def headline(verdict: Verdict) -> str:
    """Return the verdict in a few words.

    For a passed verdict, they include the values of configuration fields that both sides assume.
    """
    word, assumed = verdict_in_words(verdict)[0], in_words(shared(verdict.assumptions))
    return f"{word}, assuming {assumed}" if verdict.passed and assumed else word


def suspects_title(verdict: Verdict) -> str:
    """Return the title for a verdict's list of tensors that may cause the difference."""
    same = [c for c in verdict.checks if c.name.startswith("weights/") and c.passed]
    return (
        "tensors on which the first divergence depends (equal in A and B)"
        if same
        else "tensors that may be the cause"
    )


def _reason_proof_failed(failed: Sequence[Check], verdict: Verdict, style: OptionStyle) -> str:
    """Return the reason why a required proof failed although nothing differs."""
    if any(check.name == SOURCE_AT_HAND for check in failed):
        return (
            "the source is not available, and a certificate alone is not a proof; verify B against "
            "its source"
        )
    if any(check.name == SPECIFIED for check in failed):
        assumed = blocking(verdict.assumptions)
        return (
            f"both sides assume {in_words(assumed)}, so the comparison would not detect a wrong "
            f"value; {render(how_to_confirm(assumed), style)}"
        )
    if any(check.name == WHOLE for check in failed):
        return (
            "one side lacks a component that the other side has, and no conversion record declares "
            "that the component was dropped; convert the side that has the component to the task "
            "of the other side, which records the drop, and verify the result"
        )
    return _reason_not_proven(verdict)


def _reason_not_proven(verdict: Verdict) -> str:
    """Return the reason why a passed verdict is not proven."""
    reasons = []
    if fields := unread_in_words(verdict):
        reasons.append(
            "a library may use configuration fields that mae-convert does not know and did not "
            f"compare ({fields}); remove them if they have no effect"
        )
    if not all(w.get("native", True) for w in verdict.witnesses if w.get("side") in ("A", "B")):
        reasons.append(_how_it_was_loaded(verdict))
    return "; and ".join(reasons) or _how_it_was_loaded(verdict)


def _how_it_was_loaded(verdict: Verdict) -> str:
    """Return why the way in which the sides were loaded prevents a proof, as text.

    The text names the part of mae-convert that loaded a side, and states for each side that was not
    loaded natively how to load it natively.
    """
    parts = [w.get("ours") for w in verdict.witnesses if w.get("side") in ("A", "B")]
    named = next(filter(None, parts), None) or "mae-convert's mapping tables"
    what, _, why = named.partition(", ")
    reason = f" ({why})" if why else ""
    sides = [w for w in verdict.witnesses if w.get("side") in ("A", "B") and not w.get("native")]
    advice = "".join(f"; {_how_to_load_natively(side)}" for side in sides)
    return (
        f"one side was loaded through {what}{reason}, so the comparison would not detect an error "
        f"in this part of mae-convert{advice}"
    )


def _how_to_load_natively(runner: Mapping[str, Any]) -> str:
    """Return advice on running a side without mae-convert's readers and mapping tables.

    Args:
        runner: how the side was run, an item of `Verdict.witnesses`.
    """
    side, layout = runner["side"], str(runner.get("layout"))
    frameworks = native_frameworks(layout, runner.get("family"))
    if not frameworks:
        return f"no framework loads the {layout} layout of {side} natively"
    if runner.get("framework") in frameworks:
        return f"convert {side} to a file that {runner['framework']} loads natively"
    names = " or ".join(filter(None, (", ".join(frameworks[:-1]), frameworks[-1])))
    return f"run {side} with {names}, which loads {layout} natively ({INSTALL[frameworks[0]]})"


def runner_in_words(runner: Mapping[str, Any]) -> str:
    """Return the runner of one side as text: a framework and its version, or the specified code."""
    versions = runner.get("versions") or {}
    if code := runner.get("foreign"):
        library = next((name for name in ("torch", "keras") if name in versions), "")
        used = f", with {library} {versions[library]}" if library else ""
        return f"{code}, external code{used}"
    framework = str(runner.get("framework"))
    return " ".join(filter(None, (framework, versions.get(framework))))


def _is_nan(measured: Any) -> bool:
    return isinstance(measured, float) and math.isnan(measured)


def _is_numeric(check: Check) -> bool:
    parts = check.name.split("/")
    prefixed = check.name.startswith((AGAINST, "isolated/"))
    return (parts[1] if prefixed else parts[0]) in UNIT_ROUNDOFF


def _runner_of_check(check: Check) -> str:
    """Return whose rounding error a check limits: "A", "B", or a runner of ``--against``."""
    group, _, rest = check.name.partition("/")
    if not check.name.startswith((AGAINST, "isolated/")):
        return rest.partition("/")[0]
    side = rest.split("/")[1]
    return group.removeprefix(AGAINST) if group.startswith(AGAINST) and side == "B" else side


def step_rows(
    steps: Sequence[Mapping[str, Any]],
) -> tuple[list[str], list[tuple[list[str], str]]]:
    """Return a table of the comparison in which both sides run each step with A's input.

    Args:
        steps: the steps of `Verdict.isolated`, at least one.

    Returns:
        The column headings, and for each step its cells and a verdict: "ok", "DIFFERENT" (the
        float64 results differ), "NOT FINITE" (a float64 result is NaN), or "IMPRECISE" (the
        rounding error of a side is too large).
    """
    dtypes = list(steps[0]["rounding"])
    columns = ["each step with A's input", "B, float64"]
    columns += [f"{side}, {dtype}" for dtype in dtypes for side in "AB"]
    rows = []
    for step in steps:
        errors = [step["rounding"][dtype] for dtype in dtypes]
        precise = all(e[side] <= e["limit"] for e in errors for side in "AB")
        cells = [step["step"], format_number(step["difference"])]
        cells += [format_number(e[side]) for e in errors for side in "AB"]
        word = "NOT FINITE" if _is_nan(step["difference"]) else "DIFFERENT"
        rows.append((cells, word if step["at"] else "ok" if precise else "IMPRECISE"))
    return columns, rows


def effects_in_words(effects: Mapping[str, float]) -> list[str]:
    """Return sentences that state how much the declared rounding of weights changes each output."""
    return [
        f"the declared rounding changes {name} by {format_number(effect)} (relative L2;"
        " this does not affect the verdict)"
        for name, effect in effects.items()
    ]


def verdict_text(verdict: Verdict) -> str:
    """Return the verdict as plain text: result, failed checks, and causes."""
    meaning = verdict_in_words(verdict, as_argument)[1]
    lines = [f"{headline(verdict)}: {meaning}"]
    lines += [f"  {line.in_words()}" for line in summary(verdict.checks) if not line.passed]
    if verdict.first_divergence:
        lines.append(f"first divergence: {verdict.first_divergence}")
    if verdict.suspects and not verdict.passed:
        lines.append(f"{suspects_title(verdict)}: " + ", ".join(verdict.suspects[:6]))
    lines += [f"cause: {cause}" for cause in verdict.causes]
    return "\n".join(map(for_terminal, lines))
