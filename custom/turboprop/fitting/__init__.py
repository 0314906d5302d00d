"""Fitting a representation to pictures with known cameras: the data, and the loss as a guidance."""

from . import data, guidance
