"""How to load published weights in each framework, as Markdown."""

from collections.abc import Sequence

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.formats.directory import KERAS_SUFFIX
from mae_convert.publish.artifacts import Artifact


def loading(repo_id: str, artifacts: Sequence[Artifact]) -> str:
    """Return code that loads the model in PyTorch, TensorFlow and timm, converting it if needed."""
    blocks = [
        _pytorch(repo_id, artifacts),
        _tensorflow(repo_id, artifacts),
        _timm(repo_id, artifacts),
    ]
    return "\n\n".join(block for block in blocks if block)


def _first(artifacts: Sequence[Artifact], *layouts: str) -> Artifact | None:
    return next(
        (artifact for artifact in artifacts if artifact.checkpoint.layout.name in layouts), None
    )


def _code(title: str, language: str, lines: Sequence[str]) -> str:
    body = "\n".join(lines)
    return f"### {title}\n\n```{language}\n{body}\n```"


def _can_be(artifacts: Sequence[Artifact], layout: str, task: str | None = None) -> bool:
    """Return whether a layout can store the model of the artifacts for a task.

    Args:
        artifacts: the published checkpoints of one model.
        layout: the name of the layout.
        task: the task; None for the task of the model.
    """
    checkpoint = artifacts[0].checkpoint
    task = task or checkpoint.task
    entry = checkpoint.family.layouts.get(layout)
    holds = entry is not None and any(task in table.tasks for table in entry.tables)
    return (
        entry is not None and holds and entry.refusal(checkpoint.configuration.model, task) is None
    )


def _class(checkpoint: Checkpoint, library: str) -> str | None:
    """Return the name of a library's class for a model; None if the library has no such class."""
    class_path = checkpoint.family.models.get(library, {}).get(checkpoint.task)
    return class_path and class_path.partition(":")[2]


def _pytorch(repo_id: str, artifacts: Sequence[Artifact]) -> str:
    checkpoint = artifacts[0].checkpoint
    name = _class(checkpoint, "transformers")
    if name is None:
        return _code("PyTorch", "python", _reference_model(repo_id, checkpoint))
    if _first(artifacts, "transformers"):
        order = "  # takes pixel_values (N, T, C, H, W)" if checkpoint.family.clips else ""
        lines = [
            f"from transformers import {name}",
            "",
            f'model = {name}.from_pretrained("{repo_id}"){order}',
        ]
        return _code("PyTorch", "python", lines)
    if not _can_be(artifacts, "transformers"):
        return ""
    lines = [
        f"mae-convert convert hf://{repo_id} my-mae --to transformers",
        f"python -c \"from transformers import {name}; {name}.from_pretrained('my-mae')\"",
    ]
    return _code("PyTorch", "sh", lines)


def _reference_model(repo_id: str, checkpoint: Checkpoint) -> list[str]:
    """Return the lines of code that load and run the reference model.

    The card shows them if transformers has no class for the checkpoint.
    """
    shape = ", ".join(map(str, checkpoint.configuration.model.pixel_shape))
    axes = "(N, C, T, H, W)" if checkpoint.family.clips else "(N, C, H, W)"
    result = "last_hidden_state" if checkpoint.task == "encoder" else "logits"
    return [
        "import torch",
        "from mae_convert import load_model",
        "",
        f'model = load_model("hf://{repo_id}")',
        f"pixel_values = torch.zeros(1, {shape})  # {axes}, normalized",
        f"print(model(pixel_values).{result}.shape)",
    ]


def _tensorflow(repo_id: str, artifacts: Sequence[Artifact]) -> str:
    name = _class(artifacts[0].checkpoint, "keras")
    if _first(artifacts, "transformers-tf"):
        lines = [
            "# transformers up to 4.57; newer versions have no TensorFlow classes",
            f"from transformers import {name}",
            "",
            f'model = {name}.from_pretrained("{repo_id}")',
        ]
        return _code("TensorFlow", "python", lines)
    artifact = _first(artifacts, "keras")
    if artifact is None and not _can_be(artifacts, "keras"):
        return ""
    file = artifact.weights[0].name if artifact else "my-mae.keras"
    shell = f"mae-convert convert hf://{repo_id} {file} --to keras"
    if artifact:
        shell = f"hf download {repo_id} {file} --local-dir ."
    comment = "  # registers the models with Keras 3, on TensorFlow or JAX"
    lines = [
        "import keras",
        f"import reference_models.keras{comment}",
        "",
        f'model = keras.models.load_model("{file}")',
    ]
    if file.endswith(KERAS_SUFFIX):
        lines = [
            "from mae_convert.checkpoint.open import open_checkpoint",
            f"from reference_models.keras import {name}  # Keras 3, on TensorFlow or JAX",
            "",
            f'model = {name}(open_checkpoint("{file}").configuration.model)',
            f'model.load_weights("{file}")',
        ]
    code = "\n".join(lines)
    return f"### TensorFlow\n\n```sh\n{shell}\n```\n\n```python\n{code}\n```"


def _timm(repo_id: str, artifacts: Sequence[Artifact]) -> str:
    if _first(artifacts[:1], "timm"):
        lines = [
            "import timm",
            "",
            f'model = timm.create_model("hf-hub:{repo_id}", pretrained=True)',
        ]
        return _code("timm", "python", lines)
    task = artifacts[0].checkpoint.task
    usual_task = "classify" if task == "classify" else "encoder"
    if not _can_be(artifacts, "timm", usual_task):
        return ""
    drop = " --task encoder" if task == "pretrain" else ""
    shell = f"mae-convert convert hf://{repo_id} my-timm --to timm{drop}"
    code = 'import timm\n\nmodel = timm.create_model("local-dir:my-timm", pretrained=True)'
    return f"### timm\n\n```sh\n{shell}\n```\n\n```python\n{code}\n```"
