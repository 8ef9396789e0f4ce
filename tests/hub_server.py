"""A Hub in memory that the real `huggingface_hub` client talks to: repositories, LFS, tokens and failures to order.

    with HubServer() as hub:
        ...  # the client with HF_ENDPOINT=hub.url, HF_HUB_DISABLE_XET=1 and HF_TOKEN=hub.token
        hub.repositories["me/model"].files()

It answers what the client of version 2.4 asks for: creation, validation of cards, upload in one commit, LFS, branches
and tags, listings, downloads with their headers, and the errors by which the client tells what is wrong.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


LFS_SUFFIXES = (".safetensors", ".onnx", ".png")
LICENSES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "other", "unknown"}


class HubError(Exception):
    """An answer that is an error, with the headers that the client looks at."""

    def __init__(self, status, code=None, message=None, **content):
        self.status, self.code, self.message, self.content = status, code, message, content


@dataclass
class Commit:
    oid: str
    title: str
    files: dict[str, bytes]


@dataclass
class Repository:
    name: str
    private: bool = False
    commits: list[Commit] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)  # branches and tags, by name
    tags: set[str] = field(default_factory=set)

    def __post_init__(self):
        self.commit("initial commit", {".gitattributes": b""}, "main")

    def commit(self, title, files, branch) -> Commit:
        known = hashlib.sha1(f"{self.name} {len(self.commits)} {title}".encode()).hexdigest()
        self.commits.append(Commit(known, title, files))
        self.refs[branch] = known
        return self.commits[-1]

    def at(self, revision="main") -> Commit:
        oid = self.refs.get(revision, revision)
        for commit in self.commits:
            if commit.oid == oid:
                return commit
        raise HubError(404, "RevisionNotFound")

    def files(self, revision="main") -> dict[str, bytes]:
        """Contents by path, without what the Hub itself has put there."""
        return {path: content for path, content in self.at(revision).files.items() if path != ".gitattributes"}


class HubServer:
    """The server, running while the `with` block does.

    Attributes:
        url: To be the client's endpoint.
        token: May read and write what is of `me`; `reader` may only read it, `stranger` is of someone else.
        repositories: By full name.
        lfs: Uploaded large files by sha256.
        requests: What was asked: (method, path).
        failures: Status by the name of a route (`lfs_put`, `commit`, …) that shall fail.
        damages: Functions of the content, by the path of a file that shall arrive otherwise than it is listed.
    """

    token, reader, stranger = "hf_writer0000", "hf_reader0000", "hf_stranger0000"

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.failures: dict[str, int] = {}
        self.damages: dict[str, Callable[[bytes], bytes]] = {}

    def __enter__(self):
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def asked(self, path) -> list[str]:
        """The methods of the requests whose path matches a pattern."""
        return [method for method, asked in self.requests if re.search(path, asked)]


def problems_of_metadata(content: str) -> list[str]:
    """What the Hub would say against the YAML block of a model card."""
    block = re.match(r"\ufeff?---\r?\n(.*?)\r?\n---(\r?\n|$)", content, re.DOTALL)
    if not block:
        return []
    try:
        data = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    problems = []
    if not isinstance(data, dict):
        return ["metadata must be a mapping"]
    if data.get("license", "unknown") not in LICENSES:
        problems.append(f'"license" must be one of {sorted(LICENSES)}')
    if data.get("license") == "other" and not data.get("license_name"):
        problems.append('"license_name" is required')
    for name in ("tags", "datasets"):
        values = data.get(name, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            problems.append(f'"{name}" must be an array of strings')
    for name in ("library_name", "pipeline_tag", "license"):
        if not isinstance(data.get(name, ""), str):
            problems.append(f'"{name}" must be a string')
    for model in data.get("model-index", []):
        if not isinstance(model.get("name"), str) or not model["name"]:
            problems.append('"model-index[0].name" is required')
        for result in model.get("results", []):
            for part, keys in (("task", ("type",)), ("dataset", ("type", "name"))):
                problems += [
                    f'"{part}.{key}" must be a string'
                    for key in keys
                    if not isinstance(result.get(part, {}).get(key), str)
                ]
            for metric in result.get("metrics", [{}]):
                if not isinstance(metric.get("type"), str) or metric.get("value") is None:
                    problems.append('"metrics" need type and value')
    return problems


class _Handler(BaseHTTPRequestHandler):
    server_hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def answer(self):
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        length = self.headers.get("Content-Length")
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b"".join(iter(self._chunk, b""))
        else:
            self.body = self.rfile.read(int(length)) if length else b""
        self.server_hub.requests.append((self.command, parts.path))
        try:
            for methods, pattern, name in ROUTES:
                match = re.fullmatch(pattern, parts.path)
                if match and self.command in methods.split():
                    if name in self.server_hub.failures:
                        raise HubError(self.server_hub.failures[name], message=f"{name} fails")
                    getattr(self, name)(*map(unquote, match.groups(default="")))
                    return
            raise HubError(404, message=f"no route for {self.command} {parts.path}")
        except HubError as error:
            self.send(error.status, {"error": error.message or error.code, **error.content}, error=error)

    def _chunk(self):
        size = int(self.rfile.readline(), 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    def send(self, status, content, headers=(), error=None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        if error is not None and error.code:
            self.send_header("X-Error-Code", error.code)
        if error is not None and error.message:
            self.send_header("X-Error-Message", error.message)
        if "Content-Length" not in dict(headers):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # -- who may do what

    def rights(self) -> str:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        known = {self.server_hub.token: "write", self.server_hub.reader: "read", self.server_hub.stranger: "none"}
        if token and token not in known:
            raise HubError(401, message="Invalid credentials in Authorization header")
        return known.get(token, "")

    def must_write(self):
        rights = self.rights()
        if rights != "write":
            raise HubError(403 if rights else 401, message="You don't have the rights to create or change a model")

    def repository(self, name) -> Repository:
        found, rights = self.server_hub.repositories.get(name), self.rights()
        if found is None or (found.private and rights not in ("read", "write")):
            raise HubError(404 if rights else 401, "RepoNotFound", "Repository not found")
        return found

    # -- repositories

    def whoami(self):
        if not self.rights():
            raise HubError(401, message="Invalid credentials in Authorization header")
        self.send(200, {"type": "user", "name": "me", "orgs": [], "auth": {"accessToken": {"role": self.rights()}}})

    def create(self):
        self.must_write()
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        answer = {"url": f"{self.server_hub.url}/{name}", "name": name, "id": name}
        if name in self.server_hub.repositories:
            raise HubError(409, message="You already created this model repo", **answer)
        private = asked.get("private") or asked.get("visibility") == "private"
        self.server_hub.repositories[name] = Repository(name, bool(private))
        self.send(200, answer)

    def validate_yaml(self):
        problems = problems_of_metadata(json.loads(self.body)["content"])
        errors = [{"message": problem} for problem in problems]
        self.send(400 if errors else 200, {"errors": errors, "warnings": []})

    def branch(self, name, branch):
        self.must_write()
        repository = self.repository(name)
        if branch in repository.refs:
            raise HubError(409, message="Reference already exists")
        repository.refs[branch] = repository.at().oid
        self.send(200, {})

    def tag(self, name, revision):
        self.must_write()
        repository, tag = self.repository(name), json.loads(self.body)["tag"]
        repository.refs[tag] = repository.at(revision).oid
        repository.tags.add(tag)
        self.send(200, {})

    def refs(self, name):
        found = self.repository(name)
        rows = [
            {"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": oid, "is_tag": ref in found.tags}
            for ref, oid in found.refs.items()
        ]
        self.send(
            200,
            {
                "branches": [row for row in rows if not row["is_tag"]],
                "converts": [],
                "tags": [row for row in rows if row["is_tag"]],
            },
        )

    def history(self, name, revision):
        commits = self.repository(name).commits
        rows = [
            {
                "id": c.oid,
                "title": c.title,
                "message": "",
                "authors": [],
                "date": "2026-01-01T00:00:00.000Z",
            }
            for c in reversed(commits)
        ]
        self.send(200, rows)

    # -- upload

    def preupload(self, name, revision):
        self.must_write()
        files = self.repository(name).at(revision).files
        rows = []
        for asked in json.loads(self.body)["files"]:
            path = asked["path"]
            is_large = path.endswith(LFS_SUFFIXES)
            row = {"path": path, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
            if path in files:
                row["oid"] = hashlib.sha256(files[path]).hexdigest() if is_large else _oid(files[path])
            rows.append(row)
        self.send(200, {"files": rows})

    def lfs_batch(self, name):
        self.must_write()
        self.repository(name)
        rows = []
        for asked in json.loads(self.body)["objects"]:
            row = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.server_hub.lfs:
                row["actions"] = {"upload": {"href": f"{self.server_hub.url}/lfs/{asked['oid']}"}}
            rows.append(row)
        self.send(200, {"transfer": "basic", "objects": rows})

    def lfs_put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, message="the content is not what was announced")
        self.server_hub.lfs[oid] = self.body
        self.send(200, {})

    def commit(self, name, revision):
        self.must_write()
        repository, title = self.repository(name), ""
        files = dict(repository.at(revision).files)
        for line in self.body.splitlines():
            row = json.loads(line)
            kind, value = row["key"], row["value"]
            if kind == "header":
                title = value["summary"]
            elif kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                if value["oid"] not in self.server_hub.lfs:
                    raise HubError(400, message=f"{value['path']} was not uploaded")
                files[value["path"]] = self.server_hub.lfs[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
        oid = repository.commit(title, files, revision).oid
        url = f"{self.server_hub.url}/{name}/commit/{oid}"
        self.send(200, {"success": True, "commitOid": oid, "commitUrl": url})

    # -- download

    def info(self, name, revision):
        repository = self.repository(name)
        commit = repository.at(revision or "main")
        content = {
            "_id": "0",
            "id": name,
            "modelId": name,
            "sha": commit.oid,
            "private": repository.private,
            "tags": [],
        }
        content["siblings"] = [{"rfilename": path} for path in commit.files]
        self.send(200, content)

    def tree(self, name, revision, folder):
        files = self.repository(name).at(revision).files
        folder = f"{folder.strip('/')}/" if folder.strip("/") else ""
        found = {path: content for path, content in files.items() if path.startswith(folder)}
        if folder and not found:
            raise HubError(404, "EntryNotFound")
        rows = [_entry(path, content) for path, content in found.items()]
        if "true" not in [value.lower() for value in self.query.get("recursive", [])]:
            inside = [path.removeprefix(folder) for path in found]
            rows = [row for row, path in zip(rows, inside, strict=True) if "/" not in path]
            folders = {folder + path.split("/")[0] for path in inside if "/" in path}
            rows += [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
        self.send(200, rows)

    def paths_info(self, name, revision):
        files = self.repository(name).at(revision).files
        paths = json.loads(self.body)["paths"] if self.body.startswith(b"{") else parse_qs(self.body.decode())["paths"]
        self.send(200, [_entry(path, files[path]) for path in paths if path in files])

    def resolve(self, name, revision, path):
        commit = self.repository(name).at(revision)
        if path not in commit.files:
            raise HubError(404, "EntryNotFound")
        content = commit.files[path]
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{_oid(content)}"', "Content-Length": str(len(content))}
        if path.endswith(LFS_SUFFIXES):
            headers["X-Linked-Etag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(content))
        if path in self.server_hub.damages:
            content = self.server_hub.damages[path](content)
            self.close_connection = True  # of a file that is cut, the client would wait for the rest
        self.send(200, content, headers)


_NAME = r"([^/]+/[^/]+?)"

ROUTES = [
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", "/api/repos/create", "create"),
    ("POST", "/api/validate-yaml", "validate_yaml"),
    ("POST", rf"/api/models/{_NAME}/branch/(.+)", "branch"),
    ("POST", rf"/api/models/{_NAME}/tag/(.+)", "tag"),
    ("GET", rf"/api/models/{_NAME}/refs", "refs"),
    ("GET", rf"/api/models/{_NAME}/commits/(.+)", "history"),
    ("POST", rf"/api/models/{_NAME}/preupload/(.+)", "preupload"),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/(\w+)", "lfs_put"),
    ("POST", rf"/api/models/{_NAME}/commit/(.+)", "commit"),
    ("GET", rf"/api/models/{_NAME}/tree/([^/]+)(/.*)?", "tree"),
    ("POST", rf"/api/models/{_NAME}/paths-info/(.+)", "paths_info"),
    ("GET", rf"/api/models/{_NAME}(?:/revision/(.+))?", "info"),
    ("GET HEAD", rf"/{_NAME}/resolve/([^/]+)/(.+)", "resolve"),
]


def _oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path, content):
    entry = {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}
    if path.endswith(LFS_SUFFIXES):
        oid = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
    return entry
