"""attncourse: an executable course on attention mechanisms."""

__version__ = "0.1.0"
