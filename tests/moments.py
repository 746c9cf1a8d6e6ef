"""Named moments at which a test stops a sweep in another process, whatever the speed of the machine.

A process whose environment names a `Stops` tells it of every moment it comes to, and goes on when it is answered: at
once, or, at the moment that the test waits for, when the test lets it go or sends it a signal. Nobody sleeps or polls.

    loaded                        the sweep file is read, and nothing has begun
    compiled   stage              a program is compiled, and has not run
    began      stage, batch       the batch, the first being 1, is on the device from its start
    stretch    stage, batch, steps, ends    so many more steps are dispatched, up to the end of a round or not
    saved      stage, batch, save           the save is sealed, and the batch goes on only after the stop
    storing, stored   stage, put            in the thread that writes: before and after the batch is stored
    written    file               a table of the workdir

Each has `process` (of several that are one program), `pid` and `parent`. Counts are of this process's life.
"""

import functools
import json
import os
import queue
import select
import signal
import socket
import sys
import threading

VARIABLE = "SUBL_JAX_TEST_MOMENTS"
PATIENCE = 900.0  # seconds; only a test that fails takes so long


# --- the process that is stopped ---


def announce(at, **facts):
    """Tells of a moment, and returns when this process is to go on."""
    host, _, port = os.environ[VARIABLE].rpartition(":")
    try:
        with socket.create_connection((host, int(port))) as line:
            line.sendall(json.dumps({"at": at, "pid": os.getpid(), "parent": os.getppid(), **facts}).encode() + b"\n")
            _wait(line)
    except OSError:  # the test is over
        return


def _wait(line):
    """Until the test answers, or a signal comes that Python has a handler for."""
    if threading.current_thread() is not threading.main_thread():
        line.recv(1)
        return
    told, tell = socket.socketpair()
    with told, tell:
        tell.setblocking(False)
        before = signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
        try:
            select.select([line, told], [], [])
        finally:
            signal.set_wakeup_fd(before)


class _Course:
    """How far this process has come."""

    def __init__(self):
        self.stages = {}  # the text of a program → its stage
        self.stage, self.arguments, self.batch, self.save, self.puts = "", None, {}, 0, {}

    def enter(self, program, arguments):
        self.stage = self.stages.get(program.text, "")
        if arguments is not self.arguments:
            self.arguments, self.save = arguments, 0
            self.batch[self.stage] = self.batch.get(self.stage, 0) + 1

    @property
    def where(self):
        return {"stage": self.stage, "batch": self.batch.get(self.stage, 0)}


@functools.cache  # once a process
def install():
    """Has this process announce its moments."""
    import jax

    from subl_jax.engine import lanes
    from subl_jax.engine.checkpoint import Checkpoints
    from subl_jax.storage import atomic
    from subl_jax.storage.store import Store

    course = _Course()

    def tell(at, **facts):
        announce(at, process=jax.process_index(), **facts)

    def wrap(owner, name, made):
        """`made(original)` takes the place of a method, or of a function wherever it is imported."""
        original = getattr(owner, name)
        wrapped = functools.wraps(original)(made(original))
        for each in [owner] if isinstance(owner, type) else list(sys.modules.values()):
            if each is owner or getattr(each, "__dict__", {}).get(name) is original:
                setattr(each, name, wrapped)

    def compiling(original):
        def compile_program(stage, *arguments, **options):
            program = original(stage, *arguments, **options)
            course.stages[program.text] = stage.name
            tell("compiled", stage=stage.name)
            return program

        return compile_program

    def starting(original):
        def start(self, arguments):
            course.enter(self, arguments)
            state = original(self, arguments)
            tell("began", **course.where)
            return state

        return start

    def advancing(original):
        def advance(self, arguments, state, steps, measure=True):
            course.enter(self, arguments)
            done = original(self, arguments, state, steps, measure)
            tell("stretch", **course.where, steps=int(steps), ends=bool(measure))
            return done

        return advance

    def saving(original):
        def save(self, *arguments, **options):
            original(self, *arguments, **options)
            self.wait()
            course.save += 1
            tell("saved", **course.where, save=course.save)

        return save

    def storing(original):
        def put(self, stage, *arguments, **options):
            course.puts[stage] = course.puts.get(stage, 0) + 1
            number = course.puts[stage]
            tell("storing", stage=stage, put=number)
            entry = original(self, stage, *arguments, **options)
            tell("stored", stage=stage, put=number)
            return entry

        return put

    def writing(original):
        def write_parquet_atomic(path, table):
            original(path, table)
            tell("written", file=os.path.basename(os.fspath(path)))

        return write_parquet_atomic

    wrap(lanes, "compile_program", compiling)
    wrap(lanes.Program, "start", starting)
    wrap(lanes.Program, "advance", advancing)
    wrap(Checkpoints, "save", saving)
    wrap(Store, "put", storing)
    wrap(atomic, "write_parquet_atomic", writing)
    announce("loaded")


