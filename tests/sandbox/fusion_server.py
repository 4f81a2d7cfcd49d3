"""A service with the requests and answers of SandboxFusion, without its walls: for tests of the client alone."""

import base64
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Answer = Callable[[dict[str, Any]], dict[str, Any]]


def run_code(request: dict[str, Any]) -> dict[str, Any]:
    """What the service does with a request."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in request["files"].items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(base64.b64decode(content))
        Path(folder, "program.py").write_text(request["code"])
        begun = time.monotonic()
        command = [sys.executable, "program.py"]
        try:
            ended = subprocess.run(
                command, cwd=folder, capture_output=True, timeout=request["run_timeout"], check=False
            )
        except subprocess.TimeoutExpired:
            return {
                "status": "Failed",
                "message": "",
                "run_result": {"status": "TimeLimitExceeded", "stdout": "so far\n"},
            }
        result = {
            "status": "Finished",
            "execution_time": time.monotonic() - begun,
            "return_code": ended.returncode,
            "stdout": ended.stdout.decode(errors="replace"),
            "stderr": ended.stderr.decode(errors="replace"),
        }
        return {"status": "Success" if ended.returncode == 0 else "Failed", "message": "", "run_result": result}


@contextmanager
def fusion_service(answer: Answer = run_code) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of a running service, and the requests that it gets."""
    requests: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            body = json.dumps(answer(requests[-1])).encode() if self.path == "/run_code" else b""
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(ConnectionError):  # a client that has had enough
                self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
