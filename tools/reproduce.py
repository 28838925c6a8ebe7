"""Reproduce a table of the paper."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from andscale.door import open_door

if __name__ == "__main__":
    open_door("reproduce")
