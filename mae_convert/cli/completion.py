"""Shell completion of the command line, for bash, zsh and fish.

The shell sets the environment variable ``_MAE_CONVERT_COMPLETE`` and runs the program. If the value
is ``bash_source``, the program prints the shell function to install; if it is ``bash_complete``,
the program prints the possible values. For zsh and fish, the values begin with ``zsh_`` and
``fish_`` instead of ``bash_``.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem


def _completing(
    names: Callable[[], Iterable[str]],
) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    def complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
        return [name for name in names() if name.startswith(incomplete)]

    return complete


def _layouts() -> Iterable[str]:
    from mae_convert.families import layout_names

    return layout_names()


def _official() -> Iterable[str]:
    from mae_convert.families import official_files

    return (official.name for official in official_files())


def _reference_results() -> Iterable[str]:
    from mae_convert.verify.reference_results import reference_result_names

    return reference_result_names()


def _frameworks() -> Iterable[str]:
    from mae_convert.runtime.run_options import FRAMEWORKS

    return FRAMEWORKS


complete_layouts = _completing(_layouts)
complete_official = _completing(_official)
complete_reference_results = _completing(_reference_results)
complete_frameworks = _completing(_frameworks)


def complete_source(incomplete: str) -> list[CompletionItem]:
    """Return the possible checkpoints: official names and files.

    If official names begin with `incomplete`, the result contains these names and the files in the
    current directory that begin with it. Otherwise, or if `incomplete` is empty, the shell
    completes file names itself.
    """
    official = [name for name in _official() if incomplete and name.startswith(incomplete)]
    if not official:
        return [CompletionItem(incomplete, type="file")]
    beside = sorted(path.name for path in Path.cwd().glob(f"{incomplete}*"))
    return [CompletionItem(name) for name in dict.fromkeys([*beside, *official])]
