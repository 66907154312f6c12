"""The responses of the local Hub: one function for each request of the protocol."""

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hub_state import Account, Commit, File, Repository

REPO = r"([\w.-]+/[\w.-]+)"
LFS_FROM = 10_000_000  # bytes; smaller files are in LFS by their suffix
# The licences of the Hub's list that the tests use.
LICENCES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-sa-4.0", "cc0-1.0", "other"}


@dataclass(frozen=True)
class Request:
    """One request that was read completely."""

    hub: Any
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    uploaded: Path | None
    account: Account | None
    token: str | None

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def state(self) -> Any:
        return self.hub.state


@dataclass(frozen=True)
class Response:
    """A status, headers and a body: bytes, or a part of a file."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    file: Path | None = None
    start: int = 0
    end: int = 0

    @property
    def size(self) -> int:
        return self.end - self.start if self.file else len(self.body)

    def chunks(self, size: int) -> Iterator[bytes]:
        """Yield the body piece by piece."""
        if self.file is None:
            yield from (self.body[i : i + size] for i in range(0, len(self.body), size))
            return
        with self.file.open("rb") as stream:
            stream.seek(self.start)
            left = self.end - self.start
            while left > 0:
                chunk = stream.read(min(size, left))
                left -= len(chunk)
                yield chunk


class RefusedError(Exception):
    """A response that ends a request with an error."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        self.response = refusal(status, message, code)


def refusal(status: int, message: str, code: str | None = None) -> Response:
    """Return an error as the Hub sends it."""
    headers = {"X-Error-Message": message, "Content-Type": "application/json"}
    if code:
        headers["X-Error-Code"] = code
    return Response(status, headers, json.dumps({"error": message}).encode())


def json_response(value: Any, **headers: str) -> Response:
    """Return a response in JSON."""
    kind = {"Content-Type": "application/json"}
    return Response(200, {**kind, **headers}, json.dumps(value).encode())


def catching_refusals(route: Callable[..., Response]) -> Callable[..., Response]:
    """Return a route that converts `RefusedError` to its response."""

    def response(*arguments: Any) -> Response:
        try:
            return route(*arguments)
        except RefusedError as refused:
            return refused.response

    return response


def is_of(account: Account, repo_id: str) -> bool:
    return repo_id.partition("/")[0] in (account.name, *account.organisations)


def readable(request: Request, repo_id: str) -> Repository:
    """Return a repository that the account may read; others are reported as missing."""
    if request.token and request.account is None:
        raise RefusedError(401, "Invalid credentials in Authorization header")
    repository = request.state.repositories.get(repo_id)
    account = request.account
    seen = repository and (not repository.private or (account and is_of(account, repo_id)))
    if not seen:
        raise RefusedError(401 if account is None else 404, "Repository not found", "RepoNotFound")
    return repository


def writable(request: Request, repo_id: str, *, as_pull_request: bool = False) -> Repository:
    """Return a repository that the account may write to."""
    repository = readable(request, repo_id)
    account = request.account
    if account is None:
        raise RefusedError(401, "Invalid username or password.")
    if not account.may_write or not (as_pull_request or is_of(account, repo_id)):
        raise RefusedError(403, "You don't have the rights to write to this repository")
    return repository


def at(repository: Repository, revision: str) -> Commit:
    commit = repository.commit_at(revision)
    if commit is None:
        raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit


@catching_refusals
def whoami(request: Request) -> Response:
    if request.account is None:
        raise RefusedError(401, "Invalid credentials in Authorization header")
    role = "write" if request.account.may_write else "read"
    organisations = [{"name": name} for name in request.account.organisations]
    return json_response({"type": "user", "name": request.account.name, "orgs": organisations,
                "auth": {"type": "access_token", "accessToken": {"role": role}}})  # fmt: skip


