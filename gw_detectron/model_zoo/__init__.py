"""The configs that come with the package, in a checkout and in a wheel."""

from .model_zoo import get_config, get_config_file

__all__ = ["get_config", "get_config_file"]
