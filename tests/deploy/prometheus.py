"""A real Prometheus that scrapes a page this process serves."""

import http.server
import json
import re
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROMETHEUS = shutil.which("prometheus")
PATIENCE_S = 20.0
CONFIG = """
global: {{scrape_interval: 100ms, scrape_timeout: 100ms}}
scrape_configs:
  - job_name: isthmus
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


class Prometheus:
    """Its HTTP API: https://prometheus.io/docs/prometheus/latest/querying/api/."""

    def __init__(self, url: str):
        self._url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples there are now. Raises HTTPError for what it cannot parse."""
        found: list[dict[str, Any]] = self._get("query", query=expression)["result"]
        return found

    def label_values(self, metric: str, label: str) -> list[str]:
        found: list[str] = self._get(f"label/{label}/values", **{"match[]": metric})
        return found

    def _get(self, path: str, **parameters: str) -> Any:
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as reply:
            return json.load(reply)["data"]


@contextmanager
def scraping(render: Callable[[], bytes], folder: Path) -> Iterator[Prometheus]:
    """`render` makes the page, anew for each scrape."""
    with page_server(render) as port:
        config = folder / "prometheus.yml"
        config.write_text(CONFIG.format(port=port))
        assert PROMETHEUS is not None
        command = [
            PROMETHEUS, f"--config.file={config}", f"--storage.tsdb.path={folder}", "--web.listen-address=127.0.0.1:0",
        ]  # fmt: skip
        log = folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            yield Prometheus(f"http://{listening_at(log)}")
        finally:
            process.kill()
            process.wait()


def listening_at(log: Path) -> str:
    """Once it answers: until then it says 503."""
    deadline = time.monotonic() + PATIENCE_S
    listening = r"Listening on.* address=(127\.0\.0\.1:[1-9]\d*)(?s:.*)Server is ready to receive web requests"
    while not (found := re.search(listening, log.read_text())):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    return found[1]


@contextmanager
def page_server(render: Callable[[], bytes]) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = render()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
