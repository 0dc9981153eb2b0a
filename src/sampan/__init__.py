"""A container engine: see docs/tour.md."""

__version__ = "0.1.0"
