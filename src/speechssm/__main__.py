"""Where the ``speechssm`` command starts, also as ``python -m speechssm``: small enough to start at once."""

from __future__ import annotations

import sys


def main() -> None:
    """Load the command line and run it; Ctrl-C while it is still loading is no traceback either."""
    try:
        from speechssm.cli import main as run
    except KeyboardInterrupt:
        print("speechssm: interrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
