"""Check for options that contradict each other or have no effect, before any work is done.

All commands use one table of conflicts. Combinations that depend on the checkpoint or the layout
(such as ``--prefix`` with a layout that is written as a directory) are checked later.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
from click.core import ParameterSource

Values = Mapping[str, Any]
MASKS = ("random", "block", "grid")


class Conflict(NamedTuple):
    """A parameter that a command refuses, or two parameters that cannot be specified together."""

    one: str
    """The name of a parameter of the command's function."""

    other: str | None
    """The name of a second parameter; None if the first parameter alone is refused."""

    why: str
    """The reason, and what to do."""

    when: Callable[[Values], bool] = lambda _: True
    """A function that returns whether the values of the parameters conflict."""


def _sets(name: str) -> Callable[[Values], bool]:
    return lambda values: any(t.partition("=")[0] == name for t in values["assignments"])


def _no_xla(framework: str, mode: str) -> Conflict:
    """Return the conflict between PyTorch and the mode xla, which PyTorch does not have.

    Args:
        framework: the name of the parameter that specifies the framework.
        mode: the name of the parameter that specifies the mode.
    """
    option = f"--{mode.replace('_', '-')}"
    return Conflict(
        framework,
        mode,
        f"XLA is available for TensorFlow and JAX only; use {option} compiled for PyTorch",
        lambda values: values[mode] == "xla" and values[framework] in WITHOUT_XLA,
    )


WITHOUT_XLA = ("torch", "transformers", "timm", "terratorch")
INPUTS = (
    Conflict("inputs", "images", "both specify the images; leave one out"),
    Conflict(
        "inputs",
        "seed",
        "the file contains the images and, optionally, the noise; leave --seed out",
    ),
    Conflict("inputs", "batch", "all images of the file are used; leave --batch out"),
)
IMAGES = Conflict(
    "images",
    None,
    "specifies the images for --infer; add --infer or leave --images out",
    lambda values: not values["use_infer"],
)
NOTHING_MASKED = "--unmasked removes no patches; leave one out"
# A comparison with reference results uses its own image and settings.
PUBLISHED = tuple(
    Conflict(
        "published",
        name,
        "reference results come with an image and a tolerance; leave out one of the two options",
    )
    for name in (
        *("b", "certify", "reports", "against", "dtypes", "mask_ratio_of_run", "inputs", "images"),
        *("seed", "batch", "unmasked", "gradients", "require_proof", "state_key", "use_infer"),
        *("framework_b", "device_b", "python_b", "mode_b", "task", "isolate", "quick"),
    )
)
# A single checkpoint is compared with its certificate, which contains inputs and task.
REPLAYED = tuple(
    Conflict(
        name,
        None,
        "needs two checkpoints, and only A is specified; pass B too, or leave the option out",
        lambda values: values["b"] is None and values["published"] is None,
    )
    for name in ("task", "use_infer", "state_key")
)
QUICK = tuple(
    Conflict("quick", name, f"--quick {why}; leave one out")
    for name, why in (
        ("dtypes", "runs float64 only"),
        ("isolate", "compares no intermediate activations"),
        ("certify", "compares less than a certificate contains"),
    )
)
CONFLICTS: Mapping[str, tuple[Conflict, ...]] = {
    "inspect": (IMAGES,),
    "convert": (
        IMAGES,
        Conflict(
            "num_labels",
            "task",
            "a new classifier head sets the task to `classify`; leave --task out",
            lambda values: values["task"] != "classify",
        ),
        Conflict(
            "sincos_positions",
            None,
            "computes position embeddings for another image size; add --image-size",
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
        *QUICK,
        Conflict("unmasked", "mask_ratio_of_run", NOTHING_MASKED),
        _no_xla("framework_a", "mode_a"),
        _no_xla("framework_b", "mode_b"),
    ),
    "reconstruct": (
        Conflict(
            "mask",
            "mask_ratio",
            "a mask image specifies which patches are removed; leave --mask-ratio out",
            lambda values: values["mask"] not in MASKS,
        ),
        Conflict(
            "mask",
            "seed",
            "this mask is not random; leave --seed out",
            lambda values: values["mask"] not in ("random", "block"),
        ),
        Conflict("inputs", "images", "both specify the images; leave one out"),
        Conflict(
            "inputs",
            "fit",
            "the arrays of --inputs already have the model's image size; leave --fit out",
        ),
    ),
    "timeline": (Conflict("inputs", "images", "both specify the images; leave one out"),),
    "features": (
        Conflict("inputs", "folder", "both specify the images; leave one out"),
        Conflict(
            "mask_ratio", None, "has no effect here, because no patch is removed; leave it out"
        ),
    ),
    "sweep": (
        Conflict("dry_run", "reports", "a dry run produces no results; leave one out"),
        Conflict("dry_run", "fail_fast", "a dry run cannot fail; leave one out"),
        Conflict("to", "assignments", "both set the field `to`; leave one out", _sets("to")),
        Conflict(
            "target", "assignments", "both set the field `target`; leave one out", _sets("target")
        ),
        Conflict(
            "verify", "assignments", "both set the field `verify`; leave one out", _sets("verify")
        ),
        Conflict(
            "workers",
            "engine",
            "--workers limits the processes on this machine, but Ray schedules jobs by --threads; "
            "leave --workers out",
            lambda values: values["engine"] == "ray",
        ),
        Conflict(
            "address",
            None,
            "specifies a Ray cluster; add --engine ray",
            lambda values: values["engine"] != "ray",
        ),
    ),
    "download": (
        Conflict(
            "overwrite",
            None,
            "applies to the file at --output; add --output, or leave --overwrite out",
            lambda values: values["output"] is None,
        ),
    ),
    "publish": (
        Conflict(
            "create_pr",
            "branch",
            "a pull request is always opened against main; leave --branch out",
            lambda values: values["branch"] != "main",
        ),
        *(
            Conflict(
                name,
                None,
                "describes a licence without an identifier; add --license other",
                lambda values: values["license_"] != "other",
            )
            for name in ("license_name", "license_link")
        ),
    ),
}


class CheckedCommand(click.Command):
    """A click command that refuses options that contradict each other or have no effect."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command.

        Raises:
            UsageError: two options contradict each other, or an option has no effect.
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
    """Return an option and its value as written on the command line, or an argument's name."""
    parameter = next(p for p in ctx.command.params if p.name == name)
    if not isinstance(parameter, click.Option):
        return str(parameter.human_readable_name)
    value, option = ctx.params[name], parameter.opts[-1]
    if parameter.is_flag:
        return option if value else (parameter.secondary_opts or parameter.opts)[-1]
    if not isinstance(value, str | int | float | Path):
        return option
    return f"{option} {value}"
