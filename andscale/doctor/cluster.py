"""Slurm: its commands, its controller, its accounting."""

import re
import shutil
from collections.abc import Iterator

from andscale.doctor.finding import Finding, ask, ok, one_line, problem, warning

_NEEDED = ("sbatch", "srun", "scontrol", "squeue", "scancel")
_TIMEOUT_S = 8
_LOCAL = "steps run on this machine (--cluster local)"


def check_slurm() -> Iterator[Finding]:
    """Whether steps can be submitted from here."""
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if len(missing) == len(_NEEDED):
        yield ok("Slurm", f"not here: {_LOCAL}")
        return
    code, client = ask(["sbatch", "--version"], _TIMEOUT_S)
    client = client if code == 0 else "its commands are here without a configuration"
    if missing:
        yield problem("Slurm", f"{client}, without {', '.join(missing)}", "put Slurm's bin folder on PATH")
        return
    code, ping = ask(["scontrol", "ping"], _TIMEOUT_S)
    if code != 0 or "UP" not in ping:
        fix = f"mend Slurm (systemctl status slurmctld, munged), or do without: {_LOCAL}"
        yield warning("Slurm", f"{client}, but no controller answers: {one_line(ping)}", fix)
        return
    _, config = ask(["scontrol", "show", "config"], _TIMEOUT_S)
    yield judge_controller(client, config)
    yield _nodes()
    yield judge_accounting(
        *ask(["sacct", "--noheader", "--allocations", "--starttime=now", "--format=JobID"], _TIMEOUT_S)
    )


def judge_controller(client: str, config: str) -> Finding:
    """The controller's version against that of the commands."""
    found = re.search(r"^SLURM_VERSION\s*=\s*(\S+)", config, re.MULTILINE)
    server = found[1] if found else "of a version that it does not tell"
    text = f"{client}, controller {server} answers"
    if found and found[1].split(".")[:2] != client.rsplit(maxsplit=1)[-1].split(".")[:2]:
        return warning("Slurm", text, "use commands of the controller's version")
    return ok("Slurm", text)


def _nodes() -> Finding:
    code, text = ask(["sinfo", "--noheader", "--Node", "--format=%N %P %T"], _TIMEOUT_S)
    if code != 0:
        return warning("Slurm nodes", f"sinfo does not answer: {one_line(text)}", "look at slurmctld's log")
    return judge_nodes(text)


def judge_nodes(text: str) -> Finding:
    """``NODE PARTITION STATE`` lines: whether there is a node that can take a job; one may be in several partitions."""
    rows = [line.split() for line in text.splitlines() if len(line.split()) == 3]
    down = ("down", "drain", "fail", "unknown", "inval", "maint", "poweroff")
    useful = len({node for node, _, state in rows if not state.startswith(down) and not state.endswith("*")})
    partitions = ", ".join(sorted({partition for _, partition, _ in rows}))
    if not useful:
        return problem("Slurm nodes", f"none can take a job ({one_line(text)})", "sinfo -R says why; scontrol update")
    return ok("Slurm nodes", f"{useful} can take jobs; partitions {partitions}")


def judge_accounting(code: int | None, text: str) -> Finding:
    """Whether sacct answers; a run does without, but can say less about jobs that have ended."""
    if code != 0 or "error" in text.lower() or "disabled" in text.lower():
        fix = "nothing is lost (the truth is on disk); for the reasons of ended jobs mend slurmdbd"
        return warning("Slurm accounting", f"sacct does not answer: {one_line(text or 'nothing')}", fix)
    return ok("Slurm accounting", "sacct answers")
