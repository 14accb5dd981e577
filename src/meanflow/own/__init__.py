"""The user's own code, named as PATH.py:NAME or module:NAME: found, called, and blamed where it fails."""

from .code import Code, code_of, named
from .making import data, network
from .trouble import blamed, place, told

__all__ = ["Code", "blamed", "code_of", "data", "named", "network", "place", "told"]
