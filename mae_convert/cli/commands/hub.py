"""Commands that download checkpoints and publish them."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mae_convert.cli.completion import complete_official
from mae_convert.cli.contradictions import CheckedCommand
from mae_convert.cli.options import json_option, signing_options
from mae_convert.cli.streams import print_to_stderr
from mae_convert.text import for_terminal

if TYPE_CHECKING:
    from mae_convert.verify.signing import Signer


@click.command(cls=CheckedCommand)
@json_option
def catalog(as_json: bool) -> None:
    """List the official checkpoints and their purposes.

    Example:

    \b
        mae-convert catalog
    """
    from mae_convert.cli.output import catalog as show
    from mae_convert.cli.streams import print_json
    from mae_convert.families import official_files
    from mae_convert.sources.official_download import confirmed_fingerprints

    fingerprints = confirmed_fingerprints()
    if as_json:
        print_json(show.catalog_json(official_files(), fingerprints))
    else:
        show.catalog(official_files(), fingerprints)


@click.command(cls=CheckedCommand)
@click.argument("name", shell_complete=complete_official)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Also copy the file to this path. [default: the file is only in the cache]",
)
@click.option("--overwrite", is_flag=True, help="Replace the file at --output if it exists.")
@json_option
def download(name: str, output: Path | None, overwrite: bool, as_json: bool) -> None:
    """Download an official checkpoint and check its hash.

    The path of the file is printed on standard output.

    Example:

    \b
        mae-convert download mae_visualize_vit_base
    """
    from mae_convert.cli.streams import print_json
    from mae_convert.sources.official_download import download as fetch

    report = fetch(name, output, overwrite=overwrite)
    if as_json:
        print_json(report)
        return
    for field, value in report.items():
        if field != "path":
            print_to_stderr(f"{field:<10}{value}")
    click.echo(for_terminal(report["path"]))


@click.command(cls=CheckedCommand)
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("repo_id")
@click.option(
    "--also",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="PATH",
    help="The same model in another layout: a directory with tf_model.h5, or a .weights.h5 file.",
)
@click.option(
    "--branch",
    default="main",
    show_default=True,
    help="Branch to commit to; created if it does not exist.",
)
@click.option("--create-pr", is_flag=True, help="Propose the change as a pull request.")
@click.option(
    "--private", is_flag=True, help="If the repository does not exist, create it as private."
)
@click.option(
    "--license",
    "license_",
    metavar="ID",
    help="Licence identifier, if the source does not specify it.",
)
@click.option("--license-name", metavar="TEXT", help="With --license other: name of the licence.")
@click.option(
    "--license-link", metavar="URL", help="With --license other: URL of the licence text."
)
@click.option(
    "--base-model",
    metavar="REPO_ID",
    help="Repository of the model that this model was derived from.",
)
@signing_options(prefix="sign-")
@click.option(
    "--unverified",
    is_flag=True,
    help="Publish without a certificate; the model card states that the weights were not verified.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Show the files, their sizes and the model card, without uploading anything.",
)
@json_option
def publish(
    directory: Path,
    repo_id: str,
    also: tuple[Path, ...],
    branch: str,
    create_pr: bool,
    private: bool,
    license_: str | None,
    license_name: str | None,
    license_link: str | None,
    base_model: str | None,
    signer: "Signer | None",
    unverified: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Publish verified weights to the Hugging Face Hub.

    DIR contains converted weights and the certificate of `verify --certify`; the model card
    describes the verification. All files are uploaded in one commit; then they are downloaded and
    compared. Exit status 1 if they differ.

    Example:

    \b
        mae-convert publish my-mae someone/my-mae --dry-run
    """
    from mae_convert.cli.output import publication as show
    from mae_convert.cli.streams import print_json
    from mae_convert.publish import PublishRequest, Target, plan_publication
    from mae_convert.publish import publish as send

    options = {"license": license_, "license_name": license_name, "license_link": license_link}
    licence = {name: value for name, value in options.items() if value}
    target = Target(repo_id, branch, create_pr, private)
    request = PublishRequest(directory, target, also, unverified, licence, base_model, signer)
    if sys.stderr.isatty():
        click.echo("reading the model, its certificate and the repository ...", err=True)
    publication = plan_publication(request, dry_run=dry_run)
    if not as_json:
        show.plan(publication, with_card=dry_run)
    if dry_run:
        if as_json:
            print_json(show.plan_json(publication))
        return 0
    published = send(publication)
    print_json(show.published_json(published)) if as_json else show.published(published)
    return 1 if published.wrong else 0
