"""Parameters of other codes, read without their libraries."""

from .authors_jax import dit_arguments, dit_state

__all__ = ["dit_arguments", "dit_state"]
