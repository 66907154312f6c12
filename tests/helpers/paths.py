"""Paths of the test data and of the repository."""

from pathlib import Path

HELPERS = Path(__file__).resolve().parent
DATA = HELPERS.parent / "data"
GOLDEN = DATA / "golden"
ROOT = HELPERS.parents[1]
DEMO = ROOT / "mae_convert" / "data" / "demo"
