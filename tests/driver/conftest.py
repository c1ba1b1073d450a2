"""Keeps pytest from importing the program, which must run in a process of its own."""

collect_ignore = ["scenarios.py"]
