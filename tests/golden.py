"""Golden records: a text beside the tests that an output must equal; renewed on request, and looked at in the diff."""

import os
from pathlib import Path

FOLDER = Path(__file__).parent / "golden_records"


def assert_golden(name, text):
    """Compare with ``golden_records/NAME``; RENEW_GOLDEN=1 writes it instead."""
    path = FOLDER / name
    if os.environ.get("RENEW_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return
    recorded = path.read_text() if path.exists() else ""
    assert text == recorded, (
        f"{name} differs from its record; if that is meant: RENEW_GOLDEN=1 make test, then git diff"
    )
