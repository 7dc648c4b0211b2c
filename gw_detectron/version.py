"""The version of the package; pyproject.toml takes it from here without importing the package."""

__version__ = "0.1.0"