@catching_refusals
def create_repository(request: Request) -> Response:
    asked = request.json
    account = request.account
    if account is None:
        raise RefusedError(401, "Invalid username or password.")
    owner = asked.get("organization") or account.name
    repo_id = f"{owner}/{asked['name']}"
    url = {"url": f"{request.hub.url}/{repo_id}", "name": repo_id}
    if not account.may_write or not is_of(account, repo_id):
        raise RefusedError(403, "You don't have the rights to create a model under this namespace")
    if repo_id in request.state.repositories:
        body = json.dumps({**url, "error": "You already created this model repo"}).encode()
        return Response(409, {"Content-Type": "application/json"}, body)
    request.state.create(repo_id, private=asked.get("visibility") == "private")
    return json_response(url)


@catching_refusals
def validate_yaml(request: Request) -> Response:
    match = re.match(r"\s*---\r?\n(.*?)\r?\n---", request.json["content"], re.DOTALL)
    try:
        metadata = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError as error:
        metadata, errors = {}, [str(error)]
    else:
        errors = []
    if metadata.get("license") not in {None, *LICENCES}:
        errors.append('"license" must be one of the known licences')
    if metadata.get("license") == "other" and "license_name" not in metadata:
        errors.append('"license_name" is required when license is other')
    for name in ("tags", "datasets"):
        if not isinstance(metadata.get(name, []), list | str):
            errors.append(f'"{name}" must be a list')
    warnings = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
    body = {"errors": [{"message": text} for text in errors], "warnings": warnings}
    response = json_response(body)
    return Response(400, response.headers, response.body) if errors else response


@catching_refusals
def preupload(request: Request, repo_id: str, revision: str) -> Response:
    as_pull_request = "create_pr" in request.query or revision.startswith("refs/pr/")
    repository = writable(request, repo_id, as_pull_request=as_pull_request)
    files = at(repository, revision).files
    responses = []
    for asked in request.json["files"]:
        suffix = "." + asked["path"].rpartition(".")[2]
        lfs = asked["size"] >= LFS_FROM or suffix in request.hub.lfs_suffixes
        entry = {"path": asked["path"], "uploadMode": "lfs" if lfs else "regular",
                 "shouldIgnore": False}  # fmt: skip
        previous = files.get(asked["path"])
        if previous and bool(previous.sha256) == lfs:
            entry["oid"] = previous.etag
        responses.append(entry)
    return json_response({"files": responses})


@catching_refusals
def lfs_batch(request: Request, repo_id: str) -> Response:
    writable(request, repo_id, as_pull_request="ref" not in request.json
             or request.json["ref"]["name"].startswith("refs/pr/"))  # fmt: skip
    objects = []
    for requested in request.json["objects"]:
        entry: dict[str, Any] = {"oid": requested["oid"], "size": requested["size"]}
        if not request.state.lfs_path(requested["oid"]).exists():
            entry["actions"] = _upload_actions(request, **entry)
        objects.append(entry)
    return json_response({"transfer": "basic", "objects": objects})


