"""A stand-in for the Hugging Face Hub: the part of its HTTP interface that its client uses here."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse


class Hub:
    """Repositories of models, which are kept in memory.

    Attributes:
      repositories: {OWNER/NAME: {commit: {path: bytes}}}, in the order of the commits.
      gated: names that need a token that isn't there.
      requests: what was asked, as "METHOD /path".
      tokens: all that came with requests.
      address: where it is served.
    """

    def __init__(self):
        self.repositories, self.gated, self.requests, self.tokens = {}, set(), [], set()
        self.address = ""

    def add(self, name, files):
        """Add a commit, and return it."""
        content = "".join(hashlib.sha1(data).hexdigest() for data in files.values())
        commit = hashlib.sha1(f"{name} {sorted(files)} {content}".encode()).hexdigest()
        self.repositories.setdefault(name, {})[commit] = dict(files)
        return commit

    def find(self, name, revision):
        """The commit of a revision and its files."""
        commits = self.repositories[name]
        commit = list(commits)[-1] if revision in ("main", "") else revision
        return commit, commits[commit]


def _handler(hub):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, status, content=b"", headers=()):
            if not isinstance(content, bytes):
                content = json.dumps(content).encode()
                headers = [*headers, ("Content-Type", "application/json")]
            self.send_response(status)
            for key, value in [*headers, ("Content-Length", str(len(content)))]:
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def refuse(self, status, code):
            self.answer(status, {"error": code}, [("X-Error-Code", code)])

        def handle_request(self):
            path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size)
            hub.requests.append(f"{self.command} {path}")
            hub.tokens.add(self.headers.get("Authorization"))
            if self.command == "POST":
                self.post(path, body)
            else:
                self.get(path)

        do_GET = do_HEAD = do_POST = handle_request

        def get(self, path):
            found = re.fullmatch(
                r"/(?:api/models/)?([^/]+/[^/]+)(?:/(revision|tree|resolve)/([^/]+)(?:/(.*))?)?",
                path,
            )
            name, action, revision, inside = found.groups()
            if name not in hub.repositories:
                return self.refuse(404, "RepoNotFound")
            if name in hub.gated:
                return self.refuse(403, "GatedRepo")
            try:
                commit, files = hub.find(name, revision or "main")
            except KeyError:
                return self.refuse(404, "RevisionNotFound")
            if action in (None, "revision"):
                listed = [{"rfilename": file} for file in files]
                return self.answer(200, {"id": name, "sha": commit, "siblings": listed})
            if action == "tree":
                entries = [
                    {"type": "file", "path": file, "size": len(data), "oid": _oid(data)}
                    for file, data in files.items()
                ]
                return self.answer(200, entries)
            if inside not in files:
                return self.refuse(404, "EntryNotFound")
            etag = ("ETag", f'"{_oid(files[inside])}"')
            return self.answer(200, files[inside], [etag, ("X-Repo-Commit", commit)])

        def post(self, path, body):
            if path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                if name not in hub.repositories:
                    hub.add(name, {})
                return self.answer(200, {"url": f"{hub.address}/{name}", "id": name, "name": name})
            if path == "/api/validate-yaml":
                return self.answer(200, {"errors": [], "warnings": []})
            name, action = re.fullmatch(
                r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path
            ).groups()
            if action == "preupload":
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                return self.answer(200, {"files": files})
            lines = [json.loads(line) for line in body.splitlines()]
            files = dict(hub.find(name, "main")[1]) | {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            commit = hub.add(name, files)
            url = f"{hub.address}/{name}/commit/{commit}"
            return self.answer(200, {"commitUrl": url, "commitOid": commit, "success": True})

    return Handler


def _oid(data):
    return hashlib.sha1(data).hexdigest()


@contextlib.contextmanager
def serve(hub):
    """Serve a hub on this machine, and yield its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        yield hub.address
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
