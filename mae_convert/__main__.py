"""``mae-convert`` and ``python -m mae_convert``: the command line."""

import sys

if (
    __name__ == "__main__"
    and not sys.flags.safe_path
    and not __file__.startswith(f"{sys.path[0]}/mae_convert/")
):
    # `python -m` adds the current directory to the import path before the standard library: a
    # random.py in a directory of checkpoints must not be imported. The directory of this project's
    # source code is allowed.
    del sys.path[0]

import gc
import os
import signal

from mae_convert.cli.threads import limit_threads
from mae_convert.errors.shortage import shortage, too_little_address_space

NEW_OBJECTS = 100_000
"""The number of new objects after which the garbage collector runs."""


def main() -> None:
    """Run the command line; Ctrl-C during the imports ends the process with exit status 130."""
    from mae_convert import UNSUPPORTED, is_supported

    if not is_supported():
        sys.stderr.write(f"mae-convert: {UNSUPPORTED}\n")
        sys.exit(3)
    # The imports and reading a file create about 100 000 objects, almost all of which stay in use.
    # By default, the collector runs after 700 new objects; this took 7 % of the time of `inspect`.
    gc.set_threshold(NEW_OBJECTS)
    limit_threads(sys.argv[1:], os.environ)
    # Child processes of this command do not import from the current directory either.
    os.environ["PYTHONSAFEPATH"] = "1"
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    try:
        if sentence := too_little_address_space():
            _fail(sentence)
        from mae_convert.cli.main import main as run
    except Exception as error:  # no code for messages is loaded yet
        if (sentence := shortage(error)) is None:
            raise
        _fail(sentence)
    run()


def _fail(sentence: str) -> None:
    """Print a message and exit at once, because there may be too little memory to clean up."""
    try:
        os.write(2, f"mae-convert: {sentence}\n".encode())
    finally:
        os._exit(2)


if __name__ == "__main__":
    main()
