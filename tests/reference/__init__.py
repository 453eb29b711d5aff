"""Slow, obvious re-statements that the fast code is compared with."""
