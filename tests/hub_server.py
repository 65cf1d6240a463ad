"""A Hugging Face Hub of a few routes on the loopback interface, for the real clients to talk to.

It keeps datasets in memory, logs every request, and fails where a test tells it to.
"""

import base64
import hashlib
import json
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_loopbackTokenThatMustNotLeak"
READ_TOKEN = "hf_loopbackReadOnly"
LFS_SUFFIXES = (".parquet", ".png")


@dataclass
class Fault:
    """Answer the next `times` requests that match with `status`, or drop them (status 0).

    after: let so many matching requests pass first. lost: do the work, then drop the answer.
    Status -1 sets the Hub's `stalled` and says nothing until it is cleared.
    """

    method: str
    path: str
    status: int = 0
    headers: dict = field(default_factory=dict)
    after: int = 0
    times: int = 1
    lost: bool = False


@dataclass
class Repo:
    private: bool = True
    files: dict = field(default_factory=lambda: {".gitattributes": b"*.parquet filter=lfs\n"})
    commits: list = field(default_factory=lambda: ["0" * 40])


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, keep: bool):
        super().__init__(("127.0.0.1", 0), Handler)
        self.keep = keep
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos, self.objects, self.log, self.faults = {}, {}, [], []
        self.lock, self.stalled = threading.RLock(), threading.Event()

    def sent(self, method: str, part: str) -> list[str]:
        """The paths of the requests whose bodies arrived whole."""
        return [path for m, path in self.log if m == method and part in path]

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.method != method or not re.search(fault.path, path) or not fault.times:
                    continue
                if fault.after:
                    fault.after -= 1
                    continue
                fault.times -= 1
                return fault
        return None


