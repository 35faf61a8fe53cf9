"""Fuzzing of everything that reads a stranger's bytes. ``python -m tests.fuzz READER COUNT SEED FOLDER``."""
