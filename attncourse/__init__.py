"""attncourse: an executable course on attention mechanisms."""

__version__ = "0.1.0"

from attncourse.checks import check
from attncourse.mechanisms import MECHANISMS, build

__all__ = ["MECHANISMS", "__version__", "build", "check"]
