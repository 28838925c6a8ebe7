"""A private, real Slurm on this machine: two nodes, no systemd, no cgroups, all state in one temporary folder."""

import contextlib
import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

_PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo", "scontrol", "scancel")
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

_CONF = """\
ClusterName=andscale
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
CommunicationParameters=EnableIPv6
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge.sock,cred_expire=5
StateSaveLocation={root}/ctld
SlurmdSpoolDir={root}/slurmd.%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=3
MinJobAge=86400
FirstJobId={first_job}
NodeName=127.0.0.1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=4000
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=4000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
PartitionName=main Nodes=127.0.0.1,localhost Default=YES MaxTime=INFINITE State=UP PreemptMode=OFF
PartitionName=low Nodes=127.0.0.1,localhost MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=127.0.0.1,localhost MaxTime=INFINITE State=UP PriorityTier=9 PreemptMode=OFF
"""


def missing_programs():
    """Programs of Debian's Slurm and munge that are not installed."""
    return [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]


def start_or_skip():
    """A cluster; where Slurm is not installed the test is skipped, and in CI it fails."""
    missing = missing_programs()
    if missing:
        why = f"Slurm is not installed here ({', '.join(missing)} missing): tools/install_test_programs.sh installs it"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    return SlurmCluster()


class SlurmCluster:
    """Starts on construction; ``stop`` ends it. ``SLURM_CONF`` in ``environment`` leads every client to it."""

    def __init__(self):
        # munged refuses a socket below a folder that others cannot enter
        self.root = Path(tempfile.mkdtemp(prefix="andscale-slurm-"))
        self.root.chmod(0o711)
        self.environment = {"SLURM_CONF": str(self.root / "slurm.conf"), "PATH": _PATH}
        self._daemons = []
        self._write_configuration()
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _write_configuration(self):
        (self.root / "ctld").mkdir()
        (self.root / "munge").mkdir(mode=0o700)
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
            for listener in sockets:
                listener.bind(("127.0.0.1", 0))
            ports = [listener.getsockname()[1] for listener in sockets]
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        conf = _CONF.format(
            host=socket.gethostname().split(".")[0],
            user=user,
            root=self.root,
            ports=ports,
            first_job=random.SystemRandom().randrange(10_000, 900_000),
        )
        (self.root / "slurm.conf").write_text(conf)
        (self.root / "cgroup.conf").write_text(
            f"CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nCgroupMountpoint={self.root}/cgroup\n"
        )

    def _start(self):
        munge = self.root / "munge"
        self.run("mungekey", "--create", f"--keyfile={munge}/key")
        files = ["key-file", "pid-file", "seed-file", "log-file"]
        self._spawn(
            "munged", "--foreground", f"--socket={self.root}/munge.sock", *(f"--{f}={munge}/{f[:-5]}" for f in files)
        )
        wait_for((self.root / "munge.sock").exists, "munged's socket")
        self.start_controller()
        for node in ("127.0.0.1", "localhost"):
            self._spawn("slurmd", "-D", "-N", node, "-f", str(self.root / "slurm.conf"))
        wait_for(lambda: set(self.run("sinfo", "-Nh", "-o", "%T").split()) == {"idle"}, "both nodes idle")

    def start_controller(self):
        """Start slurmctld; one that was killed finds its jobs again."""
        self.controller = self._spawn("slurmctld", "-D", "-i", "-f", str(self.root / "slurm.conf"))
        wait_for(lambda: "UP" in self.run("scontrol", "ping", check=False), "slurmctld")

    def _spawn(self, *command):
        log = (self.root / f"{command[0]}.out").open("ab")
        program = shutil.which(command[0], path=_PATH)
        process = subprocess.Popen(
            [program, *command[1:]],
            env=os.environ | self.environment,
            stdout=log,
            stderr=log,
            preexec_fn=lambda: ctypes.CDLL(None).prctl(1, signal.SIGKILL),  # goes with a killed test run
        )
        self._daemons.append(process)
        return process

    def run(self, *command, check=True):
        """Standard output of a client program."""
        program = shutil.which(command[0], path=_PATH)
        answer = subprocess.run(
            [program, *command[1:]],
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if check and answer.returncode:
            raise RuntimeError(f"{command}: {answer.stderr}\n{self.logs()}")
        return answer.stdout

    def states(self):
        """Job id -> state of every job, ended ones included."""
        lines = self.run("squeue", "-h", "-t", "all", "-o", "%i|%T").split()
        return dict(line.split("|") for line in lines)

    def wait_until_empty(self, timeout_s):
        """Wait until no job waits or runs."""
        live = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "SUSPENDED"}
        try:
            wait_for(lambda: not live & set(self.states().values()), "an empty queue", timeout_s)
        except TimeoutError as error:
            seen = self.run("squeue", "-o", "%i %j %T %r %M") + self.run("sinfo", "-N", "-o", "%N %P %T %E")
            raise TimeoutError(f"{error}\n{seen}\n{self.logs()}") from None

    def logs(self):
        """The ends of the daemons' logs."""
        return "\n".join(f"--- {p.name}\n{p.read_text(errors='replace')[-1500:]}" for p in self.root.glob("*.log"))

    def stop(self):
        """Cancel all jobs, end the daemons, remove the folder."""
        with contextlib.suppress(Exception):
            self.run("scancel", "--state=PENDING,RUNNING,SUSPENDED", check=False)
            wait_for(lambda: not self.run("squeue", "-h", "-t", "R,CG,S", "-o", "%i").strip(), "jobs to end", 20)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
        shutil.rmtree(self.root, ignore_errors=True)


def wait_for(condition, what, timeout_s=30):
    """Poll until ``condition()`` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s} s for {what}")
        time.sleep(0.1)
