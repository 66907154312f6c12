"""Time the loading of a ViT-B checkpoint into a model; each measurement runs in a new process.

For ``from_pretrained``, the first and the second call are timed, without imports; for the
other methods of loading, the whole process is timed.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from bench_conversions import checkpoint, converted
from bench_measure import Run, median, run

TWICE = """
import sys, time
{imports}
for _ in range(2):
    wall, processor = time.perf_counter(), time.process_time()
    model = ViTMAEForPreTraining.from_pretrained(sys.argv[1]{arguments})
    print(time.perf_counter() - wall, time.process_time() - processor)
    del model
"""
OURS = "from mae_convert.models import ViTMAEForPreTraining"
THEIRS = """from transformers import ViTMAEForPreTraining
import transformers
transformers.utils.logging.disable_progress_bar()"""
TORCH = """
import sys, torch
from reference_models.pytorch import ViTMAEConfig, ViTMAEForPreTraining
model = ViTMAEForPreTraining(ViTMAEConfig())
model.load_state_dict(torch.load(sys.argv[1], weights_only=True)["model"])
"""
LOAD = "import sys\nfrom mae_convert import load_model\nload_model(sys.argv[1]{arguments})"
HEADS = ", num_heads=12, decoder_num_heads=16"
IN_PROCESS = {
    "from_pretrained": TWICE.format(imports=OURS, arguments=""),
    "from_pretrained, mmap=False": TWICE.format(imports=OURS, arguments=", mmap=False"),
    "from_pretrained of transformers": TWICE.format(imports=THEIRS, arguments=""),
}
WHOLE = {
    "load_model(.pth)": LOAD.format(arguments=HEADS),
    "load_model(.pth, mmap=True)": LOAD.format(arguments=HEADS + ", mmap=True"),
    "torch.load and load_state_dict": TORCH,
    "import torch": "import torch",
    'load_model(directory, "tensorflow")': LOAD.format(arguments=', "tensorflow"'),
    "import tensorflow, keras": "import tensorflow, keras",
}


def rows(folder: Path, rounds: int) -> Iterator[dict[str, object]]:
    """Yield a row of the table for each method of loading a model.

    Args:
        folder: the directory for the checkpoints.
        rounds: the number of measurements of each method.
    """
    directory, file = converted("base", folder, "transformers"), checkpoint("base", folder)
    programs = {**IN_PROCESS, **WHOLE}
    runs: dict[str, list[Run]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            path = (
                file if ".pth" in name or name in ("torch.load and load_state_dict",) else directory
            )
            runs[name].append(run([sys.executable, "-c", program, path], **QUIET))
    for name, these in runs.items():
        if name in IN_PROCESS:
            printed = [[float(text) for text in each.output.split()] for each in these]
            for number, call in enumerate(("first call", "second call")):
                yield _row(f"{name}, {call}", [p[2 * number : 2 * number + 2] for p in printed])
        else:
            yield _row(f"{name}, whole process", [[r.seconds, r.processor] for r in these])


QUIET = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}


def _row(name: str, times: list[list[float]]) -> dict[str, object]:
    walls, processor = zip(*times, strict=True)
    return {
        "what": name,
        "s": f"{median(walls):.2f}",
        "processor time, s": f"{median(processor):.2f}",
        "shortest, s": f"{min(walls):.2f}",
    }
