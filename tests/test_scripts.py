"""The scripts refuse wrong arguments in one sentence, without a traceback."""

import subprocess
import sys

from paths import ROOT

WRONG = {  # arguments, and a part of the error message
    "code_figures.py": (["."], "is not a checkout of the project"),
    "bench_original.py": (["."], "is not a clone of facebookresearch/mae"),
    "bench_peer.py": (["transformers"], "arguments are required"),
    "bench_worker.py": (["reference", "torch", "base", "encoder"], "invalid choice: 'torch'"),
    "benchmark.py": (["--folder", "file"], "is not a directory"),
    "family_speed.py": (["--model", "ViT"], "unknown model 'ViT': choose from VideoMAE"),
    "generate_docs.py": (["docs"], "unrecognized arguments: docs"),
    "torture.py": (["--checkpoint", "."], "is not a file"),
}


def test_scripts_refuse_wrong_arguments(tmp_path):
    (tmp_path / "file").touch()
    calls = [("code_figures.py", ["--help"], 0, "usage: ")]
    calls += [(script, arguments, 2, error) for script, (arguments, error) in WRONG.items()]
    processes = [
        subprocess.Popen(
            [sys.executable, ROOT / "scripts" / script, *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
        )
        for script, arguments, _, _ in calls
    ]  # fmt: skip
    for process, (script, _, status, words) in zip(processes, calls, strict=True):
        output = process.communicate()[0]
        assert (process.returncode, words in output) == (status, True), (script, output)
        assert "Traceback" not in output
