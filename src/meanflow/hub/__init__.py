"""A run as a model that others can load: a folder with weights and a card, on the Hugging Face hub or anywhere."""

from .card import model_card
from .folder import write_folder
from .push import push

__all__ = ["model_card", "push", "write_folder"]
