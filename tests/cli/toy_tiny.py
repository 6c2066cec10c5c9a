"""HRank in a process that has to learn of the tiny test network first."""

from lit_methods.hrank.module import HRank
from tests.tiny import register

register()


class TinyHRank(HRank):
    """As it is."""
