"""The run's figures for Prometheus: an HTTP endpoint, and a file for node_exporter; off unless asked for.

Threads of their own do it. They read the run's files and the coordinator's state, which nobody changes in place, so
neither training nor the coordinator's loop ever waits.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from liver_slurm.base.errors import BadInput, first_line, traceback_of
from liver_slurm.base.files import replace_file
from liver_slurm.base.network import reachable_host
from liver_slurm.config.load import read_job
from liver_slurm.config.outside import PrometheusSection
from liver_slurm.observability.counters import RunCounters
from liver_slurm.observability.figures import Moment, figures
from liver_slurm.observability.history import RunHistory
from liver_slurm.observability.openmetrics import OPENMETRICS, PROMETHEUS, Form, exposition
from liver_slurm.observability.run_view import RunFiles
from liver_slurm.observability.status import RunStatus
from liver_slurm.observability.trained import Trained
from liver_slurm.rundir.paths import RunDir

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds that a client may take to say what it wants."""
KEPT = 2000
"""Newest steps that are looked at: more than are trained from one scrape to the next."""
CLIENTS = 16
"""Clients that are answered at once, at most."""


class Figures:
    """The run's figures, as they are when they are asked for."""

    def __init__(
        self, run_dir: RunDir, status: Callable[[], RunStatus], notifications: Callable[[], Mapping[str, int]]
    ) -> None:
        """``status``: what the coordinator says now; it is called in other threads, as is ``notifications``."""
        train = read_job(run_dir.job_file).train
        self._trained = Trained(train, since=time.time())
        self._files = RunFiles(run_dir, KEPT, self._trained.add)
        self._status, self._notifications = status, notifications
        self._history, self._counters = RunHistory(), RunCounters()
        self._lock = threading.Lock()

    def text(self, form: Form) -> str:
        """Write the figures down."""
        from msgspec.structs import replace

        with self._lock:
            for document in self._files.refresh():
                self._history.add(document)
                self._counters.add(document)
            files = self._files
            status = replace(self._status(), **files.identity(), **files.rates())
            moment = Moment(
                run=files.run_dir.path.name,
                seq_length=files.config.train.seq_length,
                status=status,
                history=self._history,
                counters=self._counters,
                steps=files.recent,
                trained_samples=self._trained.samples,
                notifications=self._notifications(),
            )
            return exposition(figures(moment), form)


class Endpoint:
    """Serves ``/metrics``, and says in the run directory where, as Prometheus' file_sd reads it."""

    def __init__(self, figures: Figures, port: int, host: str, targets: Path) -> None:
        """Bind to ``host`` and begin to serve; ``port``: 0 lets the kernel choose.

        Raises:
            OSError: somebody else has the port, or the address is none of this machine's.
        """
        address = socket.gethostbyname(host)
        handler = type("Handler", (_Handler,), {"figures": figures})
        self._server = _Server((address, port), handler)
        self._targets = targets
        self.where = f"{host}:{self._server.server_address[1]}"
        replace_file(targets, json.dumps([{"targets": [self.where]}]).encode() + b"\n")
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()
        self._targets.unlink(missing_ok=True)


class TextFile:
    """Writes the figures into a file again and again."""

    def __init__(self, figures: Figures, path: Path, every: float) -> None:
        self._figures, self.path, self._every = figures, path, every
        self._stop = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._write_on, name="textfile", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write no more, and remove the file: figures that nobody renews would go on being read."""
        self._stop.set()
        self._thread.join(timeout=PATIENCE)
        self.path.unlink(missing_ok=True)

    def _write_on(self) -> None:
        while not self._stop.is_set():
            try:
                replace_file(self.path, self._figures.text("prometheus").encode())
                self._failing = False
            except Exception as error:  # noqa: BLE001 - a thread's edge: it is logged, and tried again
                self._failed(error)
            self._stop.wait(self._every)

    def _failed(self, error: Exception) -> None:
        """Say so once, and remove the file."""
        if not self._failing:
            said, defect = first_line(error), traceback_of(error)
            log.warning("prometheus.textfile: %s cannot be written: %s", self.path, said, exc_info=defect)
        self._failing = True
        with contextlib.suppress(OSError):  # where it cannot be written, it may be that it cannot be removed
            self.path.unlink(missing_ok=True)


class _Server(ThreadingHTTPServer):
    """Answers several clients at once, and hangs up on those that are too many."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self._slots = threading.BoundedSemaphore(CLIENTS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a client in a thread, if there are not too many."""
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a client, in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say in one line what went wrong with a client, which may just have gone away."""
        log.warning("figures for %s: %r", client_address, sys.exc_info()[1])


class _Handler(BaseHTTPRequestHandler):
    """Answers one client."""

    figures: Figures
    timeout = PATIENCE
    server_version = "liver-slurm"
    sys_version = ""

    def do_GET(self) -> None:
        """Send the figures."""
        if self.path.partition("?")[0] not in ("/", "/metrics"):
            self.send_error(404, "the figures are at /metrics")
            return
        openmetrics = "application/openmetrics-text" in self.headers.get("Accept", "")
        body = self.figures.text("openmetrics" if openmetrics else "prometheus").encode()
        self.send_response(200)
        self.send_header("Content-Type", OPENMETRICS if openmetrics else PROMETHEUS)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the name is http.server's
        """Keep quiet: a line for each scrape would fill the coordinator's log."""


class Exporter:
    """What the job file asks for of the two."""

    def __init__(self, figures: Figures, config: PrometheusSection, run_dir: RunDir, host: str) -> None:
        """Begin; what cannot be is said in the log, and the run goes on without it.

        Args:
            host: address to bind to where the section names no interface.
        """
        self._parts: list[Endpoint | TextFile] = []
        if config.port is not None:
            try:
                if config.interface is not None:
                    host = reachable_host(config.interface, "prometheus.interface")
                endpoint = Endpoint(figures, config.port, host, run_dir.prometheus_targets)
            except (BadInput, OSError) as error:
                log.error("prometheus.port: no figures are served: %s", error)
            else:
                log.info("figures for Prometheus at http://%s/metrics", endpoint.where)
                self._parts.append(endpoint)
        if config.textfile is not None:
            path = Path(config.textfile) / f"liver-slurm-{run_dir.path.name}.prom"
            self._parts.append(TextFile(figures, path, config.every))

    def close(self) -> None:
        """End all of it."""
        for part in self._parts:
            part.close()
