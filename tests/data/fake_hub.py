"""What the Hugging Face hub answers about one data set, on the loopback interface."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0" * 39 + "1"


@contextlib.contextmanager
def serve(repository: str, files: dict[str, bytes]) -> Iterator[str]:
    """The address of a hub that has one public data set of these files."""

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def say(self, value: object) -> None:
            self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            file = path.rpartition(f"/{COMMIT}/")[2] if "/resolve/" in path else None
            if file in files:
                tag = hashlib.sha256(files[file]).hexdigest()
                self.answer(200, files[file], ETag=f'"{tag}"', X_Repo_Commit=COMMIT)
            elif file is not None or not path.startswith(f"/api/datasets/{repository}"):
                missing = "EntryNotFound" if file is not None else "RepoNotFound"
                self.answer(404, X_Error_Code=missing, X_Repo_Commit=COMMIT)
            elif "/tree/" in path or "/paths-info/" in path:
                self.say([{"type": "file", "path": p, "size": len(b), "oid": COMMIT} for p, b in files.items()])
            else:
                siblings = [{"rfilename": path} for path in files]
                self.say({"id": repository, "sha": COMMIT, "private": False, "siblings": siblings, "tags": []})

        do_HEAD = do_POST = do_GET  # noqa: N815 - the names that http.server calls

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
