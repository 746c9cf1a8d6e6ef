"""Runs a sweep file: students, tables, figures and the page.

  --config FILE[:ARGUMENT]   a sweep file; the argument goes to its get_config()
  --config.NAME=VALUE        another value for one of its settings
  --workdir DIR              where results go, also gs://…; default runs/NAME
  --dry_run                  print the plan, compute nothing
  --verbose                  also say how students are spread over devices
  --profile                  also write jax's trace of the largest group
  --prune                    remove what this sweep does not need

On a Ray cluster (docs/ray.md):
  --launcher=ray             compute there; by default on this machine
  --ray_address=HOST:PORT    its head; by default of this machine's cluster
  --ray_resources=GPU=1      what a batch takes of a machine; GPU=1,CPU=8
  --ray_slice=v6e:4x4        what computes a batch together: a TPU slice, or N

Several processes as one, all started with the same command (docs/launch.md):
  --distributed              find the others as Slurm, Open MPI, Kubernetes say
  --coordinator HOST:PORT --num_processes N --process_id I   or by hand

Exit status: 0 all runs are ok; 1 some are not, or storing failed; 2 bad input,
nothing was computed; 75 interrupted, the same command goes on.
"""

import functools
import importlib.util
import inspect
import pathlib
import re
import sys
import textwrap
import traceback
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from subl_jax import specs
from subl_jax.app.code import code_of
from subl_jax.app.command import said
from subl_jax.engine.settings import Settings
from subl_jax.errors import FleetError, InputError, OutOfMemory, PeerLost, Preempted, StorageError
from subl_jax.runtime import cluster, devices
from subl_jax.runtime.cluster import PREEMPTED, RESUME
from subl_jax.tracking import plain_text

_LONGEST = 300  # characters of an error that the user's own file raised
_OVERRIDABLE = (int, float, bool, str, tuple)


class Command(NamedTuple):
    name: str
    students: list[specs.Student]
    settings: Settings
    config: dict[str, Any]
    workdir: str
    dry_run: bool
    prune: bool
    profile: bool
    verbose: bool
    fleet: tuple[str, str, str] | None  # a Ray cluster's address, the resources of a batch, and its slice
    cluster: cluster.Options
    code: dict[str, bytes]  # the sweep file and its imports from beside it


def main(argv: Sequence[str]) -> int:
    """Runs one command line (without the program's name in front) and returns its exit status.

    Of several processes, one that ends in a way the others do not know of ends here, and they notice.
    """
    plain_text.allow()
    try:
        if {"-h", "--help", "--helpfull"} & set(argv):
            print(__doc__)
            return 0
        file, rest = split_config(argv)
        module = load_sweep(file)
        devices.prepare()
        return cluster.leave(_execute(command(file, module, rest)))
    except InputError as error:
        return cluster.leave(said(f"error: {error}", 2))
    except (FleetError, OutOfMemory, StorageError) as error:
        return cluster.leave(said(f"error: {error}", 1))
    except PeerLost as error:
        return cluster.abandon(said(f"preempted: {error}; {RESUME}", PREEMPTED))
    except Preempted:
        return cluster.leave(said(f"preempted: {RESUME}", PREEMPTED))
    except KeyboardInterrupt:
        return cluster.abandon(said(f"preempted: {RESUME}", PREEMPTED))
    except BaseException:
        if cluster.joined():
            traceback.print_exc()
            cluster.abandon(1)
        raise


def _execute(command: Command) -> int:
    # Imported late: the command line's mistakes are told before jax starts.
    from rich.console import Console

    from subl_jax.app import dry_run, pruning, running
    from subl_jax.fleet import Fleet
    from subl_jax.results.comparisons import Summarised
    from subl_jax.tracking.final_table import print_outcome
    from subl_jax.tracking.terminal import Progress

    console = Console()
    if command.prune:
        say = functools.partial(console.print, soft_wrap=True, highlight=False, markup=False)
        keep = command.settings.keep
        pruning.prune(command.students, command.workdir, keep, dry_run=command.dry_run, say=say)
        return 0
    if command.dry_run:
        devices.check()
        with devices.usual_settings(lambda line: print(f"warning: {line}", file=sys.stderr)):
            dry_run.show(console, command.students, command.workdir, command.settings, command.verbose)
        return 0
    cluster.start(command.cluster)
    devices.check()
    outcome = running.run(
        command.students,
        command.workdir,
        name=command.name,
        settings=command.settings,
        config=command.config,
        progress=Progress(console, verbose=command.verbose) if cluster.peers().leads else None,
        fleet=Fleet.parsed(*command.fleet) if command.fleet else None,
        profile=command.profile,
        code=command.code,
    )
    results = outcome.results
    if cluster.peers().leads:
        try:
            files = running.finished_files(results.workdir)
            print_outcome(console, Summarised(results.summary, results.comparisons), files, outcome.lines)
        except Exception as error:  # the results are stored: a table that cannot be shown costs no more than a line
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            said(f"warning: {results.workdir}: the tables are stored, but cannot be shown: {reason}", 0)
    return 0 if outcome.all_ok else 1


