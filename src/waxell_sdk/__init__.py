"""The import name that existing agent code uses; the same objects as :mod:`holdfast`."""

from holdfast import *  # noqa: F403
from holdfast import __all__ as __all__
