"""Slurm's clients as shell scripts on PATH, all state in a folder: fast, and failing on request."""

import os

SCRIPTS = {
    "sbatch": """\
for script; do :; done
get() { sed -n "s/^#SBATCH --$1=//p" "$script" | tr -d "'"; }
[ -e $D/refuse ] && { echo "sbatch: error: invalid partition specified: moon" >&2; exit 1; }
id=$(($(cat $D/next) + 1)); echo $id > $D/next
cp "$script" $D/scripts/$id
after=$(get dependency)
echo "$id|PENDING|$(get job-name)|$(get comment)||N/A|${after:-(null)}|Priority" > $D/jobs/$id
[ -e $D/lose ] && { rm $D/lose; echo "sbatch: error: Socket timed out on send/recv operation" >&2; exit 1; }
[ -e $D/hang ] && { rm $D/hang; exec sleep 30; }
echo $id
""",
    "squeue": """\
[ -e $D/down ] && { echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; }
[ -e $D/slow ] && exec sleep 30
cat $D/jobs/* 2> /dev/null
exit 0
""",
    "scancel": 'rm "$D/jobs/$1" && echo $1 >> $D/cancelled\n',
    "scontrol": """\
[ "$1" = ping ] && echo 'Slurmctld(primary) at here is UP'
[ "$1" = release ] && { echo $2 >> $D/released; sed -i 's/launch failed requeued held/Priority/' "$D/jobs/$2"; }
exit 0
""",
    "srun": "",
}


class FakeSlurm:
    """Jobs stay as they are until a test changes them."""

    def __init__(self, root, monkeypatch):
        self.root = root
        for name in ("bin", "jobs", "scripts"):
            (root / name).mkdir(parents=True)
        for name, body in SCRIPTS.items():
            path = root / "bin" / name
            path.write_text(f"#!/bin/sh\nD='{root}'\n{body}")
            path.chmod(0o755)
        (root / "next").write_text("100\n")
        monkeypatch.setenv("PATH", f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}")

    def switch(self, name):
        """``lose`` sbatch's next answer or let it ``hang``, ``refuse`` every job, squeue is ``down`` or ``slow``."""
        (self.root / name).touch()

    def jobs(self):
        """Id -> the fields that squeue shows, of all live jobs."""
        return {path.name: path.read_text().strip().split("|") for path in sorted((self.root / "jobs").iterdir())}

    def ids(self):
        """Step as the comment has it -> id, of all live jobs."""
        return {":".join(fields[3].split(":")[2:]): name for name, fields in self.jobs().items()}

    def end(self, job_id):
        """The job is over, however it went."""
        (self.root / "jobs" / job_id).unlink()

    def change(self, job_id, **fields):
        """Set ``state``, ``node``, ``started``, ``after`` or ``reason`` of a job."""
        path = self.root / "jobs" / job_id
        values = path.read_text().strip().split("|")
        for name, value in fields.items():
            values[{"state": 1, "node": 4, "started": 5, "after": 6, "reason": 7}[name]] = value
        path.write_text("|".join(values) + "\n")

    def num_submitted(self):
        """Jobs that ever were."""
        return len(list((self.root / "scripts").iterdir()))

    def cancelled(self):
        """Ids in the order in which they were cancelled."""
        return self._told("cancelled")

    def released(self):
        """Ids of the jobs that ``scontrol release`` was called for."""
        return self._told("released")

    def _told(self, name):
        path = self.root / name
        return path.read_text().split() if path.exists() else []