# --- from arguments to a command ---


def split_config(argv: Sequence[str]) -> tuple[str, list[str]]:
    """Takes `--config FILE` or `--config=FILE` out of the arguments.

    Raises:
      InputError: it is not there, or more than once.
    """
    found, rest = [], []
    arguments = iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            found.append(value if equals else next(arguments, ""))
        else:
            rest.append(argument)
    given = [file for file in found if file]
    if len(given) != 1:
        raise InputError(f"expected one --config FILE, got {len(given)}; for example --config sweeps/traits.py")
    return given[0], rest


def load_sweep(file: str) -> types.ModuleType:
    """The module of a sweep file (`FILE` or `FILE:ARGUMENT`), anywhere on the disk.

    Raises:
      InputError: no such file, not Python, or without `get_config` and `sweep`.
    """
    path = pathlib.Path(_path_of(file)).expanduser()
    if not path.is_file():
        here = sorted(str(other) for other in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise InputError(f"--config {path}: no such file" + (f"; {specs.nearest(str(path), here)}" if here else ""))
    spec = importlib.util.spec_from_file_location(_module_name(path), path)
    if spec is None or spec.loader is None:
        raise InputError(f"--config {path}: not a Python file; expected a name that ends in .py")
    module = importlib.util.module_from_spec(spec)
    # Registered so that a world defined in the file can be found again by its name.
    sys.modules.setdefault(module.__name__, module)
    _guarded(path, "import", lambda: spec.loader.exec_module(module))
    for name in ("get_config", "sweep"):
        if not callable(getattr(module, name, None)):
            raise InputError(f"--config {path}: has no {name}(); a sweep file has get_config() and sweep(config)")
    return module


def _module_name(path: pathlib.Path) -> str:
    """The name of the file, or another where a package is called so: `import wandb` must not find a sweep."""
    try:
        found = importlib.util.find_spec(path.stem)
    except (ImportError, ValueError):  # not a name of a module; or one in sys.modules that was made by hand
        found = None
    same = found and found.origin and pathlib.Path(found.origin).resolve() == path.resolve()
    return path.stem if found is None or same else f"sweep_file_{path.stem}"


def command(file: str, module: types.ModuleType, arguments: Sequence[str]) -> Command:
    """All that the command line says.

    Raises:
      InputError: a mistake in the arguments, the sweep file, or the specs that it makes.
    """
    path, argument = pathlib.Path(_path_of(file)).expanduser(), file[len(_path_of(file)) + 1 :]
    config = _guarded(path, "get_config", lambda: _get_config(path, module, argument))
    if not isinstance(config, ConfigDict):
        given = type(config).__name__
        raise InputError(f"--config {path}: get_config() gives a {given}, expected an ml_collections.ConfigDict")
    engine = config.get("engine", ConfigDict())
    if not isinstance(engine, ConfigDict):
        raise InputError(f"--config {path}: config.engine is a {type(engine).__name__}, expected a ConfigDict")
    with config.unlocked():
        config.engine = ConfigDict({**_engine_defaults(), **engine.to_dict()})
        config.tracker = config.get("tracker", Settings().tracker)
        config.project = config.get("project", Settings().project)
    values, config = _parsed(arguments, config)
    name = path.stem + (f"-{re.sub(r'[^A-Za-z0-9_.-]+', '-', argument)}" if argument else "")
    for key in config.engine:
        if key not in _engine_defaults():
            raise InputError(f"config.engine.{key}: no such setting; {specs.nearest(key, _engine_defaults())}")
    try:
        settings = Settings(**config.engine.to_dict(), tracker=config.tracker, project=config.project)
    except InputError as error:
        raise InputError(re.sub(r"^Settings\.(tracker|project)?", _configured, str(error))) from None
    students = _guarded(path, "sweep", lambda: specs.checked(module.sweep(config), f"{path}: sweep()"))
    workdir = values.workdir or f"runs/{name}"
    joined = cluster.Options(values.distributed, values.coordinator, values.num_processes, values.process_id)
    fleet = _fleet(values)
    kinds = (values.dry_run, values.prune, values.profile, values.verbose)
    return Command(name, students, settings, config.to_dict(), workdir, *kinds, fleet, joined, code_of(path))


def _fleet(values: flags.FlagValues) -> tuple[str, str, str] | None:
    """The Ray cluster's address, the resources of a batch and its slice, where batches are to be computed on one."""
    ray = values.launcher == "ray"
    names = ("distributed", "coordinator", "process_id") if ray else ("ray_address", "ray_resources", "ray_slice")
    given = next((name for name in names if values[name].present), None)
    if given and ray:
        raise InputError(f"--{given}: does not go with --launcher=ray, which starts processes itself; leave it out")
    if given:
        raise InputError(f"--{given}={values[given].value}: is for --launcher=ray; add that, or leave this out")
    return (values.ray_address, values.ray_resources, values.ray_slice) if ray else None


def _engine_defaults() -> dict[str, Any]:
    return {name: getattr(Settings(), name) for name in specs.roles(Settings) if name not in ("tracker", "project")}


def _configured(match: re.Match[str]) -> str:
    """Where in a config the field of `Settings` that an error names is set."""
    return f"config.{match[1]}" if match[1] else "config.engine."


def _path_of(file: str) -> str:
    """FILE of FILE:ARGUMENT."""
    match = re.match(r"(.*?\.py)(?::.*)?$", file, re.DOTALL)
    return match[1] if match else file.partition(":")[0]


def _get_config(path: pathlib.Path, module: types.ModuleType, argument: str) -> Any:
    if not argument:
        return module.get_config()
    if not inspect.signature(module.get_config).parameters:
        raise InputError(f"--config {path}: its get_config() takes no argument; leave out ':{argument}'")
    return module.get_config(argument)


def _parsed(arguments: Sequence[str], config: ConfigDict) -> tuple[flags.FlagValues, ConfigDict]:
    """The flags, and the config with its overrides."""
    kinds = _kinds(config)
    for argument in arguments:
        override = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        if not override:
            continue
        name = override[1]
        if name not in kinds:
            raise InputError(f"--config.{name}: no such setting; {specs.nearest(name, kinds)}")
        if kinds[name] not in _OVERRIDABLE:
            listing = ", ".join(kind.__name__ for kind in _OVERRIDABLE)
            raise InputError(f"--config.{name}: a {kinds[name].__name__} cannot be set here, only {listing}")
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Where results go.", flag_values=values)
    flags.DEFINE_bool("dry_run", False, "Print the plan, compute nothing.", flag_values=values)
    flags.DEFINE_bool("prune", False, "Remove what is not needed, compute nothing.", flag_values=values)
    flags.DEFINE_bool("profile", False, "Write a profiler trace of some steps.", flag_values=values)
    flags.DEFINE_bool("verbose", False, "Say more of layouts.", flag_values=values)
    flags.DEFINE_enum("launcher", "local", ["local", "ray"], "Where batches are computed.", flag_values=values)
    flags.DEFINE_string("ray_address", "auto", "The head of a Ray cluster.", flag_values=values)
    flags.DEFINE_string("ray_resources", "", "What a batch takes of a machine.", flag_values=values)
    flags.DEFINE_string("ray_slice", "", "What computes a batch together.", flag_values=values)
    flags.DEFINE_bool("distributed", None, "One of several processes.", flag_values=values)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "How many processes.", flag_values=values)
    flags.DEFINE_integer("process_id", None, "Which of them this is.", flag_values=values)
    argv = ["sweep", *arguments]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        left = values(argv)[1:]
    except (flags.Error, ValueError, TypeError, SyntaxError) as error:
        line = " ".join(str(error).split()).removeprefix("flag ")
        name, _, rest = line.removeprefix("--config.").partition("=")
        if name in kinds:
            line = f"--config.{name}={rest}; expected {kinds[name].__name__}"
        raise InputError(line) from None
    if left:
        raise InputError(f"{left[0]!r}: not understood; options begin with --, as in --config.seeds=8")
    config = values.config
    for name, kind in kinds.items():
        *way, last = name.split(".")
        holder = functools.reduce(getattr, way, config)
        if kind is str and holder[last] == "None":  # as one would write it in Python; a spec refuses it where it must
            with holder.ignore_type():
                holder[last] = None
    return values, config


def _kinds(config: ConfigDict, prefix: str = "") -> dict[str, type]:
    """Every setting's dotted name → its type."""
    kinds: dict[str, type] = {}
    for name in config:
        value = config[name]
        inner = isinstance(value, ConfigDict)
        kinds.update(_kinds(value, f"{prefix}{name}.") if inner else {prefix + name: type(value)})
    return kinds


def _guarded(path: pathlib.Path, what: str, call: Callable[[], Any]) -> Any:
    """`call()`; an error of the user's file becomes one line that says where in it."""
    try:
        return call()
    except InputError:
        raise
    except SyntaxError as error:
        raise InputError(f"--config {error.filename}, line {error.lineno}: {error.msg}") from None
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path.absolute())]
        where = f", line {lines[-1]}" if lines else ""
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", _LONGEST, placeholder=" …")
        raise InputError(f"--config {path}{where}: {what} failed: {reason}") from None
