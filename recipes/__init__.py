"""How the demo voice was trained: one folder, one command per stage (``python -m recipes --help``)."""
