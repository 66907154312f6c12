"""Options that contradict each other, or that one makes without effect: refused before any work.

One table for all commands. A pair that only a checkpoint or a layout can decide (``--prefix`` for a
directory) is refused where that is known.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

Values = Mapping[str, Any]
MASKS = ("random", "block", "grid")


@dataclass(frozen=True)
class Conflict:
    """Parameters of a command that cannot be given together.

    Attributes:
        one: a parameter, as the function of the command names it.
        other: another; None if the first has no effect in this command, or lacks what it needs.
        why: the reason, and what to do.
        when: whether the values that were given conflict.
    """

    one: str
    other: str | None
    why: str
    when: Callable[[Values], bool] = lambda _: True


def _only_films(values: Values) -> bool:
    return all(path.suffix.lower() == ".gif" for path in values["outputs"])


def _sets(name: str) -> Callable[[Values], bool]:
    return lambda values: any(t.partition("=")[0] == name for t in values["assignments"])


def _no_xla(framework: str, mode: str) -> Conflict:
    """Return the row for a framework that runs PyTorch and cannot be run by XLA here."""
    option = f"--{mode.replace('_', '-')}"
    return Conflict(
        framework,
        mode,
        f"only TensorFlow and JAX are run by XLA here; PyTorch has {option} compiled",
        lambda values: values[mode] == "xla" and values[framework] in WITHOUT_XLA,
    )


WITHOUT_XLA = ("torch", "transformers", "timm")
INPUTS = (
    Conflict("inputs", "images", "both give the images; leave one out"),
    Conflict(
        "inputs", "seed", "the file holds the images, and the noise or none; leave --seed out"
    ),
    Conflict("inputs", "batch", "all images of the file are used; leave --batch out"),
)
IMAGES = Conflict(
    "images",
    None,
    "are for the experiment of --infer; add --infer or leave --images out",
    lambda values: not values["use_infer"],
)
NOTHING_MASKED = "nothing is masked then; leave one out"
# What compares a checkpoint with results that others published has its own image and options.
PUBLISHED = tuple(
    Conflict(
        "published", name, "published results have their own image and tolerance; leave it out"
    )
    for name in (
        *("b", "certify", "reports", "against", "dtypes", "mask_ratio_of_run", "inputs", "images"),
        *("seed", "batch", "unmasked", "gradients", "require_proof", "state_key", "use_infer"),
        *("framework_b", "device_b", "python_b", "mode_b", "task"),
    )
)
# With one checkpoint its certificate is replayed, which has its own inputs and its own task.
REPLAYED = tuple(
    Conflict(
        name,
        None,
        "is for two checkpoints, and only A is given; give B too, or leave it out",
        lambda values: values["b"] is None and values["published"] is None,
    )
    for name in ("task", "use_infer", "state_key")
)
BANDS = Conflict(
    "bands",
    None,
    "chooses channels of --inputs; add it, or leave --bands out",
    lambda values: values["inputs"] is None,
)
CONFLICTS: Mapping[str, tuple[Conflict, ...]] = {
    "inspect": (IMAGES,),
    "convert": (
        IMAGES,
        Conflict(
            "num_labels",
            "task",
            "a new classifier head makes a model of task classify; leave --task out",
            lambda values: values["task"] != "classify",
        ),
        Conflict(
            "sincos_positions",
            None,
            "makes position embeddings for another grid; add --image-size",
            lambda values: values["image_size"] is None,
        ),
    ),
    "trace": (
        *INPUTS,
        Conflict("unmasked", "mask_ratio", NOTHING_MASKED),
        _no_xla("framework", "mode"),
    ),
    "verify": (
        *INPUTS,
        *PUBLISHED,
        *REPLAYED,
        Conflict(
            "use_infer",
            None,
            "needs A and B: a certificate is replayed as it is; give both or leave it out",
            lambda values: values["b"] is None,
        ),
        Conflict("unmasked", "mask_ratio_of_run", NOTHING_MASKED),
        _no_xla("framework_a", "mode_a"),
        _no_xla("framework_b", "mode_b"),
    ),
    "reconstruct": (
        Conflict(
            "mask",
            "mask_ratio",
            "an image of a mask decides itself what is removed; leave --mask-ratio out",
            lambda values: values["mask"] not in MASKS,
        ),
        Conflict(
            "mask",
            "seed",
            "this mask does not depend on chance; leave --seed out",
            lambda values: values["mask"] not in ("random", "block"),
        ),
        Conflict(
            "outputs",
            "mask_ratio",
            "a .gif shows mask ratios from 0.5 to 0.95; leave --mask-ratio out",
            _only_films,
        ),
        Conflict("inputs", "images", "both give the images; leave one out"),
        Conflict("inputs", "fit", "these images have the model's size; leave --fit out"),
        BANDS,
    ),
    "timeline": (Conflict("inputs", "images", "both give the images; leave one out"), BANDS),
    "features": (
        Conflict("inputs", "folder", "both give the images; leave one out"),
        Conflict("mask_ratio", None, "has no effect here: no patch is left out; leave it out"),
    ),
    "sweep": (
        Conflict("dry_run", "reports", "a dry run has no results; leave one out"),
        Conflict("dry_run", "fail_fast", "a dry run cannot fail; leave one out"),
        Conflict("to", "assignments", "both give the field to; leave one out", _sets("to")),
        Conflict(
            "target", "assignments", "both give the field target; leave one out", _sets("target")
        ),
        Conflict(
            "verify", "assignments", "both give the field verify; leave one out", _sets("verify")
        ),
        Conflict(
            "workers",
            "engine",
            "--workers is for processes on this machine; Ray places jobs by --threads",
            lambda values: values["engine"] == "ray",
        ),
        Conflict(
            "address",
            None,
            "is that of a Ray cluster; add --engine ray",
            lambda values: values["engine"] != "ray",
        ),
    ),
    "download": (
        Conflict(
            "overwrite",
            None,
            "replaces the file at --output; add --output, or leave it out",
            lambda values: values["output"] is None,
        ),
    ),
    "publish": (
        Conflict(
            "create_pr",
            "branch",
            "a pull request proposes a change to main; leave --branch out",
            lambda values: values["branch"] != "main",
        ),
        *(
            Conflict(
                name,
                None,
                "describes a licence that has no identifier; add --license other",
                lambda values: values["license_"] != "other",
            )
            for name in ("license_name", "license_link")
        ),
    ),
}


class CheckedCommand(click.Command):
    """A command that refuses options which contradict each other."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command.

        Raises:
            UsageError: two of its options contradict each other.
        """
        for conflict in CONFLICTS.get(self.name or "", ()):
            names = [name for name in (conflict.one, conflict.other) if name is not None]
            if all(_is_given(ctx, name) for name in names) and conflict.when(ctx.params):
                raise click.UsageError(_sentence(ctx, names, conflict.why), ctx)
        return super().invoke(ctx)


def _is_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE and ctx.params[
        name
    ] not in (None, ())


def _sentence(ctx: click.Context, names: list[str], why: str) -> str:
    shown = [_as_typed(ctx, name) for name in names]
    if len(shown) == 1:
        return f"{shown[0]} {why}"
    return f"{shown[0]} and {shown[1]} cannot be given together: {why}"


def _as_typed(ctx: click.Context, name: str) -> str:
    """Return an option with its value, or an argument by its name."""
    parameter = next(p for p in ctx.command.params if p.name == name)
    if not isinstance(parameter, click.Option):
        return str(parameter.human_readable_name)
    value, option = ctx.params[name], parameter.opts[-1]
    if parameter.is_flag:
        return option if value else (parameter.secondary_opts or parameter.opts)[-1]
    if not isinstance(value, str | int | float | Path):
        return option
    return f"{option} {value}"
