"""``evaluation.json`` on disk; importing this module does not import torch."""

import json
from pathlib import Path
from typing import Any

from andscale.store import artifacts

KIND = "evaluation"
FILE_NAME = "evaluation.json"


def read_evaluation(folder: Path) -> tuple[dict[str, Any], artifacts.Manifest]:
    """Verify an evaluation artefact and read it."""
    manifest = artifacts.verify(folder, KIND)
    result: dict[str, Any] = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    return result, manifest
