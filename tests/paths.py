"""Names the place of the repository, wherever a test stands."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
