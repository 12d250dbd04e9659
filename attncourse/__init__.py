"""attncourse: an executable course on attention mechanisms."""

__version__ = "0.1.0"

from attncourse.checks import check

__all__ = ["__version__", "check"]
