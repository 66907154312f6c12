"""``python -m mae_convert``: the command line."""

from mae_convert.cli import main

if __name__ == "__main__":
    main()
