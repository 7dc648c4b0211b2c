"""What whitening costs in time and memory, in single layers and in whole models."""

from .layers import NORMS, measure_layers
from .machine import DTYPES, Machine
from .models import measure_models

__all__ = ["DTYPES", "NORMS", "Machine", "measure_layers", "measure_models"]
