"""bench/accelerator_run.py: what it runs, in which time, and what it leaves to the next start. Parts are stand-ins."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import accelerator_run

    yield accelerator_run
    sys.modules.pop("accelerator_run")


def part(does):
    """A process that does as told with its file: `path`."""
    return lambda each, path, seconds: [
        sys.executable,
        "-c",
        f"import json, pathlib, signal, sys\npath = pathlib.Path({str(path)!r})\n{does[each.name]}",
    ]


def whole(what="x"):
    return f"path.write_text(json.dumps({{'whole': True, 'lines': [[{what!r}, '1', '']], 'date': '2026-01-02T03'}}))"


def test_time_that_is_left_goes_to_those_that_come_after(script):
    a, b, c = (script.Part(name, share) for name, share in (("a", 10), ("b", 20), ("c", 10)))
    assert script.allowance(a, (a, b, c), 80.0) == 20.0
    assert script.allowance(b, (b, c), 75.0) == 50.0  # five seconds were all that the first took
    assert script.allowance(c, (c,), 30.0) == 30.0


def test_what_is_there_is_not_run_again_and_what_is_not_whole_goes_on(script, tmp_path):
    parts = [script.Part(name, 10.0) for name in ("done", "half", "new", "broken")]
    (tmp_path / "done.json").write_text(json.dumps({"whole": True, "lines": [["earlier", "7", "≥ 5"]]}))
    (tmp_path / "half.json").write_text(json.dumps({"whole": False, "measured": {"1": 2}}))
    half = "assert json.loads(path.read_text())['measured'] == {'1': 2}\n" + whole("half")
    does = {"done": "raise SystemExit('again')", "half": half, "new": whole("new"), "broken": "raise SystemExit('no')"}
    said = []
    script.run(parts, tmp_path, 40000.0, part(does), say=said.append)
    assert said[0] == "done: is there"
    assert any(line.startswith("half: whole") for line in said) and any(line.startswith("new: whole") for line in said)
    assert said[-1].startswith("broken: nothing measured") and said[-1].endswith("(no)")
    table = script.summary(parts, tmp_path)
    assert list(table.columns[1].cells) == ["earlier", "half", "new", "nothing yet"]
    assert list(table.columns[3].cells)[0] == "≥ 5"
    said.clear()
    script.run(parts[:3], tmp_path, 40000.0, part(does), say=said.append)
    assert said == ["done: is there", "half: is there", "new: is there"]


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_part_that_is_too_slow_is_ended_and_keeps_what_it_has(script, tmp_path, monkeypatch, stubborn):
    monkeypatch.setattr(script, "_GRACE", 0.0)
    monkeypatch.setattr(script, "_LEAST", 0.0)
    (tmp_path / "slow.json").write_text('{"whole": false}')
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if stubborn else ""
    does = {"slow": ignore + "signal.pause()", "next": whole()}
    parts = [script.Part("slow", 1.0), script.Part("next", 60000.0)]
    said = []
    script.run(parts, tmp_path, 60005.0, part(does), say=said.append)
    assert said[1].startswith("slow: goes on next time") and "its time was up" in said[1]
    assert said[3].startswith("next: whole")


def test_a_part_without_time_is_left_to_the_next_start(script, tmp_path):
    said = []
    script.run([script.Part("a", 100.0)], tmp_path, 10.0, part({"a": whole()}), say=said.append)
    assert said == ["a: no time left"] and not list(tmp_path.iterdir())


def test_nine_minutes_are_not_exceeded_whatever_the_parts_do(script, tmp_path):
    """With a clock of its own, on which every part takes all that it is given."""
    now = [0.0]

    def slow(each, path, seconds):
        now[0] += seconds
        return part({each.name: "pass"})(each, path, seconds)

    script.run(script.PARTS, tmp_path, 540.0, slow, say=lambda line: None, clock=lambda: now[0])
    assert 500.0 < now[0] <= 540.0


@pytest.mark.slow
def test_the_whole_script_at_tiny_sizes(tmp_path):
    """Every part but chat, which needs a model."""
    names = ["toy_32", "digits", "adapters_1.5B", "writing_1.5B"]
    command = ["bash", "bench/accelerator_run.sh", "--tiny", "--minutes=60", f"--out={tmp_path}", "--only", *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in names:
        data = json.loads((tmp_path / f"{name}.json").read_text())
        assert data["whole"] and data["tiny"] and data["lines"] and data["device"]
    assert "MFU" not in done.stdout and "lane-steps/s" in done.stdout and "six bars, 2 models" in done.stdout
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.stdout.count("is there") == len(names)
