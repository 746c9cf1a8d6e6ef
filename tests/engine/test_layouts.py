import json

import jax
import pytest

from subl_jax.engine import layouts
from subl_jax.engine.lanes import Layout
from subl_jax.runtime import machine_cache

DEFAULT, WIDE, WIDER = Layout(4, 4, 1), Layout(4, 2, 2), Layout(4, 1, 4)
CANDIDATES = [DEFAULT, WIDE, WIDER]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SUBL_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "layouts.json"


class Machine:
    """Times layouts as it is told, and remembers what it was asked to time and to compile."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.timed, self.compiled = [], []

    def choose(self, form="a form", candidates=CANDIDATES, total_steps=1000, measure_above=10.0):
        def program(layout):
            return type("Program", (), {"layout": layout})()

        def timed(layout):
            self.timed.append(layout)
            return self.seconds[layout], program(layout)

        def compiled(layout):
            self.compiled.append(layout)
            return program(layout)

        return layouts.choose(form, candidates, total_steps, measure_above, timed, compiled).layout


def test_the_fastest_layout_is_chosen_and_remembered(cache):
    first = Machine({DEFAULT: 0.1, WIDE: 0.05, WIDER: 0.08})
    assert first.choose() == WIDE
    assert first.timed == CANDIDATES
    second = Machine({})
    assert second.choose() == WIDE
    assert (second.timed, second.compiled) == ([], [WIDE])
    (entry,) = json.loads(cache.read_text()).values()
    assert entry["seconds_per_lane_step"] == {str(DEFAULT): 0.1, str(WIDE): 0.05, str(WIDER): 0.08}


def test_a_layout_that_is_hardly_faster_is_not_worth_its_compilation():
    assert Machine({DEFAULT: 0.1, WIDE: 0.099, WIDER: 0.098}).choose() == DEFAULT


def test_a_group_that_is_done_soon_is_not_measured(cache):
    machine = Machine({DEFAULT: 0.1})
    assert machine.choose(total_steps=99) == DEFAULT
    assert machine.timed == [DEFAULT]
    assert not cache.exists()


@pytest.mark.parametrize("other", ["form", "version", "jax", "devices"])
def test_another_program_or_machine_is_measured_anew(other, monkeypatch):
    Machine({DEFAULT: 0.1, WIDE: 0.05, WIDER: 0.08}).choose()
    form = "another form" if other == "form" else "a form"
    if other == "version":
        monkeypatch.setattr(machine_cache, "__version__", "0.0.0")
    if other == "jax":
        monkeypatch.setattr(jax, "__version__", "0.0.0")
    if other == "devices":
        monkeypatch.setattr(jax, "local_device_count", lambda: 64)
    machine = Machine({DEFAULT: 0.1, WIDE: 0.2, WIDER: 0.05})
    assert machine.choose(form=form) == WIDER
    assert machine.timed == CANDIDATES


def test_what_is_remembered_of_one_number_of_lanes_serves_another():
    Machine({DEFAULT: 0.1, WIDE: 0.05, WIDER: 0.04}).choose()
    fewer = [Layout(3, 4, 1), Layout(3, 2, 2), Layout(3, 1, 3)]
    machine = Machine({})
    assert machine.choose(candidates=fewer) == Layout(3, 1, 3)
    assert machine.timed == []


def test_a_remembered_layout_that_no_candidate_is_like_is_not_used():
    Machine({DEFAULT: 0.1, WIDE: 0.05, WIDER: 0.04}).choose()
    machine = Machine({Layout(1, 1, 2): 0.01})
    assert machine.choose(candidates=[Layout(1, 1, 2)], total_steps=1) == Layout(1, 1, 2)
    assert machine.timed == [Layout(1, 1, 2)]


@pytest.mark.parametrize("content", ["", "{", "[]", "5", '{"KEY": 5}', '{"KEY": {}}', '{"KEY": {"devices": "x"}}'])
def test_a_damaged_cache_is_measured_anew_and_mended(cache, content):
    cache.parent.mkdir()
    cache.write_text(content.replace("KEY", machine_cache._key("a form")))
    assert Machine({DEFAULT: 0.1, WIDE: 0.05, WIDER: 0.08}).choose() == WIDE
    assert Machine({}).choose() == WIDE


def test_a_cache_that_cannot_be_written_costs_the_measurement_only(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SUBL_JAX_CACHE", str(tmp_path / "file" / "cache"))
    for _ in range(2):
        machine = Machine({DEFAULT: 0.1, WIDE: 0.05, WIDER: 0.08})
        assert machine.choose() == WIDE
        assert machine.timed == CANDIDATES


def test_other_entries_are_kept(cache):
    Machine({DEFAULT: 0.1, WIDE: 0.05, WIDER: 0.08}).choose(form="one")
    Machine({DEFAULT: 0.1, WIDE: 0.2, WIDER: 0.01}).choose(form="two")
    assert len(json.loads(cache.read_text())) == 2
    assert [path.name for path in cache.parent.iterdir()] == ["layouts.json"]
    assert Machine({}).choose(form="one") == WIDE
