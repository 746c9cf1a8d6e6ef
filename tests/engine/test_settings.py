"""Settings: the defaults make themselves, and a mistake is one line."""

import pytest

from subl_jax.engine.settings import Settings, defaults
from subl_jax.errors import InputError


def test_the_defaults_are_plain_values_that_make_the_defaults():
    assert Settings(**defaults()) == Settings()
    assert all(type(value) in (int, float, bool, str) for value in defaults().values())


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"tracker": "wandbb"}, "Settings.tracker = 'wandbb': must be one of ('wandb', 'none')"),
        ({"devices": -1}, "Settings.devices = -1: must be at least 0"),
        ({"width": 2.5}, "Settings.width = 2.5: expected int, got float"),
        ({"measure_layout": 1}, "Settings.measure_layout = 1: expected bool, got int"),
        ({"checkpoint_seconds": 0}, "Settings.checkpoint_seconds = 0.0: must be more than 0.0"),
    ],
)
def test_a_mistake_is_one_line(fields, line):
    with pytest.raises(InputError) as error:
        Settings(**fields)
    assert str(error.value) == line
