"""``mae-convert`` and ``python -m mae_convert``: the command line."""

import os
import signal


def main() -> None:
    """Run the command line; an interrupt while it is being imported is told by the status alone."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from mae_convert.cli import main as run

    run()


if __name__ == "__main__":
    main()
