"""Checkpoint layouts: from other people's parameter names to this project's."""
