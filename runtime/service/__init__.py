"""Many sessions of one model in one process: admission, scheduling, checkpoints, metrics.

Read :mod:`.plan` first: it decides. :mod:`.core` executes and commits. :mod:`.service` is what callers use.
"""
