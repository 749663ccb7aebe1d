"""A stand-in for the hub's HTTP API: what huggingface_hub 2.4 calls to make, list and fill repositories."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_StandInSecretThatMustNotLeak"
OWNER = "someone"
Answer = tuple[int, object]


@dataclass
class Repo:
    """Branches as lists of commits, oldest first; a commit is its whole tree: path -> (in LFS?, content, LFS oid)."""

    private: bool
    branches: dict[str, list[dict]]


def _commit(tree: dict) -> dict:
    return {"id": hashlib.sha1(json.dumps(sorted(tree)).encode()).hexdigest(), "tree": tree}


@dataclass
class Hub:
    """Everything that was sent. `fail` may answer a request instead of the hub."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    puts: list[str] = field(default_factory=list)
    fail: Callable[[str, str, str], Answer | None] = lambda method, path, token: None

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        """Content of every file of a branch."""
        tree = self.repos[repo].branches[branch][-1]["tree"]
        return {path: self.stored[oid] if lfs else content for path, (lfs, content, oid) in tree.items()}

    def answer(self, method: str, path: str, body: bytes, token: str) -> Answer:
        """What the hub says to a request."""
        self.requests.append((method, path))
        refused = self.fail(method, path, token)
        if refused:
            return refused
        if method == "PUT":
            oid = path.rsplit("/", 1)[1]
            assert hashlib.sha256(body).hexdigest() == oid
            self.stored[oid] = body
            self.puts.append(oid)
            return 200, {}
        if token != TOKEN:
            return 401, {"error": "Invalid credentials in Authorization header"}
        return self._api(method, path, json.loads(body) if body and b"\n{" not in body else {}, body)

    def _api(self, method: str, path: str, content: dict, body: bytes) -> Answer:
        if path == "/api/repos/create":
            return self._create(content)
        if path == "/api/validate-yaml":
            assert content["content"].startswith("---\n")
            return 200, {"errors": [], "warnings": []}
        if path.endswith(".git/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self._slot(o) for o in content["objects"]]}
        _, api, models, owner, name, *rest = path.split("/")
        assert (api, models) == ("api", "models")
        repo = self.repos.get(f"{owner}/{name}")
        if repo is None:
            return 404, {"error": "Repository not found"}
        what, branch = [*map(unquote, rest), "", ""][:2]
        return self._of_repo(repo, what, branch, content, body)

    def _of_repo(self, repo: Repo, what: str, branch: str, content: dict, body: bytes) -> Answer:
        match what:
            case "refs":
                heads = {name: commits[-1]["id"] for name, commits in repo.branches.items()}
                refs = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in heads.items()]
                return 200, {"branches": refs, "converts": [], "tags": []}
            case "commits":
                about = {"authors": [], "date": "2026-11-21T00:00:00.000Z", "title": "", "message": ""}
                return 200, [{"id": c["id"], **about} for c in reversed(repo.branches[branch])]
            case "branch":
                repo.branches[branch] = [c for c in repo.branches["main"] if c["id"] == content["startingPoint"]]
                return 200, {}
            case "tree":
                return 200, [self._entry(p, *v) for p, v in repo.branches[branch][-1]["tree"].items()]
            case "preupload":
                return 200, {"files": [_mode(f) for f in content["files"]]}
            case "commit":
                return self._commit_to(repo, branch, [json.loads(line) for line in body.splitlines()])
        raise AssertionError(f"{what} is not known to the stand-in")

    def _create(self, content: dict) -> Answer:
        name = f"{content['organization']}/{content['name']}"
        if content["organization"] != OWNER:
            return 403, {"error": f'You don\'t have the rights to create a model under "{content["organization"]}"'}
        if name in self.repos:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
        first = {".gitattributes": (False, b"*.gguf filter=lfs\n", "")}
        self.repos[name] = Repo(content.get("visibility") == "private", {"main": [_commit(first)]})
        return 200, {"url": f"{self.url}/{name}"}

    def _slot(self, wanted: dict) -> dict:
        oid = wanted["oid"]
        upload = {"upload": {"href": f"{self.url}/upload/{oid}"}}
        return {**wanted, **({} if oid in self.stored else {"actions": upload})}

    def _commit_to(self, repo: Repo, branch: str, lines: list[dict]) -> Answer:
        tree = dict(repo.branches[branch][-1]["tree"])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = (False, base64.b64decode(value["content"]), "")
            elif line["key"] == "lfsFile":
                assert value["oid"] in self.stored
                tree[value["path"]] = (True, b"", value["oid"])
        repo.branches[branch].append(_commit(tree))
        return 200, {"commitUrl": f"{self.url}/{OWNER}/any/commit/{'0' * 40}", "commitOid": "0" * 40, "success": True}

    def _entry(self, path: str, lfs: bool, content: bytes, oid: str) -> dict:
        if lfs:
            size = len(self.stored[oid])
            pointer = {"oid": oid, "size": size, "pointerSize": 130}
            return {"type": "file", "path": path, "size": size, "oid": "0" * 40, "lfs": pointer}
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return {"type": "file", "path": path, "size": len(content), "oid": git}


def _mode(file: dict) -> dict:
    large = file["path"].endswith((".safetensors", ".gguf"))
    return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": None}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: Hub

    def _reply(self) -> None:
        split = urlsplit(self.path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        status, content = self.hub.answer(self.command, split.path, self._body(), token)
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    do_GET = do_POST = do_PUT = _reply  # noqa: N815 (named by http.server)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that listens on a port of its own."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
