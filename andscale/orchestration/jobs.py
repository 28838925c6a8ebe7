"""What submitit runs: one step of a run, on one or several tasks."""

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

import psutil
import submitit

from andscale.config import RunConfig
from andscale.config_resources import ResourcesConfig
from andscale.distributed import PeerLostError, World, missing_gpus
from andscale.errors import AndscaleError, RunError, UsageError
from andscale.orchestration.reasons import ERROR_MARK, LOST_MARK
from andscale.orchestration.requeue import is_preempted, requeue
from andscale.orchestration.steps import Step
from andscale.spelling import spelt
from andscale.store.run_record import load_run
from andscale.training.stopping import Request, StoppedError, StopSignals

_PR_SET_PDEATHSIG = 1
_LAST_WORDS_S = 5
"""How long the ranks of a failed local job have to end by themselves."""
_MEETING_POLL_S = 0.3
"""How often a rank that has not met the others yet looks whether they are there."""


class StepJob:
    """A picklable call that holds paths and numbers only.

    Args:
        run: the run's folder.
        step: what to do.
        local_port: where the ranks of a local job meet; None on Slurm, where the job id gives a port.
        cuda_devices: CUDA_VISIBLE_DEVICES of the launcher for a local job that takes all GPUs; else "unchanged".
        launched: the config of this launch; None: what the run was started with.
    """

    def __init__(
        self,
        run: Path,
        step: Step,
        local_port: int | None = None,
        cuda_devices: str | None = "unchanged",
        launched: RunConfig | None = None,
    ):
        self.run, self.step = run, step
        self.local_port, self.cuda_devices = local_port, cuda_devices
        self.launched = launched

    def __call__(self) -> None:
        """Run the step on this task, and say in one line why it ended if it was not done."""
        signals = StopSignals()
        if self.step.kind == "train":
            # first of all: submitit's handlers pass SIGTERM over, and at SIGUSR2 they requeue without a checkpoint
            signals.install()
        if self.local_port is not None:
            _die_with_parent()
        try:
            self._run(signals)
        except StoppedError as stop:
            print(f"{ERROR_MARK}{stop}", file=sys.stderr, flush=True)
            if stop.request is Request.REQUEUE or is_preempted():
                requeue(self._resources().max_requeues)
            sys.exit(1)
        except Exception as error:
            mark = LOST_MARK if isinstance(error, PeerLostError) else ERROR_MARK
            name = "" if isinstance(error, AndscaleError) else f"{type(error).__name__}: "
            print(f"{mark}{name}{' '.join(str(error).split())}", file=sys.stderr, flush=True)
            if self.local_port is not None:
                _end_the_other_ranks()
            raise

    def _run(self, signals: StopSignals) -> None:
        resources = self._resources()
        if self.step.kind != "train":
            self._leave_at_signals(resources)
        self._restore_cuda_devices()
        if self.local_port is not None:
            threading.Thread(target=_leave_if_a_rank_is_gone, daemon=True).start()
        self._check_gpus()
        run_step(self.run, self.step, self._enter_world(resources), signals, self.launched)

    def _resources(self) -> ResourcesConfig:
        return self._config().resources

    def _config(self) -> RunConfig:
        return self.launched or load_run(self.run).config

    def _leave_at_signals(self, resources: ResourcesConfig) -> None:
        """Index and evaluation jobs save nothing on their way: one that is preempted begins anew, and one that is out
        of time ends, for it would be again.
        """

        def leave(_: int, __: FrameType | None) -> None:
            if submitit.JobEnvironment().global_rank != 0:
                return  # rank 0 speaks for all; srun, or the local controller, ends the others
            if is_preempted():
                print(f"{self.step}: preempted: queued again, to begin anew", flush=True)
                requeue(resources.max_requeues)
            raise RunError(
                f"{self.step} did not finish within its time limit, and saves nothing on its way: launch again with a "
                f"larger resources.timeout_min (on Slurm [slurm.{self.step.kind}] timeout_min), or with more ranks "
                f"(resources.{self.step.kind}_tasks_per_node)"
            )

        signal.signal(signal.SIGUSR2, leave)
        if self.local_port is not None:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the launcher's; submitit's handler passes it over

    def _enter_world(self, resources: ResourcesConfig) -> World:
        """Describe this task to torch.distributed in the environment, as torchrun would."""
        task = submitit.JobEnvironment()
        if self.local_port is not None:
            address, port = "127.0.0.1", self.local_port
        else:
            env = submitit.helpers.TorchDistributedEnvironment()
            address, port = env.master_addr, env.master_port
        world = World(
            rank=task.global_rank,
            world_size=task.num_tasks,
            local_rank=task.local_rank,
            local_world_size=task.num_tasks // task.num_nodes,
            hang_timeout_min=resources.hang_timeout_min,
        )
        os.environ.update({name.upper(): str(value) for name, value in vars(world).items()})
        os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
        return world

    def _restore_cuda_devices(self) -> None:
        """Submitit's local executor hides all GPUs that were not counted out."""
        if self.cuda_devices == "unchanged":
            return
        if self.cuda_devices is None:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.cuda_devices

    def _gpus_asked(self) -> int | None:
        """GPUs a node that this job was submitted with; 0 where ``[resources]`` wants none of them used."""
        config = self._config()
        if self.local_port is not None or config.resources.gpus_per_node == 0:
            return config.resources.gpus_per_node
        return config.slurm.of_step(self.step.kind, config.resources).gpus_per_node

    def _check_gpus(self) -> None:
        """On Slurm, a job that has GPUs which torch does not see ends: it would take weeks on the CPU, unnoticed.

        A machine without Slurm may have none: a config that asks for some goes on there, and says so.
        """
        missing = missing_gpus(self._gpus_asked())
        if missing is None:
            return
        if self.local_port is None:
            raise UsageError(
                f"{missing}; run {spelt('doctor')} on this node and install a torch that fits its driver, or launch "
                "with resources.gpus_per_node = 0 to run on the CPU"
            )
        if submitit.JobEnvironment().global_rank == 0:
            print(f"{self.step} runs on the CPU: {missing}", flush=True)


