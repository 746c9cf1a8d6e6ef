"""A W&B server on the loopback address: what the real client needs of GraphQL, the file stream and file storage."""

import dataclasses
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ENTITY = "somebody"
KEY = "x" * 40


@dataclasses.dataclass
class Run:
    """What has arrived of one run."""

    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    rows: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)  # by line
    summary: dict[str, Any] = dataclasses.field(default_factory=dict)
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    exit_code: int | None = None

    def history(self) -> list[dict[str, Any]]:
        """The rows in order, without what the client adds."""
        kept = (self.rows[line] for line in sorted(self.rows))
        return [{name: value for name, value in row.items() if not name.startswith("_")} for row in kept]


# What is asked → a status to answer with, "hang", or None: (operation, run id).
Fault = Callable[[str, str], int | str | None]


class Server:
    """The runs by (project, id), the operations that were asked for, and how the next ones go wrong."""

    def __init__(self) -> None:
        self.runs: dict[tuple[str, str], Run] = {}
        self.asked: list[tuple[str, str]] = []
        self.saved: list[dict[str, Any]] = []  # variables of mutations that save views and reports
        self.fault: Fault = lambda operation, run: None
        self.stopping = threading.Event()  # whoever hangs is let go
        self.lock = threading.Lock()
        self.url = ""

    def reset(self) -> None:
        with self.lock:
            self.runs.clear()
            self.asked.clear()
            self.saved.clear()
        self.fault = lambda operation, run: None

    def of(self, project: str) -> dict[str, Run]:
        return {run: found for (name, run), found in self.runs.items() if name == project}

    # --- GraphQL ---

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        asked = getattr(self, f"_{operation}", None)
        return asked(variables) if asked else {}

    def _Viewer(self, variables):  # noqa: N802
        viewer = {"id": "v", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": viewer}

    def _RunResumeStatus(self, variables):  # noqa: N802
        run = self.runs.get((variables["project"], variables["name"]))
        if run is None:
            return {"model": None}
        tail = [json.dumps(run.rows[line]) for line in sorted(run.rows)[-1:]]
        config = {name: {"value": value} for name, value in run.config.items()}
        bucket = {
            "id": "b",
            "name": variables["name"],
            "summaryMetrics": json.dumps(run.summary),
            "displayName": run.fields.get("displayName"),
            "logLineCount": 0,
            "historyLineCount": len(run.rows),
            "eventsLineCount": 0,
            "historyTail": json.dumps(tail),
            "eventsTail": "[]",
            "config": json.dumps(config),
            "tags": run.fields.get("tags") or [],
            "notes": "",
            "wandbConfig": json.dumps({"t": 1}),
        }
        entity = {"id": "e", "name": ENTITY}
        return {"model": {"id": "p", "name": variables["project"], "entity": entity, "bucket": bucket}}

    def _UpsertBucket(self, variables):  # noqa: N802
        place = variables["project"], variables["name"]
        inserted = place not in self.runs
        run = self.runs.setdefault(place, Run())
        run.fields.update({name: value for name, value in variables.items() if value is not None})
        for name, held in json.loads(variables["config"] or "{}").items():
            run.config[name] = held["value"]
        project = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": ENTITY}}
        bucket = {
            "id": "b",
            "name": variables["name"],
            "displayName": variables["displayName"] or variables["name"],
            "description": None,
            "config": "{}",
            "sweepName": None,
            "project": project,
            "historyLineCount": len(run.rows),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _CreateRunFiles(self, variables):  # noqa: N802
        where = f"{self.url}/storage/{variables['project']}/{variables['run']}"
        files = [{"name": name, "uploadUrl": f"{where}/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}

    def _ArtifactType(self, variables):  # noqa: N802
        return {"project": None}

    def _ServerFeaturesQuery(self, variables):  # noqa: N802
        return {"serverInfo": {"features": []}}

    def _CreateArtifact(self, variables):  # noqa: N802
        # As if it were there already: a table's content comes as a file of the run, too.
        sequence = {"latestArtifact": {"id": "t"}}
        return {"createArtifact": {"artifact": {"id": "t", "state": "COMMITTED", "artifactSequence": sequence}}}

    def _UpsertView2(self, variables):  # noqa: N802
        self.saved.append(variables)
        return {"upsertView": {"view": {"id": "w", "name": variables["name"]}, "inserted": True}}

    def _upsertView(self, variables):  # noqa: N802
        self.saved.append(variables)
        project = {"id": "p", "name": variables["projectName"], "entityName": variables["entityName"]}
        names = ("name", "displayName", "description", "spec")
        view = {"id": "r", "type": "runs", "project": project, **{name: variables[name] for name in names}}
        return {"upsertView": {"view": view, "inserted": True}}

    def _ProjectInternalId(self, variables):  # noqa: N802
        return {"project": {"id": "p", "internalId": "p"}}

    def _GetProjects(self, variables):  # noqa: N802
        known = {"id": "p", "name": "subl", "entityName": "us", "createdAt": "", "isBenchmark": False, "user": None}
        return {"models": {"pageInfo": {"endCursor": None, "hasNextPage": False}, "edges": [{"node": known}]}}

    # --- the file stream ---

    def stream(self, project: str, run_id: str, sent: dict[str, Any]) -> None:
        run = self.runs.setdefault((project, run_id), Run())
        history = sent.get("files", {}).get("wandb-history.jsonl")
        for i, line in enumerate(history["content"] if history else ()):
            run.rows[history["offset"] + i] = json.loads(line)
        for line in sent.get("files", {}).get("wandb-summary.json", {}).get("content", ()):
            run.summary = json.loads(line)
        if sent.get("complete"):
            run.exit_code = sent.get("exitcode")


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Http"

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _reply(self, content: Any, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _handle(self) -> None:
        state, body, path = self.server.state, self._body(), self.path.lstrip("/").split("/")
        if path == ["graphql"]:
            asked = json.loads(body)
            found = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            operation, variables = found[1] if found else "", asked.get("variables") or {}
            run = variables.get("name") or variables.get("run") or ""
        elif path[0] == "files":
            operation, run = "FileStream", path[3]
        else:
            operation, run = "Storage", path[2] if len(path) > 2 else ""
        with state.lock:
            state.asked.append((operation, run))
            fault = state.fault(operation, run)
        if fault == "hang":
            state.stopping.wait()
            self.close_connection = True
            return
        if fault:
            return self._reply({"errors": [{"message": f"refused with {fault}"}], "error": "refused"}, int(fault))
        with state.lock:
            if operation == "FileStream":
                state.stream(path[2], path[3], json.loads(body))
                content = {}
            elif operation == "Storage":
                state.runs.setdefault((path[1], path[2]), Run()).files["/".join(path[3:])] = body
                content = {}
            else:
                content = {"data": state.answer(operation, variables)}
        self._reply(content)

    do_POST = do_PUT = do_GET = _handle  # noqa: N815

    def log_message(self, *args) -> None:
        pass


class _Http(http.server.ThreadingHTTPServer):
    daemon_threads = True
    state: Server

    def handle_error(self, request, client_address) -> None:
        pass  # a client that was stopped


@contextmanager
def serving() -> Iterator[Server]:
    """A server that listens until the block ends."""
    state = Server()
    listening = _Http(("127.0.0.1", 0), _Handler)
    listening.state = state
    state.url = f"http://127.0.0.1:{listening.server_port}"
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.stopping.set()
        listening.shutdown()
        listening.server_close()
        thread.join()