@contextmanager
def running_hub(keep: bool = True):
    """Serve in a thread; keep: False forgets the content of large files once it is checked."""
    hub = Hub(keep)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.stalled.clear()
        hub.shutdown()
        hub.server_close()
        thread.join(10)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def tree_entry(path: str, data: bytes) -> dict:
    entry = {"type": "file", "path": path, "size": len(data), "oid": blob(data)}
    if path.endswith(LFS_SUFFIXES):
        entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 130}
    return entry


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args):
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def handle_any(self):
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        fault = self.server.fault(self.command, path)
        if fault and not fault.status and not fault.lost:
            self.rfile.read(min(1000, int(self.headers.get("Content-Length", 0))))
            self.close_connection = True
            self.connection.shutdown(2)
            return None
        if fault and fault.status == -1:
            self.server.stalled.set()
            while self.server.stalled.is_set():
                time.sleep(0.01)
            self.close_connection = True
            return None
        data = self.body()
        if fault and fault.status:
            return self.reply(fault.status, {"error": "as told"}, fault.headers)
        with self.server.lock:
            self.server.log.append((self.command, path))
            if fault:
                self.reply = lambda *args, **options: None  # the work is done, its answer is lost
            for method, pattern, act in ROUTES:
                if method == self.command and (found := re.fullmatch(pattern, path)):
                    act(self, data, query, **found.groupdict())
                    break
            else:
                self.reply(404, {"error": f"no route {self.command} {path}"})
        if fault:
            self.close_connection = True
            self.connection.shutdown(2)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def reply(self, status: int, value=b"", headers=None):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def repo(self, name: str, write: bool = False) -> Repo | None:
        """The repository, or None after a refusal was sent."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        repo = self.server.repos.get(name)
        if token and token not in (TOKEN, READ_TOKEN):
            wrong = {"X-Error-Message": "Invalid credentials in Authorization header"}
            return self.reply(401, {"error": "Invalid username or password."}, wrong)
        if repo is None or (repo.private and not token):
            absent = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            return self.reply(404 if token else 401, {"error": "Repository not found"}, absent)
        if write and token != TOKEN:
            return self.reply(403, {"error": "you have no write access"})
        return repo

    def create(self, data, query):
        asked = json.loads(data)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in (TOKEN, READ_TOKEN):
            return self.reply(401, {"error": "Invalid username or password."})
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.server.repos:
            there = f"{self.server.url}/datasets/{name}"
            return self.reply(409, {"error": "You already created this", "url": there})
        if token != TOKEN:
            return self.reply(403, {"error": "you may not create here"})
        private = asked.get("private", asked.get("visibility") == "private")
        self.server.repos[name] = Repo(private)
        self.reply(200, {"url": f"{self.server.url}/datasets/{name}"})

    def info(self, data, query, name, rev="main"):
        if repo := self.repo(name):
            siblings = [{"rfilename": path} for path in repo.files]
            about = {"id": name, "sha": repo.commits[-1], "private": repo.private}
            self.reply(200, {**about, "siblings": siblings, "tags": [], "gated": False})

    def settings(self, data, query, name):
        if repo := self.repo(name, write=True):
            asked = json.loads(data)
            repo.private = asked.get("private", asked.get("visibility") == "private")
            self.reply(200, {})

    def tree(self, data, query, name, rev, below=""):
        if (repo := self.repo(name)) is None:
            return
        inside = {p: d for p, d in repo.files.items() if not below or p.startswith(below + "/")}
        entries = [tree_entry(path, content) for path, content in inside.items()]
        if query.get("recursive", ["false"])[0].lower() != "true":
            start = len(below) + 1 if below else 0
            folders = {p[: p.index("/", start)] for p in inside if "/" in p[start:]}
            entries = [e for e in entries if "/" not in e["path"][start:]]
            entries += [{"type": "directory", "path": f, "oid": blob(f.encode())} for f in folders]
        self.reply(200, entries)

    def paths_info(self, data, query, name, rev):
        if repo := self.repo(name):
            form = json.loads(data) if data[:1] == b"{" else parse_qs(data.decode())
            self.reply(
                200, [tree_entry(p, repo.files[p]) for p in form["paths"] if p in repo.files]
            )

    def preupload(self, data, query, name, rev):
        if (repo := self.repo(name, write=True)) is None:
            return
        answers = []
        for file in json.loads(data)["files"]:
            large = file["path"].endswith(LFS_SUFFIXES)
            answer = {"path": file["path"], "shouldIgnore": False}
            answer["uploadMode"] = "lfs" if large else "regular"
            if (there := repo.files.get(file["path"])) is not None:
                answer["oid"] = sha256(there) if large else blob(there)
            answers.append(answer)
        self.reply(200, {"files": answers})

    def batch(self, data, query, name):
        if self.repo(name, write=True) is None:
            return
        objects = json.loads(data)["objects"]
        for one in objects:
            if one["oid"] not in self.server.objects:
                one["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}
        self.reply(200, {"transfer": "basic", "objects": objects})

    def put(self, data, query, oid):
        assert sha256(data) == oid, "what arrives is what was announced"
        self.server.objects[oid] = data if self.server.keep else b""
        self.reply(200)

    def commit(self, data, query, name, rev):
        if (repo := self.repo(name, write=True)) is None:
            return
        for line in map(json.loads, data.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repo.files[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del repo.files[value["path"]]
        repo.commits.append(hashlib.sha1(repo.commits[-1].encode() + data).hexdigest())
        url = f"{self.server.url}/datasets/{name}/commit/{repo.commits[-1]}"
        self.reply(200, {"commitUrl": url, "commitOid": repo.commits[-1]})

    def resolve(self, data, query, name, rev, path):
        if (repo := self.repo(name)) is None:
            return
        if (content := repo.files.get(path)) is None:
            return self.reply(404, {"error": "absent"}, {"X-Error-Code": "EntryNotFound"})
        entry = tree_entry(path, content)
        headers = {"X-Repo-Commit": repo.commits[-1], "ETag": f'"{entry["oid"]}"'}
        headers["Accept-Ranges"] = "bytes"
        if "lfs" in entry:
            headers["X-Linked-Etag"] = f'"{entry["lfs"]["oid"]}"'
            headers["X-Linked-Size"] = str(len(content))
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self.reply(200, content, headers)
        start, stop = int(wanted[1]), int(wanted[2] or len(content) - 1) + 1
        part = content[start:stop]
        headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
        self.reply(206, part, headers)

    def valid(self, data, query):
        self.reply(200, {"errors": [], "warnings": []})


NAME = r"(?P<name>[^/]+/[^/]+)"
ROUTES = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.valid),
    ("GET", f"/api/datasets/{NAME}", Handler.info),
    ("GET", f"/api/datasets/{NAME}/revision/(?P<rev>[^/]+)", Handler.info),
    ("PUT", f"/api/datasets/{NAME}/settings", Handler.settings),
    ("GET", f"/api/datasets/{NAME}/tree/(?P<rev>[^/]+)", Handler.tree),
    ("GET", f"/api/datasets/{NAME}/tree/(?P<rev>[^/]+)/(?P<below>.+)", Handler.tree),
    ("POST", f"/api/datasets/{NAME}/paths-info/(?P<rev>[^/]+)", Handler.paths_info),
    ("POST", f"/api/datasets/{NAME}/preupload/(?P<rev>[^/]+)", Handler.preupload),
    ("POST", rf"/datasets/{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", Handler.put),
    ("POST", f"/api/datasets/{NAME}/commit/(?P<rev>[^/]+)", Handler.commit),
    ("HEAD", f"/datasets/{NAME}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", Handler.resolve),
    ("GET", f"/datasets/{NAME}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", Handler.resolve),
]
