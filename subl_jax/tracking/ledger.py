"""Which runs have been delivered, for the next command on the same workdir."""

import pathlib
import threading


class Ledger:
    """A text file of finished run ids, one a line. A last line without its end (a killed process) does not count."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._lock = threading.Lock()
        text = path.read_bytes() if path.exists() else b""
        self._whole = text.rfind(b"\n") + 1
        self._ids = set(text[: self._whole].decode(errors="replace").splitlines())

    def ids(self) -> frozenset[str]:
        with self._lock:
            return frozenset(self._ids)

    def add(self, run_id: str) -> None:
        if run_id in self.ids():
            return
        line = f"{run_id}\n".encode()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "r+b" if self._path.exists() else "wb") as file:
            file.truncate(self._whole)
            file.seek(self._whole)
            file.write(line)
        with self._lock:
            self._whole += len(line)
            self._ids.add(run_id)
