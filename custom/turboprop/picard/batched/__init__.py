"""Experimental: all slots of a window in one call of the teacher and one backward pass, on one device."""
