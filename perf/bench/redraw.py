"""Draw a report's pages again from its data: ``python -m speechssm.perf.bench.redraw report.json -o DIR``."""

from __future__ import annotations

import argparse
from pathlib import Path

from .report import HTML, read, write


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    given = parser.parse_args()
    write(read(given.report), given.out)
    print(given.out / HTML)


if __name__ == "__main__":
    main()
