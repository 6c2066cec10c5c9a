"""What data modules draw random numbers for; the drawing itself is in :mod:`lit_methods.functional.draws`."""

from lit_methods.functional.draws import Purpose, hash64, permutation, uniforms

SPLIT, ORDER, AUGMENT = Purpose.SPLIT, Purpose.ORDER, Purpose.AUGMENT
CALIBRATION, TEST = Purpose.CALIBRATION, Purpose.TEST

__all__ = ["AUGMENT", "CALIBRATION", "ORDER", "SPLIT", "TEST", "hash64", "permutation", "uniforms"]