def run_step(run: Path, step: Step, world: World, signals: StopSignals, launched: RunConfig | None) -> None:
    """Run one step of a run in this process; the job checks its inputs itself."""
    match step.kind:
        case "index":
            from andscale.indexing.rebuild import rebuild_index

            rebuild_index(run, step.round_number, world)
            if world.is_main:
                from andscale.audit.round_events import write_index_events

                write_index_events(run, step.round_number)
        case "train":
            from andscale.indexing.kmeans import cluster_features
            from andscale.training.loop import train_round

            train_round(run, step.round_number, world, signals, launched, cluster_features)
        case "evaluate":
            from andscale.evaluation.evaluate import evaluate_round

            evaluate_round(run, step.round_number, world, launched)
            if world.is_main:
                from andscale.audit.round_events import write_evaluation_events

                write_evaluation_events(run, step.round_number)


def _end_the_other_ranks() -> None:
    """A local job's controller waits for all of its ranks: one that failed ends those that hang.

    The others hear of the failure as soon as they wait for this rank, and have some seconds for their own last words.
    """
    me = psutil.Process()
    _, hanging = psutil.wait_procs([task for task in psutil.Process(me.ppid()).children() if task != me], _LAST_WORDS_S)
    for task in hanging:
        task.kill()


def _leave_if_a_rank_is_gone() -> None:
    """End this rank of a local job when another one ends before all have met.

    From then on the process group notices; until then its store waits for a rank that was killed while it started, for
    as long as for one that hangs. On Slurm, srun's --kill-on-bad-exit does this.
    """
    task = submitit.JobEnvironment()
    controller, missed = psutil.Process(os.getppid()), 0
    while task.num_tasks > 1 and missed < 2 and not _has_met():
        time.sleep(_MEETING_POLL_S)
        missed = missed + 1 if len(controller.children()) < task.num_tasks else 0
    if missed and not _has_met():
        line = f"{LOST_MARK}rank {task.global_rank}: another rank of the job ended before they all had met"
        print(line, file=sys.stderr, flush=True)
        os._exit(1)


def _has_met() -> bool:
    is_initialized = getattr(sys.modules.get("torch.distributed"), "is_initialized", None)  # it may be half imported
    return is_initialized is not None and bool(is_initialized())


def _die_with_parent() -> None:
    """Let the kernel end this task when the job's controller is killed, so that no rank trains on unseen."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # a local job's id is its controller's process number: it may have been killed before the line above
        if os.getppid() != int(submitit.JobEnvironment().job_id):
            os._exit(1)
