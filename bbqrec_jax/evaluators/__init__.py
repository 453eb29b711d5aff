"""Evaluators, loaded by the name that a config gives."""
