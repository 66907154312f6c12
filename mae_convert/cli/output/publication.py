"""Print the plan of a publication and its result."""

from typing import Any

from rich.table import Table as Grid

from mae_convert.cli.output.console import console, markup, table
from mae_convert.publish.publication_plan import Publication
from mae_convert.publish.publish import Published
from mae_convert.text import format_bytes, plural


def plan(publication: Publication, *, with_card: bool) -> None:
    """Print the repository, the changes to its files, the licence, and the model card."""
    out, remote, request = console(), publication.remote, publication.request
    kind = "existing" if remote.exists else "new"
    visibility = (
        "private" if remote.private else "public" if remote.exists else "by your account's default"
    )
    where = remote.revision + (" (new branch)" if remote.is_new_branch else "")
    if request.target.pull_request:
        where = remote.pull_request_url or "a new pull request to main"
    out.print(
        f"[bold]{markup(request.target.repo_id)}[/bold]  ({kind}, {visibility}), {markup(where)}"
    )
    out.print(_files(publication))
    layouts = plural(len(publication.artifacts), "layout")
    out.print(f"weights in {layouts}, {'NOT verified' if request.unverified else 'verified'}")
    licence = publication.licence
    out.print(f"licence: {markup(licence.name)}, {markup(licence.origin)}")
    for name in publication.kept:
        out.print(
            f"[yellow]unchanged[/yellow]: {markup(name)} is in the repository and not part of this "
            "upload"
        )
    if publication.added_metadata:
        out.print(f"added to the card's metadata: {markup(', '.join(publication.added_metadata))}")
    for note in publication.notes:
        out.print(f"[yellow]note[/yellow]: {markup(note)}")
    if with_card:
        out.print("\n[bold]README.md[/bold]\n")
        for line in publication.card.split("\n"):
            out.print(markup(line), soft_wrap=True)
        out.print("\nnothing was uploaded: --dry-run")


def _files(publication: Publication) -> Grid:
    grid = table("", "", "")
    grid.columns[-1].justify = "right"
    for path, what, count in _rows(publication):
        grid.add_row(f"  {what}", markup(path), "" if count is None else format_bytes(count))
    return grid


def _rows(publication: Publication) -> list[tuple[str, str, int | None]]:
    """Return the path, the planned change and the size in bytes of each file.

    The size is None if the file is deleted. Files in the root directory come first.
    """
    existing, added = publication.remote.entries, {file.path for file in publication.add}
    rows: list[tuple[str, str, int | None]] = []
    for path, file in publication.staged.items():
        changed = "replaces" if path in existing else "new"
        rows.append((path, changed if path in added else "unchanged", file.size))
    rows += [(path, "deleted", None) for path in publication.delete]
    return sorted(rows, key=lambda row: (row[0].count("/"), row[0]))


def plan_json(publication: Publication) -> dict[str, Any]:
    """Return the plan of a publication as a dictionary, for JSON output."""
    request, remote = publication.request, publication.remote
    return {
        "repository": request.target.repo_id,
        "exists": remote.exists,
        "revision": remote.revision,
        "pull_request": remote.pull_request_url,
        "verified": not request.unverified,
        "license": dict(publication.licence.fields),
        "files": [
            {"path": path, "action": what, "bytes": count}
            for path, what, count in _rows(publication)
        ],
        "stays": list(publication.kept),
        "notes": list(publication.notes),
        "card": publication.card,
    }


def published_json(result: Published) -> dict[str, Any]:
    """Return the result of a publication as a dictionary, for JSON output."""
    plan_ = plan_json(result.publication)
    return {
        **{name: value for name, value in plan_.items() if name != "card"},
        "commit": result.committed.commit,
        "url": result.committed.url,
        "pull_request": result.committed.pull_request_url,
        "committed": result.committed.is_new,
        "differs": dict(result.wrong),
    }


def published(result: Published) -> None:
    """Print the URL of the commit, and whether the Hub serves the files that were published."""
    out = console()
    committed = result.committed
    if not committed.is_new:
        out.print("the repository already has all of these files: no commit was created")
    for path, how in result.wrong.items():
        out.print(f"[red]differs[/red]  {markup(path)}: {markup(how)}")
    files = plural(len(result.publication.staged), "file")
    if result.wrong:
        out.print(f"[bold red]DIFFERENT[/bold red]: of {files} on the Hub,"
                  f" {len(result.wrong)} differ from the local files")  # fmt: skip
    else:
        out.print(f"[bold green]PUBLISHED[/bold green]: {files}, downloaded again and found equal")
    if committed.pull_request_url:
        out.print(markup(committed.pull_request_url), soft_wrap=True)
    out.print(markup(committed.url), soft_wrap=True)
