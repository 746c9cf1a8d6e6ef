"""A stand-in for an object store: `gs://` paths in memory, behind the same etils.epath and fsspec as a real bucket."""

import collections
import contextlib
import random

import fsspec
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry


class Bucket(MemoryFileSystem):
    """Files in memory. `faults` makes operations fail: it is called with the name and path of each one."""

    protocol = ("gcs", "gs")
    cachable = False
    store = {}
    pseudo_dirs = [""]
    faults = staticmethod(lambda operation, path: None)

    def __init__(self, *args, **kwargs):
        kwargs.pop("finalize_on_close", None)
        super().__init__(*args, **kwargs)

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(str(path).removeprefix("gs://").removeprefix("gcs://"))

    def open(self, path, mode="rb", **kwargs):
        self.faults("write" if "w" in mode else "read", str(path))
        return super().open(path, mode, **kwargs)

    def info(self, path, **kwargs):
        self.faults("stat", str(path))
        return super().info(path, **kwargs)

    def exists(self, path, **kwargs):
        """As the client of a real bucket: what cannot be told is an error, not a no."""
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def ls(self, path, detail=True, **kwargs):
        self.faults("list", str(path))
        return super().ls(path, detail, **kwargs)

    def rm(self, path, recursive=False, maxdepth=None):
        self.faults("remove", str(path))
        # Object stores have no folders to be removed with the last file.
        return super().rm(path, recursive, maxdepth)


@contextlib.contextmanager
def bucket(faults=None):
    """An empty bucket at `gs://`; gives its class."""
    Bucket.store, Bucket.pseudo_dirs = {}, [""]
    Bucket.faults = staticmethod(faults or (lambda operation, path: None))
    before = dict(_registry)
    for name in Bucket.protocol:
        fsspec.register_implementation(name, Bucket, clobber=True)
    backend.fsspec_backend._get_filesystem.cache_clear()
    try:
        yield Bucket
    finally:
        _registry.clear()
        _registry.update(before)
        backend.fsspec_backend._get_filesystem.cache_clear()


class Stumbling:
    """Faults that pass: operations fail now and then, in a folder at most three times, so that none fails for good."""

    ERRORS = (
        lambda: TimeoutError("the read operation timed out"),
        lambda: ConnectionResetError(104, "Connection reset by peer"),
        lambda: OSError("503 Service Unavailable"),
        lambda: OSError(110, "Connection timed out"),
    )

    def __init__(self, seed=0, share=0.3):
        self._rng = random.Random(seed)
        self._share = share
        self.count = 0
        self._in_folder = collections.Counter()

    def __call__(self, operation, path):
        folder = path.rpartition("/")[0]
        if self._rng.random() < self._share and self._in_folder[folder] < 3:
            self.count += 1
            self._in_folder[folder] += 1
            raise self._rng.choice(self.ERRORS)()
