"""Run every benchmark, one after the other, and draw the plots. Options (``--quick``, ``--json``) are handed on."""

from __future__ import annotations

import subprocess
import sys

from benchmarks import plots

NAMES = (
    "start",
    "cold_start",
    "density",
    "waiting",
    "kill",
    "governance",
    "policy_decide",
    "policy_replay",
    "policy_scan",
    "egress",
)


def main() -> int:
    """Run them in processes of their own, so that none inherits what another has loaded."""
    failed = [
        name for name in NAMES if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]]).returncode
    ]
    plots.draw()
    if failed:
        print(f"did not end well: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
