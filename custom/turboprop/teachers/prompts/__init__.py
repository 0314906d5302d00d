"""Prompt libraries, views of prompts, and the registered prompt processors."""

from . import multi, single
