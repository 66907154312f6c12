"""Where `save_pretrained` and `push_to_hub` put a model."""

from pathlib import Path
from typing import Any

from mae_convert.containers.output import require_ours
from mae_convert.containers.staging import staging_beside
from mae_convert.errors import OutputError
from mae_convert.hub import client, patiently, speaking
from mae_convert.in_memory.carried import Carried
from mae_convert.in_memory.saving import save_model
from mae_convert.packing import Packing


def save_into(
    model: Any, directory: Path, layout: str, carried: Carried, max_shard_size: int | None
) -> None:
    """Write a model directory, or put its files into one that holds others too.

    A directory that is new, empty or ours is replaced as a whole. Into any other the files are
    moved one by one when all are written; what else is there stays, a preprocessor's configuration
    too.

    Raises:
        OutputError: it cannot be written.
    """
    packing = Packing(max_shard_size=max_shard_size)
    directory = directory.absolute()
    directory.parent.mkdir(parents=True, exist_ok=True)
    if not _holds_others(directory):
        save_model(model, directory, layout, packing=packing, carried=carried, overwrite=True)
        return
    with staging_beside(directory) as folder:
        staged = folder / "model"
        save_model(model, staged, layout, packing=packing, carried=carried)
        for path in sorted(staged.iterdir()):
            kept = path.name == "preprocessor_config.json" and (directory / path.name).exists()
            if not kept:
                path.replace(directory / path.name)


def _holds_others(directory: Path) -> bool:
    if not directory.is_dir():
        return False
    try:
        require_ours(directory)
    except OutputError:
        return True
    return False


def push(
    directory: Path,
    repo_id: str,
    *,
    commit_message: str = "Upload a MAE model",
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Send the files of a model directory to a repository by one commit; return its address.

    Raises:
        HubError: the Hub refuses.
        MissingRequirementError: the Hub cannot be reached.
    """
    with speaking(repo_id):
        from huggingface_hub import CommitOperationAdd

        api = client()
        made = patiently(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
        files = [path for path in sorted(directory.iterdir()) if path.is_file()]
        done = api.create_commit(
            made.repo_id,
            [CommitOperationAdd(path.name, str(path)) for path in files],
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )
        return str(done.pr_url or done.commit_url)
