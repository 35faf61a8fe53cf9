"""Measurements of the native parts; each script prints its machine, a table and one JSON line."""
