"""Octavo: train small GPTs, prove their exports, serve and inspect them."""

__version__ = "0.1.0"
