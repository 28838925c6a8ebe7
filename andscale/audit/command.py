"""What ``inspect`` does: the figures to the terminal, and into the files that were asked for."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from andscale.audit.audit_text import audit_text, history_text
from andscale.audit.exports import export
from andscale.audit.inspecting import inspect_subject, purity_of_anchors, write_csv
from andscale.audit.round_figures import history
from andscale.audit.subject import open_subject
from andscale.errors import RunError, UsageError


@dataclass(frozen=True, kw_only=True)
class AuditRequest:
    """The options of ``inspect``.

    Attributes:
        place: a run, or the folder of a table without one.
        round_number: None: the newest.
        known: what is known of a foreign table's samples, see ``open_subject``.
        as_json: figures as JSON instead of text.
        csv: folder for CSV files.
        html: the report's file.
        by: the one sample to show through the rounds; nothing else is done then.
        exported: ``FORMAT:PATH``; nothing else is done then.
        leakage: whether both splits are embedded to find validation images among the training images.
        near_duplicate: similarity of near-duplicates.
        min_purity: least purity@1 of the anchors.
    """

    place: Path
    round_number: int | None
    known: Path | None
    as_json: bool
    csv: Path | None
    html: Path | None
    by: int | None
    exported: str | None
    leakage: bool
    near_duplicate: float
    min_purity: float | None


def audit(request: AuditRequest) -> None:
    """Do what was asked for.

    Raises:
        UsageError: it cannot be had of this table. RunError: something is damaged, or the purity is too low.
    """
    place, known = request.place, request.known
    _refuse_what_would_be_left_out(request)
    if request.by is not None:
        found = history(place, request.by, request.round_number, known)
        print(json.dumps(found, indent=2) if request.as_json else history_text(found))
        return
    subject = open_subject(place, request.round_number, known)
    if request.exported is not None:
        print(export(subject, request.exported))
        return
    if request.leakage and subject.round_number is None:
        raise UsageError(f"{place} is a table without a run: --leakage needs a run's model")
    inspected = inspect_subject(subject, request.near_duplicate, known)
    if request.leakage:
        from andscale.audit.leakage import find_leaks

        inspected["leakage"] = find_leaks(place, request.round_number, request.near_duplicate, known)
    print(json.dumps(inspected, indent=2) if request.as_json else audit_text(inspected))
    notes = sys.stderr if request.as_json else sys.stdout
    if request.csv is not None:
        names = ", ".join(path.name for path in write_csv(subject, inspected, request.csv))
        print(f"wrote {request.csv}: {names}", file=notes)
    if request.html is not None:
        from andscale.audit.report import write_report

        write_report(subject, request.html, inspected)
        print(f"wrote {request.html}", file=notes)
    if request.min_purity is not None:
        purity, of_whom = purity_of_anchors(inspected)
        if not purity >= request.min_purity:  # so that NaN is never met
            raise RunError(f"purity@1 of {of_whom} of {place} is {purity:.4f}, wanted is {request.min_purity}")


def _refuse_what_would_be_left_out(request: AuditRequest) -> None:
    """A chain must not take an answer of --by or --export for a purity that was met."""
    alone = {"--by": request.by is not None, "--export": request.exported is not None}
    others = {
        "--min-purity": request.min_purity is not None,
        "--csv": request.csv is not None,
        "--html": request.html is not None,
        "--leakage": request.leakage,
    }
    given = [name for name, is_given in (alone | others).items() if is_given]
    if len(given) > 1 and given[0] in alone:
        raise UsageError(f"{given[0]} does nothing else: ask for {given[1]} in a call of its own")