def _upload_actions(request: Request, oid: str, size: int) -> dict[str, Any]:
    """Return the URLs to upload a file to, as a whole or in parts."""
    url, part = request.hub.url, request.hub.part_size
    # Signed, as URLs of real storage: everyone with the URL may write.
    signature = "X-Amz-Signature=0123456789abcdef"
    verify = {"href": f"{url}/lfs/verify/{oid}"}
    if part is None or size <= part:
        return {"upload": {"href": f"{url}/lfs/upload/{oid}?{signature}"}, "verify": verify}
    header = {"chunk_size": str(part)}
    for number in range(1, -(-size // part) + 1):
        header[str(number)] = f"{url}/lfs/upload/{oid}?part={number}&{signature}"
    return {"upload": {"href": f"{url}/lfs/complete/{oid}", "header": header}, "verify": verify}


@catching_refusals
def lfs_upload(request: Request, oid: str) -> Response:
    assert request.uploaded is not None
    if request.token is not None:
        raise RefusedError(400, "Only one auth mechanism allowed")  # as S3 responds to a token
    length = int(request.headers.get("Content-Length") or 0)
    if request.uploaded.stat().st_size != length:
        raise RefusedError(400, "the body is shorter than its Content-Length")
    target = request.state.lfs_path(oid)
    if "part" in request.query:
        target = target.with_name(f"{oid}.{int(request.query['part']):05d}")
    request.uploaded.replace(target)
    return Response(200, {"ETag": f'"{hashlib.md5(target.name.encode()).hexdigest()}"'})


@catching_refusals
def lfs_complete(request: Request, oid: str) -> Response:
    target = request.state.lfs_path(oid)
    parts = sorted(target.parent.glob(f"{oid}.*"))
    if [part["partNumber"] for part in request.json["parts"]] != list(range(1, len(parts) + 1)):
        raise RefusedError(400, "parts are missing")
    with target.open("wb") as stream:
        for part in parts:
            stream.write(part.read_bytes())
            part.unlink()
    return json_response({})


@catching_refusals
def lfs_verify(request: Request, oid: str) -> Response:
    path = request.state.lfs_path(oid)
    with path.open("rb") as stream:
        right = hashlib.file_digest(stream, "sha256").hexdigest() == oid
    if not right or path.stat().st_size != request.json["size"]:
        path.unlink()
        raise RefusedError(400, "the object that was uploaded is another")
    return json_response({})


@catching_refusals
def commit(request: Request, repo_id: str, revision: str) -> Response:
    as_pull_request = "create_pr" in request.query
    to_pull_request = as_pull_request or revision.startswith("refs/pr/")
    repository = writable(request, repo_id, as_pull_request=to_pull_request)
    lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    header = lines[0]["value"]
    head = at(repository, revision)
    parent = header.get("parentCommit")
    if parent and not head.id.startswith(parent) and not as_pull_request:
        raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
    files = _changed(request, dict((at(repository, parent) if parent else head).files), lines[1:])
    message, author = (header["summary"], header.get("description", "")), request.account.name  # type: ignore[union-attr]
    url = {}
    if as_pull_request:
        opened = request.state.open_pull_request(repository, parent or head.id, *message, author)
        revision = f"refs/pr/{opened.number}"
        url = {"pullRequestUrl": f"{request.hub.url}/{repo_id}/discussions/{opened.number}"}
    made = request.state.add_commit(repository, revision, *message, author, files)
    return json_response({"success": True, "commitOid": made.id,
                "commitUrl": f"{request.hub.url}/{repo_id}/commit/{made.id}", **url})  # fmt: skip


def _changed(request: Request, files: dict[str, File], lines: list[Any]) -> dict[str, File]:
    """Return the files after the operations of a commit."""
    hashes = request.hub.xet_hashes()
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = request.state.blob(base64.b64decode(value["content"]))
        elif line["key"] == "lfsFile":
            xet_hash = hashes.get(value["oid"])
            if xet_hash is None and not request.state.lfs_path(value["oid"]).exists():
                raise RefusedError(400, f"the LFS object {value['oid']} was not uploaded")
            files[value["path"]] = request.state.lfs_file(value["oid"], value["size"], xet_hash)
        elif line["key"] == "deletedFile" and files.pop(value["path"], None) is None:
            raise RefusedError(404, "A file with this name doesn't exist", "EntryNotFound")
    return files


@catching_refusals
def create_branch(request: Request, repo_id: str, branch: str) -> Response:
    repository = writable(request, repo_id)
    if branch in repository.refs:
        raise RefusedError(409, "Reference already exists")
    repository.refs[branch] = at(repository, request.json.get("startingPoint") or "main").id
    return json_response({})


@catching_refusals
def model_info(request: Request, repo_id: str, revision: str = "main") -> Response:
    repository = readable(request, repo_id)
    result = at(repository, revision)
    blobs = "blobs" in request.query
    siblings = [
        {"rfilename": path, **(_blob(file) if blobs else {})} for path, file in result.files.items()
    ]
    return json_response({"id": repo_id, "sha": result.id, "siblings": siblings, "tags": [],
                "private": repository.private, "gated": "manual" if repository.gated else False,
                "cardData": _card_data(result)})  # fmt: skip


def _blob(file: File) -> dict[str, Any]:
    lfs = {"lfs": {"sha256": file.sha256, "size": file.size, "pointerSize": 134}}
    return {"size": file.size, "blobId": file.oid, **(lfs if file.sha256 else {})}


def _card_data(commit_: Commit) -> dict[str, Any] | None:
    if "README.md" not in commit_.files:
        return None
    text = commit_.files["README.md"].content.read_text(encoding="utf-8")
    match = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    return yaml.safe_load(match[1]) if match else None


@catching_refusals
def tree(request: Request, repo_id: str, revision: str) -> Response:
    files = at(readable(request, repo_id), revision).files
    paths = sorted(files)
    size, start = request.hub.page_size, int(request.query.get("cursor", 0))
    entries = [_tree_entry(path, files[path]) for path in paths[start : start + size]]
    following = f"{request.hub.url}{request.path}?recursive=True&cursor={start + size}"
    more = {"Link": f'<{following}>; rel="next"'} if start + size < len(paths) else {}
    return json_response(entries, **more)


@catching_refusals
def paths_info(request: Request, repo_id: str, revision: str) -> Response:
    from urllib.parse import parse_qs

    files = at(readable(request, repo_id), revision).files
    asked = parse_qs(request.body.decode()).get("paths", [])
    return json_response([_tree_entry(path, files[path]) for path in asked if path in files])


def _tree_entry(path: str, file: File) -> dict[str, Any]:
    lfs = {"lfs": {"oid": file.sha256, "size": file.size, "pointerSize": 134}}
    return {"type": "file", "path": path, "size": file.size, "oid": file.oid,
            **(lfs if file.sha256 else {})}  # fmt: skip


@catching_refusals
def commits(request: Request, repo_id: str, revision: str) -> Response:
    repository = readable(request, repo_id)
    at(repository, revision)
    return json_response([
        {"id": c.id, "title": c.title, "message": c.description, "authors": [{"user": c.author}],
         "date": "2026-01-01T00:00:00.000Z"}
        for c in repository.history(revision)
    ])  # fmt: skip


@catching_refusals
def references(request: Request, repo_id: str) -> Response:
    repository = readable(request, repo_id)
    branches = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": target}
        for name, target in repository.refs.items()
        if not name.startswith("refs/")
    ]
    return json_response({"branches": branches, "converts": [], "tags": []})


@catching_refusals
def discussions(request: Request, repo_id: str) -> Response:
    repository, query = readable(request, repo_id), request.query
    matches = [
        {"title": pr.title, "num": pr.number, "author": {"name": pr.author}, "status": pr.status,
         "createdAt": "2026-01-01T00:00:00.000Z", "isPullRequest": True,
         "repo": {"name": repo_id, "type": "model"}}
        for pr in repository.pull_requests
        if query.get("status") in (None, pr.status) and query.get("author") in (None, pr.author)
    ]  # fmt: skip
    start = int(query.get("p", 0)) * request.hub.page_size
    page = matches[start : start + request.hub.page_size]
    return json_response({"count": len(matches), "start": start, "discussions": page})


@catching_refusals
def resolve(request: Request, repo_id: str, revision: str, path: str) -> Response:
    repository = readable(request, repo_id)
    account = request.account
    allowed = account and (account.may_read_gated or is_of(account, repo_id))
    if repository.gated and not allowed:
        raise RefusedError(403 if account else 401, "Access to this model is restricted",
                           "GatedRepo")  # fmt: skip
    result = at(repository, revision)
    file = result.files.get(path)
    if file is None:
        response = refusal(404, "Entry not found", "EntryNotFound")
        return Response(404, {**response.headers, "X-Repo-Commit": result.id}, response.body)
    headers = {"X-Repo-Commit": result.id, "Accept-Ranges": "bytes"}
    if file.sha256 is None:
        return _part(request, file.content, {**headers, "ETag": f'"{file.oid}"'})
    headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
    if file.xet_hash is not None:
        token = f"{request.hub.url}/api/models/{repo_id}/xet-read-token/{result.id}"
        headers |= {"X-Xet-Hash": file.xet_hash, "Link": f'<{token}>; rel="xet-auth"'}
    return Response(302, {**headers, "Location": f"{request.hub.cdn}/cdn/{file.sha256}"})


@catching_refusals
def cdn(request: Request, sha256: str) -> Response:
    path = request.state.lfs_path(sha256)
    return _part(request, path, {"ETag": f'"{sha256[:32]}"', "Accept-Ranges": "bytes"})


@catching_refusals
def static(request: Request, path: str) -> Response:
    """Return the response with a file outside of repositories, as of a web server."""
    if path not in request.hub.static:
        raise RefusedError(404, "Not Found")
    data = request.hub.static[path]
    content = request.state.blob(data).content
    return _part(request, content, {"ETag": f'"{hashlib.md5(data).hexdigest()}"'})


def _part(request: Request, path: Path, headers: dict[str, str]) -> Response:
    """Return a file or the requested range of it."""
    size = path.stat().st_size
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    same = request.headers.get("If-Range") in (None, headers["ETag"])
    if match is None or not same:
        return Response(200, headers, file=path, end=size)
    start, end = int(match[1]), min(int(match[2] or size - 1) + 1, size)
    if start >= size:
        return Response(416, {**headers, "Content-Range": f"bytes */{size}"})
    range_headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"}
    return Response(206, range_headers, file=path, start=start, end=end)


@catching_refusals
def xet_token(request: Request, repo_id: str, kind: str, revision: str) -> Response:
    if not request.hub.xet:
        raise RefusedError(404, "Xet storage is not enabled")
    writing = kind == "write"
    (writable(request, repo_id, as_pull_request=revision == "None") if writing
     else readable(request, repo_id))  # fmt: skip
    expires = int(time.time()) + 3600
    body = {"casUrl": request.hub.xet_store, "accessToken": "xet-token", "exp": expires}
    headers = {"Cas-Url": request.hub.xet_store, "Access-Token": "xet-token",
               "Token-Expiration": str(expires)}  # fmt: skip
    return json_response(body, **{f"X-Xet-{name}": value for name, value in headers.items()})


API = f"/api/models/{REPO}"
ROUTES: tuple[tuple[str, Callable[..., Response]], ...] = (
    ("GET /api/whoami-v2", whoami),
    ("POST /api/repos/create", create_repository),
    ("POST /api/validate-yaml", validate_yaml),
    (f"POST {API}/preupload/([^/]+)", preupload),
    (f"POST /{REPO}\\.git/info/lfs/objects/batch", lfs_batch),
    ("PUT /lfs/upload/([0-9a-f]{64})", lfs_upload),
    ("POST /lfs/complete/([0-9a-f]{64})", lfs_complete),
    ("POST /lfs/verify/([0-9a-f]{64})", lfs_verify),
    (f"POST {API}/commit/([^/]+)", commit),
    (f"POST {API}/branch/([^/]+)", create_branch),
    (f"GET {API}", model_info),
    (f"GET {API}/revision/([^/]+)", model_info),
    (f"GET {API}/tree/([^/]+)", tree),
    (f"POST {API}/paths-info/([^/]+)", paths_info),
    (f"GET {API}/commits/([^/]+)", commits),
    (f"GET {API}/refs", references),
    (f"GET {API}/discussions", discussions),
    (f"GET {API}/xet-(read|write)-token/([^/]+)", xet_token),
    (f"GET|HEAD /{REPO}/resolve/([^/]+)/(.+)", resolve),
    ("GET|HEAD /cdn/([0-9a-f]{64})", cdn),
    ("GET|HEAD /static/(.+)", static),
)
