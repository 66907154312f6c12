"""Plan a publication: determine the files of the repository without uploading anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mae_convert.errors import CheckpointError, MaeConvertError, Option
from mae_convert.formats.container import SIGNATURE_NAMES
from mae_convert.publish.artifacts import Artifact, beside, check_together, read_artifact
from mae_convert.publish.card import card_metadata, marked, merged_card, metadata_of, new_card
from mae_convert.publish.card_body import WARNING, CardData, section
from mae_convert.publish.example_image import CREDIT, image_of
from mae_convert.publish.licence import Licence, decide_licence
from mae_convert.publish.repository import CARD, Remote, Target, check_card, remote_state
from mae_convert.publish.upload_files import Staged, stage, stage_artifacts, superseded
from mae_convert.sources.client import (
    account_of,
    address_in,
    client,
    hub_errors_explained,
    is_unreachable,
)
from mae_convert.sources.select_files import KERAS_SUFFIXES, PREFERENCE
from mae_convert.verify.attestation import attest
from mae_convert.verify.signing import Signer

IMAGE = "reconstruction.png"


@dataclass(frozen=True)
class PublishRequest:
    """A request to publish a model."""

    directory: Path
    """The model directory."""

    target: Target
    """The repository."""

    also: tuple[Path, ...] = ()
    """Further directories or files of the same model in other layouts."""

    unverified: bool = False
    """Whether to publish without a certificate."""

    licence: Mapping[str, str] = field(default_factory=dict)
    """The licence as specified: ``license``, ``license_name``, ``license_link``."""

    base_model: str | None = None
    """The repository from which the model is derived, if specified."""

    signer: Signer | None = None
    """The signer of the directory; None if it is not signed."""


@dataclass(frozen=True)
class Publication:
    """A planned publication."""

    request: PublishRequest
    """The request to publish."""

    artifacts: Sequence[Artifact]
    """The models to publish."""

    remote: Remote
    """The state of the repository before the publication."""

    account: str | None
    """The Hub account to which the access token belongs; None in a dry run without a token."""

    staged: Mapping[str, Staged]
    """All files that the repository should contain, by path."""

    add: Sequence[Staged]
    """The files that are new or changed."""

    delete: Sequence[str]
    """The paths of the files that are deleted from the repository."""

    kept: Sequence[str]
    """Weights in the repository that are not a part of this publication and stay there."""

    licence: Licence
    """The licence of the published weights."""

    added_metadata: Mapping[str, Any]
    """Fields that are added to the metadata of an existing card."""

    notes: Sequence[str]
    """Notes for the user."""

    @property
    def card(self) -> str:
        """The text of the model card after the publication."""
        content = self.staged[CARD].content
        assert isinstance(content, bytes)
        return content.decode()


def plan_publication(request: PublishRequest, *, dry_run: bool = False) -> Publication:
    """Plan a publication; raise an error if the model must not be published.

    Args:
        request: the request.
        dry_run: nothing will be uploaded, so neither a token nor a connection to the Hub is
            required.

    Raises:
        CheckpointError: there is no model, or no certificate.
        MaeConvertError: the certificate does not cover the model, or the licence of the model is
            not specified.
        HubError: no account is logged in, or the Hub refuses access to the repository.
        MissingRequirementError: the Hub cannot be reached.
    """
    artifacts = _read_artifacts(request)
    account, remote, notes = _remote_state(request.target, dry_run=dry_run)
    licence = decide_licence(
        artifacts[0], request.licence, metadata_of(remote.card) if remote.card else {}
    )
    staged = stage_artifacts(artifacts, remote.entries)
    image, credit = _image(request.directory, artifacts[0], staged, remote)
    if image is not None:
        staged[IMAGE] = image
    shown = IMAGE if image is not None or credit else None
    data = CardData(request.target.repo_id, artifacts, licence, staged, shown, credit)
    text, added = _card(request, data, remote.card)
    if account is not None:
        with hub_errors_explained(request.target.repo_id):
            check_card(text)
    staged[CARD] = stage(CARD, text.encode())
    if request.signer is not None and not dry_run:
        staged |= _signed(request.directory, request.signer, artifacts[0], licence, staged)
    there = remote.entries
    delete = superseded(staged, there)
    return Publication(
        request=request,
        artifacts=artifacts,
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


def _read_artifacts(request: PublishRequest) -> list[Artifact]:
    if request.directory.is_file():
        raise MaeConvertError(
            f"{request.directory} is a file",
            hint=(
                *("specify a model directory, and further layouts with ", Option("also"), "; if "),
                "the layout is written only as a file, convert to a file in a new directory, such"
                f" as model/{request.directory.name}, and run `mae-convert verify SOURCE model"
                " --certify`",
            ),
            path=request.directory,
        )
    paths = (request.directory, *request.also)
    artifacts = [read_artifact(path, unverified=request.unverified) for path in paths]
    check_together(artifacts)
    return artifacts


def _signed(
    directory: Path,
    signer: Signer,
    artifact: Artifact,
    licence: Licence,
    staged: Mapping[str, Staged],
) -> dict[str, Staged]:
    """Sign the published files of the model directory; return the files of the signature by name.

    Args:
        directory: the model directory.
        signer: the identity or key that signs.
        artifact: the model in the directory.
        licence: the licence, which the signed statement contains.
        staged: the files to publish, by their path in the repository.

    Raises:
        MaeConvertError: the directory has no certificate, or not all of its files are published at
            the root of the repository (see `stage_artifacts`).
        MissingRequirementError: the package that signs is not installed.
    """
    names = [*(path.name for path in artifact.weights), *beside(artifact)]
    if artifact.certificate is None or not all(name in staged for name in names):
        raise MaeConvertError(
            f"{directory} cannot be signed: its files must be certified and at the root of the "
            "repository",
            hint=("publish it to a separate repository, or leave out ", Option("sign")),
        )
    attest(directory, signer, files=names, licence=licence.name)
    return {name: stage(name, directory / name) for name in SIGNATURE_NAMES}


def _is_weights(path: str) -> bool:
    return path in PREFERENCE or path.endswith(KERAS_SUFFIXES)


def _remote_state(target: Target, *, dry_run: bool) -> tuple[str | None, Remote, tuple[str, ...]]:
    """Return the Hub account, the state of the repository, and notes for the user.

    The account is None in a dry run without an access token or without a connection.
    """
    address_in("HF_ENDPOINT")  # an error for an invalid URL, with which the import would fail
    from huggingface_hub import get_token

    with hub_errors_explained(target.repo_id):
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
            return account, remote_state(api, target, account), ()
        except Exception as error:
            if not dry_run or not is_unreachable(error):
                raise
        note = (
            f"the Hub cannot be reached: the output assumes that {target.repo_id} is a new "
            "repository"
        )
        return None, Remote(False, target.private, target.branch), (note,)


def _image(
    directory: Path, artifact: Artifact, staged: Mapping[str, Staged], remote: Remote
) -> tuple[Staged | None, str]:
    """Return the image to upload, or None, and the credits of the photographs in the card's image.

    An image in the model directory has precedence over a new image. If the repository already has
    an image of the same weights, no new image is created, because images from different machines
    differ in their last bits.
    """
    if (directory / IMAGE).is_file():
        return stage(IMAGE, directory / IMAGE), ""
    weights = [staged[path.name] for path in artifact.weights]
    if IMAGE in remote.entries and all(f.is_at(remote.entries.get(f.path)) for f in weights):
        return None, CREDIT
    made = image_of(artifact.checkpoint)
    return (None, "") if made is None else (stage(IMAGE, made), CREDIT)


def _card(
    request: PublishRequest, data: CardData, existing: str | None
) -> tuple[str, dict[str, Any]]:
    """Return the card, and the metadata that was added to an existing card; {} for a new card."""
    ours = marked(section(data), warning=WARNING if request.unverified else "")
    fields = card_metadata(data.repo_id, data.artifacts[0], data.licence, request.base_model)
    local = request.directory / CARD
    if existing is None and local.is_file():
        try:
            existing = local.read_bytes().decode().removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"{local} is not UTF-8 text", hint="correct or remove it"
            ) from error
    if existing is None:
        title = data.repo_id.partition("/")[2]
        return new_card(title, ours, fields, on_top=request.unverified), {}
    return merged_card(existing, ours, fields, on_top=request.unverified)
