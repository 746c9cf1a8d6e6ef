"""How numbers and names are written: on the page, in figures, on the terminal."""

import numpy as np

from subl_jax.results import comparisons


def arm_label(arm: str) -> str:
    return arm.replace("_", " ")


def compared_label(name: str) -> str:
    """Of what arms are compared with (`comparisons.COMPARED`)."""
    return "other teachers" if name == comparisons.OTHERS else arm_label(name)


def number(value: float) -> str:
    """A probability or a difference of two, short: ".243", "−.012", "7.1e-4", "–" for none."""
    if value is None or not np.isfinite(value):
        return "–"
    tiny = 0 < abs(value) < 0.005
    text = f"{abs(value):.1e}".replace("e-0", "e-") if tiny else f"{abs(value):.3f}".removeprefix("0")
    return f"−{text}" if value < 0 else text


def p_value(value: float) -> str:
    if value is None or not np.isfinite(value):
        return "–"
    return "<.001" if value < 0.001 else ">.999" if value > 0.999 else f"{value:.3f}".removeprefix("0")


def factor(times: float) -> str:
    """ "×11", "×1.4", "×.35", "×2.3e-5", "–" for none."""
    if not np.isfinite(times):
        return "–"
    if not 0.001 <= times < 9995:
        return f"×{times:.1e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return (
        f"×{times:.0f}" if times >= 9.95 else f"×{times:.1f}" if times >= 0.995 else f"×{times:.2g}".replace("0.", ".")
    )
