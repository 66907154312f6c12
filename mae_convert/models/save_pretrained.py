"""Write models to directories and to the Hub, for `save_pretrained` and `push_to_hub`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mae_convert.convert.target import Packing, byte_count
from mae_convert.errors import ConfigurationError, OutputError
from mae_convert.files.staging import staging_beside
from mae_convert.formats.write import require_own_files
from mae_convert.models.model_names import SET_ELSEWHERE
from mae_convert.runtime.metadata import ModelMetadata
from mae_convert.runtime.saving import save_model
from mae_convert.sources.client import client, hub_errors_explained, with_retries

# The arguments of `push_to_hub` besides the repository.
PUSH_ARGUMENTS = ("commit_message", "commit_description", "private", "revision", "create_pr")
# Arguments that control how transformers writes a model; they have no effect here.
WITHOUT_EFFECT = (
    "safe_serialization",
    "save_function",  # transformers uses it only if weights are not written as safetensors
    "save_original_format",
    "save_peft_format",
    "use_temp_dir",
    "version",
)
REFUSED = {
    "variant": "the names of weight files are fixed; leave it out",
    "distributed_checkpoint": "gather the weights of all processes first, then save the model",
    "saved_model": "write a SavedModel with model.export of a Keras model",
    "signatures": "pass them to model.export",
    "tags": "they belong on a model card, which `mae-convert publish` writes",
    **SET_ELSEWHERE,
}


def push_arguments(options: Mapping[str, Any], caller: str, *more: str) -> dict[str, Any]:
    """Return the arguments for `push`; raise an error for unsupported arguments.

    Args:
        options: the arguments, with the names of transformers.
        caller: the name of the method.
        more: the names of further arguments that the method accepts.

    Raises:
        ConfigurationError: an argument of transformers is not supported.
        TypeError: an argument is unknown.
    """
    names = (*more, *PUSH_ARGUMENTS)
    for name, value in options.items():
        if name in REFUSED and value not in (None, False):
            raise ConfigurationError(
                f"{name} is not supported by {caller}", hint=f"{REFUSED[name]}"
            )
    if unknown := sorted(options.keys() - {*names, *WITHOUT_EFFECT, *REFUSED}):
        raise TypeError(f"{caller} has no argument {unknown[0]!r}; it takes {', '.join(names)}")
    return {name: options[name] for name in PUSH_ARGUMENTS if options.get(name) is not None}


def save_into(
    model: Any,
    directory: Path,
    layout: str,
    metadata: ModelMetadata,
    max_shard_size: int | str | None,
) -> None:
    """Write a model directory, or add its files to a directory with other files.

    A directory that is empty or was written by mae-convert is replaced. In any other directory,
    the files get their final names one by one after all of them are written; other files, and an
    existing preprocessor_config.json, are not changed.

    Args:
        model: the model.
        directory: the directory.
        layout: the name of the layout that is written.
        metadata: the metadata that is written with the weights.
        max_shard_size: the maximum size of a weights file, as a number of bytes or a text such
            as "5GB"; larger weights are written in shards. None to write a single weights file.

    Raises:
        OutputError: the directory cannot be written.
    """
    largest = None if max_shard_size is None else byte_count(max_shard_size)
    packing = Packing(max_shard_size=largest)
    directory = directory.absolute()
    directory.parent.mkdir(parents=True, exist_ok=True)
    if not _has_other_files(directory):
        save_model(model, directory, layout, packing=packing, metadata=metadata, overwrite=True)
        return
    with staging_beside(directory) as folder:
        staged = folder / "model"
        save_model(model, staged, layout, packing=packing, metadata=metadata)
        for path in sorted(staged.iterdir()):
            is_kept = path.name == "preprocessor_config.json" and (directory / path.name).exists()
            if not is_kept:
                path.replace(directory / path.name)


def _has_other_files(directory: Path) -> bool:
    if not directory.is_dir():
        return False
    try:
        require_own_files(directory)
    except OutputError:
        return True
    return False


def push(
    directory: Path,
    repo_id: str,
    *,
    commit_message: str = "Upload an MAE model",
    commit_description: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a model directory's files to a repository in one commit; return the commit's URL.

    Args:
        directory: the model directory.
        repo_id: ``owner/name``; the repository is created if needed.
        commit_message: the first line of the commit's message.
        commit_description: the rest of the commit's message, or None.
        private: whether a new repository is private; None for the owner's default.
        revision: the branch; None for the main branch.
        create_pr: open a pull request instead of committing to the branch, and return its URL.

    Raises:
        HubError: the Hub refuses the request.
        MissingRequirementError: the Hub cannot be reached.
    """
    with hub_errors_explained(repo_id):
        from huggingface_hub import CommitOperationAdd

        api = client()
        made = with_retries(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
        files = [path for path in sorted(directory.iterdir()) if path.is_file()]
        commit = api.create_commit(
            made.repo_id,
            [CommitOperationAdd(path.name, str(path)) for path in files],
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )
        return str(commit.pr_url or commit.commit_url)
