"""Limit the number of threads of NumPy; this module is imported before NumPy."""

from collections.abc import MutableMapping, Sequence

# Commands that compute no large matrix products and, without --infer, start no child processes,
# which would inherit the setting.
ONE_THREAD = ("convert", "fingerprint", "inspect", "layouts")


def limit_threads(arguments: Sequence[str], environment: MutableMapping[str, str]) -> None:
    """Set the number of threads to 1 for some commands, unless the user has set it.

    OpenBLAS, which NumPy loads, starts a thread for each processor. With two processors, starting
    them takes a seventh of the time of `inspect`; each further thread needs 41 MB of address space.
    """
    if arguments and arguments[0] in ONE_THREAD and "--infer" not in arguments:
        environment.setdefault("OPENBLAS_NUM_THREADS", "1")
