"""Checkpoints of the authors' codes, both ways, without their libraries."""

from . import authors_jax, authors_torch
from .folder import Converted, from_run, save_run

__all__ = ["Converted", "authors_jax", "authors_torch", "from_run", "save_run"]
