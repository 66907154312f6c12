"""Plan a publication: which files will be in the repository; nothing is uploaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mae_convert.errors import CheckpointError, MaeConvertError, Option
from mae_convert.publish.artifacts import Part, check_together, read_part
from mae_convert.publish.card import marked, merged_card, metadata_of, new_card
from mae_convert.publish.card_body import WARNING, Facts, section
from mae_convert.publish.example_image import CREDIT, picture_of
from mae_convert.publish.licence import Licence, decide_licence
from mae_convert.publish.metadata import metadata
from mae_convert.publish.repository import CARD, Remote, Target, check_card, look
from mae_convert.publish.staging import Staged, stage, stage_parts, superseded
from mae_convert.sources.client import account_of, address_in, client, is_unreachable, speaking
from mae_convert.sources.select_files import KERAS_SUFFIXES, PREFERENCE

PICTURE = "reconstruction.png"


@dataclass(frozen=True)
class Wish:
    """What a user wants to publish, and how.

    Attributes:
        directory: the model directory.
        target: where to.
        also: further directories or files of the same model in other layouts.
        unverified: go without a certificate.
        licence: what the user says about it: ``license``, ``license_name``, ``license_link``.
        base_model: repository that the model derives from, where the user says one.
    """

    directory: Path
    target: Target
    also: tuple[Path, ...] = ()
    unverified: bool = False
    licence: Mapping[str, str] = field(default_factory=dict)
    base_model: str | None = None


@dataclass(frozen=True)
class Publication:
    """What will be done: nothing was sent yet.

    Attributes:
        wish: what was asked for.
        parts: what is published.
        remote: how the repository is.
        account: whose token it is; None where there is none, which is enough to look.
        staged: all files that are to be there, by path.
        add: those of them that are new or changed.
        delete: files that go.
        kept: weights in the repository that this publication is not about.
        licence: what it is published under.
        added_metadata: what is added to the metadata of a card that is there.
        notes: what the user should know.
    """

    wish: Wish
    parts: Sequence[Part]
    remote: Remote
    account: str | None
    staged: Mapping[str, Staged]
    add: Sequence[Staged]
    delete: Sequence[str]
    kept: Sequence[str]
    licence: Licence
    added_metadata: Mapping[str, Any]
    notes: Sequence[str]

    @property
    def card(self) -> str:
        """The resulting card."""
        content = self.staged[CARD].content
        assert isinstance(content, bytes)
        return content.decode()


def plan_publication(wish: Wish, *, dry_run: bool = False) -> Publication:
    """Plan a publication, and refuse what must not be published.

    Args:
        wish: what is to be published.
        dry_run: nothing will be uploaded, so neither a token nor a connection to the Hub is needed.

    Raises:
        CheckpointError: there is no model, or no certificate.
        MaeConvertError: the certificate does not cover it, or its licence is not specified.
        HubError: nobody is logged in, or the repository may not be written to.
        MissingRequirementError: the Hub cannot be reached.
    """
    parts = _read_parts(wish)
    account, remote, notes = _look(wish.target, dry_run=dry_run)
    licence = decide_licence(
        parts[0], wish.licence, metadata_of(remote.card) if remote.card else {}
    )
    staged = stage_parts(parts, remote.entries)
    picture, credit = _picture(wish.directory, parts[0], staged, remote)
    if picture is not None:
        staged[PICTURE] = picture
    shown = PICTURE if picture is not None or credit else None
    facts = Facts(wish.target.repo_id, parts, licence, staged, shown, credit)
    text, added = _card(wish, facts, remote.card)
    if account is not None:
        with speaking(wish.target.repo_id):
            check_card(text)
    staged[CARD] = stage(CARD, text.encode())
    there = remote.entries
    delete = superseded(staged, there)
    return Publication(
        wish=wish,
        parts=parts,
        remote=remote,
        account=account,
        staged=staged,
        add=[file for file in staged.values() if not file.is_at(there.get(file.path))],
        delete=delete,
        kept=[path for path in there if _is_weights(path) and path not in (*staged, *delete)],
        licence=licence,
        added_metadata=added,
        notes=(*notes, *licence.notes),
    )


def _read_parts(wish: Wish) -> list[Part]:
    if wish.directory.is_file():
        raise MaeConvertError(
            f"{wish.directory} is a file",
            hint=("name the model directory, and further layouts with ", Option("also")),
            path=wish.directory,
        )
    paths = (wish.directory, *wish.also)
    parts = [read_part(path, unverified=wish.unverified) for path in paths]
    check_together(parts)
    return parts


def _is_weights(path: str) -> bool:
    return path in PREFERENCE or path.endswith(KERAS_SUFFIXES)


def _look(target: Target, *, dry_run: bool) -> tuple[str | None, Remote, tuple[str, ...]]:
    """Return the account, the state of the repository, and notes about it."""
    address_in("HF_ENDPOINT")  # with another value, the client cannot even be imported
    from huggingface_hub import get_token

    with speaking(target.repo_id):
        from huggingface_hub.utils import validate_repo_id

        validate_repo_id(target.repo_id)
        if "/" not in target.repo_id:
            raise MaeConvertError(
                f"{target.repo_id} has no owner",
                hint=f"write the repository as owner/{target.repo_id}",
            )
        api = client()
        try:
            account = None
            if get_token() or not dry_run:
                account = account_of(api)
            return account, look(api, target, account), ()
        except Exception as error:
            if not dry_run or not is_unreachable(error):
                raise
        note = (
            f"the Hub cannot be reached: the output assumes that {target.repo_id} is a new "
            "repository"
        )
        return None, Remote(False, target.private, target.branch), (note,)


def _picture(
    directory: Path, part: Part, staged: Mapping[str, Staged], remote: Remote
) -> tuple[Staged | None, str]:
    """Return the image to publish, and its credits.

    It is the directory's own image, or a new one. If the repository has an image of the same
    weights, that image is kept: one computed on another machine would differ in its last bits.
    """
    if (directory / PICTURE).is_file():
        return stage(PICTURE, directory / PICTURE), ""
    weights = [staged[path.name] for path in part.weights]
    if PICTURE in remote.entries and all(f.is_at(remote.entries.get(f.path)) for f in weights):
        return None, CREDIT
    made = picture_of(part.checkpoint)
    return (None, "") if made is None else (stage(PICTURE, made), CREDIT)


def _card(wish: Wish, facts: Facts, existing: str | None) -> tuple[str, dict[str, Any]]:
    """Return the card, and the metadata that was added to an existing one."""
    ours = marked(section(facts), warning=WARNING if wish.unverified else "")
    fields = metadata(facts.repo_id, facts.parts[0], facts.licence, wish.base_model)
    local = wish.directory / CARD
    if existing is None and local.is_file():
        try:
            existing = local.read_bytes().decode().removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"{local} is not UTF-8 text", hint="correct or remove it"
            ) from error
    if existing is None:
        title = facts.repo_id.partition("/")[2]
        return new_card(title, ours, fields, on_top=wish.unverified), {}
    return merged_card(existing, ours, fields, on_top=wish.unverified)
