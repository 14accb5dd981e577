"""What is minimised over a network."""

from __future__ import annotations

from .base import Objective, Output
from .check import check_network
from .flow_matching import FlowMatching
from .meanflow import MeanFlow

OBJECTIVES: dict[str, type[Objective]] = {"MeanFlow": MeanFlow, "FlowMatching": FlowMatching}

__all__ = ["OBJECTIVES", "FlowMatching", "MeanFlow", "Objective", "Output", "check_network"]
