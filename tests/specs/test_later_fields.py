"""Fields that a later version adds: keys, stored specs and tables are as they were until somebody sets them."""

import dataclasses

import pytest

from subl_jax import specs
from subl_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Point(specs.Spec):
    x: float = specs.traced(0.0)


@dataclasses.dataclass(frozen=True)
class First(specs.Spec):
    steps: int = specs.static(3)


First.__qualname__ = First.__name__ = "Grown"


@dataclasses.dataclass(frozen=True)
class Grown(specs.Spec):
    steps: int = specs.static(3)
    points: tuple[Point, ...] = specs.static((), since=2)
    centre: Point = specs.static(Point(1.0), since=2)
    rate: float = specs.traced(0.5, since=3)


def test_a_later_field_at_its_default_leaves_the_key_as_it_was():
    assert Grown().key == First().key and Grown(steps=4).key == First(steps=4).key
    changed = [Grown(points=(Point(),)), Grown(centre=Point(2.0)), Grown(rate=0.25)]
    assert len({First().key, *(each.key for each in changed)}) == 4


def test_a_later_field_at_its_default_leaves_program_and_columns_as_they_were():
    assert specs.static_form(Grown()) == specs.static_form(First())
    assert specs.flat("g", Grown()) == specs.flat("g", First()) == {"g.steps": 3}
    assert specs.flat("g", Grown(points=(Point(1.0), Point(2.0)))) == {
        "g.steps": 3,
        "g.points.0.x": 1.0,
        "g.points.1.x": 2.0,
    }


def test_a_later_field_needs_a_default():
    with pytest.raises(TypeError, match="since"):
        specs.static(since=2)


def test_stored_specs_without_it_read_as_the_default():
    form = specs.to_json(Grown())
    del form["points"], form["centre"], form["rate"]
    assert specs.from_json(form) == Grown()
    with pytest.raises(InputError, match="made by another version, which differs in steps"):
        specs.from_json({name: value for name, value in form.items() if name != "steps"})


def test_tuples_of_specs_are_values_lanes_and_json():
    one, two = (Grown(points=(Point(0.0), Point(x))) for x in (1.0, 2.0))
    assert one.key != two.key and specs.static_form(one) == specs.static_form(two)
    assert specs.traced_values(two) == {"points.0.x": 0.0, "points.1.x": 2.0, "centre.x": 1.0, "rate": 0.5}
    bound = specs.bind(two, {"points.0.x": 7, "points.1.x": 8, "centre.x": 9, "rate": 10})
    assert [point.x for point in bound.points] == [7, 8] and (bound.centre.x, bound.rate) == (9, 10)
    assert specs.from_json(specs.to_json(two)) == two
    assert Grown(points=[Point(1)]) == Grown(points=(Point(1.0),))
    with pytest.raises(InputError, match=r"Grown.points\[1\] = 3: expected Point, got int"):
        Grown(points=(Point(), 3))


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("specs/Base", "specs:Base"),
        ("subl_jax.specs:Student", "specs:Student"),
        ("subl_jax.filters:NumbersFilter", "channels:NumbersFilter"),
        ("subl_jax.worlds.digits:Inputs", "worlds:Inputs"),
        ("subl_jax.worlds.pretrained:ChatSampling", "worlds:ChatSampling"),
        ("subl_jax.images:Images", "worlds:Images"),
        (f"{__name__}:Grown", None),
    ],
)
def test_a_class_goes_by_an_alias_and_old_names_are_known(name, cls):
    found = specs.class_of(name)
    assert specs.class_of(specs.alias(found)) is found
    if cls is None:
        assert found is Grown and specs.alias(found) == name
    else:
        room, own = cls.split(":")
        assert specs.alias(found) == f"{room}/{own}"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("specs/Nothing", "no class Nothing in subl_jax.specs"),
        ("nowhere/Base", "nowhere"),
        ("not_a_module:World", "not_a_module.*import its module first"),
        ("specs/InputError", "no class InputError|not a spec class"),
        ("pathlib:Path", "not a spec class"),
    ],
)
def test_an_unknown_class_is_one_line(name, line):
    with pytest.raises(InputError, match=line):
        specs.class_of(name)
