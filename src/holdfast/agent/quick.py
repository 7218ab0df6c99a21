"""Imported first in a worker: keeps a third of its start away.

msgspec prefers ``typing_extensions`` where it is installed, which loads inspect, dis, ast and tokenize. It does without
as well, and from Python 3.11 on ``typing`` has all that it asks for. The author's code gets the real one.
"""

from __future__ import annotations

import sys

NAME = "typing_extensions"

if NAME not in sys.modules:
    sys.modules[NAME] = None  # type: ignore[assignment]
    try:
        import msgspec as msgspec
    finally:
        del sys.modules[NAME]
