"""Runs a script in a forked process: python forked_script.py SCRIPT ARGUMENTS.

As in a new process, modules beside the script and in the folders of ``$PYTHONPATH`` can be
imported.
"""

import os
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    del sys.argv[0]
    folders = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:0] = [str(Path(sys.argv[0]).parent), *folders]
    runpy.run_path(sys.argv[0], run_name="__main__")
