"""A stand-in for the server of Weights & Biases on this machine: what runs, sweeps and agents need of it.

It takes GraphQL requests by their operation's name and a run's rows by the file stream, hands the jobs of a grid to
agents one at a time, and keeps what it is told.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

ENTITY, PROJECT, SWEEP = "someone", "somewhere", "sweep-1"
_PROJECT = {"id": "P", "name": PROJECT, "entity": {"id": "E", "name": ENTITY}}


@dataclass
class Run:
    """What the server knows of one run."""

    sweep: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)
    exit_code: int | None = None
    """None: it has not said that it is over."""


class WandbServer:
    """The server, in threads of this process; use it as a context manager."""

    def __init__(self) -> None:
        self.sweep: dict[str, Any] | None = None
        """The sweep that was created, as it arrived."""
        self.jobs: list[dict[str, Any]] = []
        """The values of each job that was handed out, in order; its run is called job-NUMBER."""
        self.runs: dict[str, Run] = {}
        self.agents = 0
        self.delays: dict[str, float] = {}
        """Name of an operation → seconds that its next answer takes."""
        self._waiting: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._operations: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "Viewer": self._viewer,
            "UpsertSweep": self._create_sweep,
            "SweepWithRuns": self._show_sweep,
            "CreateAgent": self._create_agent,
            "Heartbeat": self._heartbeat,
            "UpsertBucket": self._run,
            "RunResumeStatus": self._resume,
            "CreateArtifact": self._artifact,
        }

    def __enter__(self) -> WandbServer:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """The variables that send wandb here."""
        return {"WANDB_BASE_URL": f"http://127.0.0.1:{self._http.server_address[1]}", "WANDB_API_KEY": "0" * 40}

    def create(self, sweep: dict[str, Any]) -> None:
        """Makes it the server's only sweep."""
        choices = [spec["values"] if "values" in spec else [spec["value"]] for spec in sweep["parameters"].values()]
        self.sweep = sweep
        self._waiting = [dict(zip(sweep["parameters"], values, strict=True)) for values in itertools.product(*choices)]

    def answer(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a POST with a JSON body."""
        name = re.search(r"(?:query|mutation)\s+(\w+)", request.get("query", ""))
        time.sleep(self.delays.pop(name[1], 0) if name else 0)
        with self._lock:
            if stream := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", path):
                self._stream(self.runs.setdefault(stream[1], Run()), request)
                return {}
            operation = self._operations.get(name[1]) if name else None
            if operation is None:
                return {"data": None, "errors": [{"message": f"no such operation: {name and name[1]}"}]}
            return {"data": operation(request.get("variables") or {})}

    def _viewer(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "U", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}}

    def _create_sweep(self, variables: dict[str, Any]) -> dict[str, Any]:
        self.create(yaml.safe_load(variables["config"]))
        return {"upsertSweep": {"sweep": {"name": SWEEP, "project": _PROJECT}, "configValidationWarnings": []}}

    def _show_sweep(self, variables: dict[str, Any]) -> dict[str, Any]:
        found = self.sweep is not None and variables["sweep"] == SWEEP
        config = {"id": "S", "name": SWEEP, "config": yaml.safe_dump(self.sweep), "runs": {"edges": []}}
        return {"project": {"sweep": config if found else None}}

    def _create_agent(self, variables: dict[str, Any]) -> dict[str, Any]:
        self.agents += 1
        return {"createAgent": {"agent": {"id": f"agent-{self.agents}"}}}

    def _heartbeat(self, variables: dict[str, Any]) -> dict[str, Any]:
        commands: list[dict[str, Any]] = []
        if not any(json.loads(variables["runState"]).values()):
            commands = [{"type": "exit"}]
            if self._waiting:
                values = self._waiting.pop(0)
                arguments = {name: {"value": value} for name, value in values.items()}
                name, program = f"job-{len(self.jobs)}", (self.sweep or {}).get("program")
                self.jobs.append(values)
                commands = [{"type": "run", "run_id": name, "program": program, "args": arguments}]
        return {"agentHeartbeat": {"agent": {"id": variables["id"]}, "commands": json.dumps(commands)}}

    def _run(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.setdefault(variables["name"], Run())
        run.sweep = variables.get("sweep") or run.sweep
        run.config |= {name: item["value"] for name, item in json.loads(variables.get("config") or "{}").items()}
        bucket = {"id": "B", "name": variables["name"], "config": "{}", "sweepName": run.sweep, "project": _PROJECT}
        return {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0}, "inserted": True}}

    def _resume(self, variables: dict[str, Any]) -> dict[str, Any]:
        """Where a run stands that is to go on; no bucket where it is not there."""
        run = self.runs.get(variables["name"])
        if run is None:
            return {"model": {**_PROJECT, "bucket": None}}
        bucket = {
            "id": "B",
            "name": variables["name"],
            "config": json.dumps({name: {"value": value} for name, value in run.config.items()}),
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(run.history),
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "logLineCount": 0,
            "wandbConfig": json.dumps({"t": 1}),  # it has begun
        }
        return {"model": {**_PROJECT, "bucket": bucket}}

    def _artifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        """One that the server has already, so that no file is sent."""
        artifact = variables["input"]
        self.runs[artifact["runName"]].artifacts.append(artifact["artifactCollectionName"])
        sequence = {"latestArtifact": {"id": "A"}}
        return {"createArtifact": {"artifact": {"id": "A", "state": "COMMITTED", "artifactSequence": sequence}}}

    def _stream(self, run: Run, request: dict[str, Any]) -> None:
        for name, part in (request.get("files") or {}).items():
            lines = [json.loads(line) for line in part["content"]]
            if name == "wandb-history.jsonl":
                run.history += lines
            elif name == "wandb-summary.json":
                run.summary = lines[-1]
        if request.get("complete"):
            run.exit_code = request["exitcode"]


def _handler(server: WandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            is_json = "json" in (self.headers.get("Content-Type") or "")
            answer = json.dumps(server.answer(self.path, json.loads(body)) if is_json else {}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: a test's output is its own."""

    return Handler
