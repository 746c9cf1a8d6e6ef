"""A Ray cluster of node processes on this machine, held by a process of its own: it forks, which jax forbids.

The process takes one call a line, [method, arguments], as JSON, and answers each with what it gives. It ends, and the
cluster with it, when its input does.
"""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
TESTS = ROOT / "tests"


class Machines:
    """A head that computes nothing, and workers of one CPU. `environment` is for all that runs on them."""

    def __init__(self, log, environment, workers=2):
        path = os.pathsep.join([str(ROOT), str(TESTS)])
        self._log = log.open("w")
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, "PYTHONPATH": path, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.address = self._call("start")
        self.nodes = [self.add_node() for _ in range(workers)]

    def _call(self, method, **arguments):
        self._process.stdin.write(json.dumps([method, arguments]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, pathlib.Path(self._log.name).read_text()
        return json.loads(answer)

    def add_node(self, **options):
        """A worker, once it is there: {"id", "raylet"}, the latter the pid that its processes are started by."""
        return self._call("add", options={"num_cpus": 1, **options})

    def remove_node(self, node):
        """As if its machine were lost."""
        self._call("remove", id=node["id"])

    def reservations(self):
        """Of machines, that are still held or waited for."""
        return self._call("reservations")

    def close(self):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()


class _Cluster:
    """What the process does for each method."""

    def start(self):
        from ray.cluster_utils import Cluster

        self._cluster, self._nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0}), {}
        return self._cluster.address

    def add(self, options):
        node = self._cluster.add_node(**options)
        self._cluster.wait_for_nodes()
        self._nodes[node.node_id] = node
        return {"id": node.node_id, "raylet": node.all_processes["raylet"][0].process.pid}

    def remove(self, id):
        self._cluster.remove_node(self._nodes.pop(id), allow_graceful=False)

    def reservations(self):
        import ray

        ray.init(address=self._cluster.address, log_to_driver=False, logging_level="error")
        try:
            table = ray.util.placement_group_table()
        finally:
            ray.shutdown()
        return [group for group in table.values() if group["state"] != "REMOVED"]

    def stop(self):
        self._cluster.shutdown()


def main():
    # What Ray prints is not to come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    cluster = _Cluster()
    try:
        for line in sys.stdin:
            method, arguments = json.loads(line)
            answer = getattr(cluster, method)(**arguments)
            answers.write(json.dumps(answer, default=str) + "\n")
            answers.flush()
    finally:
        cluster.stop()


if __name__ == "__main__":
    main()