# --- the test ---


def at(name, **facts):
    """A moment to wait for: of that name, with these facts."""
    wanted = {"at": name, **facts}
    return lambda told: wanted.items() <= told.items()


def nth(number, **facts):
    """The moment that is the `number`-th, from 1, of all with these facts."""
    left = [number]

    def reached(told):
        left[0] -= facts.items() <= told.items()
        return left[0] == 0

    return reached


class Stop:
    """A process that has come to its moment, `told`, and waits there."""

    def __init__(self, told, line):
        self.told, self._line = told, line

    def __repr__(self):
        return f"Stop({self.told})"

    @property
    def pid(self):
        return self.told["pid"]

    def send(self, number):
        """Sends it a signal, and lets go: a signal that Python handles is met right after the moment."""
        os.kill(self.pid, number)
        self.go_on()

    def go_on(self):
        self._line.close()


class Stops:
    """Stops the first process that comes to each of `moments`, one moment after the other; others go on at once."""

    def __init__(self, *moments):
        self._moments = list(moments)
        self._lock = threading.Lock()
        self._news = queue.Queue()
        self._server = socket.create_server(("localhost", 0))
        self._held = []
        self._open = True
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """All that still wait go on."""
        self._open = False
        socket.create_connection(self._server.getsockname()).close()
        self._thread.join()
        self._server.close()
        for stop in self._held:
            stop.go_on()

    @property
    def environment(self):
        """What a process needs to be told."""
        return {VARIABLE: f"localhost:{self._server.getsockname()[1]}"}

    def expect(self, *moments):
        """Further moments, after those that have been asked for."""
        with self._lock:
            self._moments.extend(moments)

    def _serve(self):
        while self._open:
            line, _ = self._server.accept()
            with line.makefile() as file:
                text = file.readline()
            if not text.endswith("\n"):  # killed while it told, or the end
                line.close()
                continue
            stop = Stop(json.loads(text), line)
            with self._lock:
                reached = bool(self._moments) and self._moments[0](stop.told)
                if reached:
                    del self._moments[0]
            if reached:
                self._held.append(stop)
                self._news.put(stop)
            else:
                stop.go_on()

    def next(self, *processes):
        """The next process that stops. Fails where one of `processes` ends before."""
        stop = self.next_or_end(*processes)
        assert stop, [
            (process.args, process.returncode, process.communicate()) for process in processes if process.poll()
        ]
        return stop

    def next_or_end(self, *processes):
        """The next process that stops, or None where one of `processes` ends before."""

        def watch(process):
            process.wait()
            self._news.put(process)

        for process in processes:
            threading.Thread(target=watch, args=(process,), daemon=True).start()
        while True:
            news = self._news.get(timeout=PATIENCE)
            if isinstance(news, Stop):
                return news
            if news in processes:
                return None
