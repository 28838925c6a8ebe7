"""What submitit runs: one step of a run, on one or several tasks."""

import ctypes
import os
import signal
import sys
from pathlib import Path

import submitit

from andscale.distributed import World
from andscale.errors import AndscaleError
from andscale.orchestration.steps import Step

ERROR_MARK = "andscale error: "
"""Starts the line of a job's log that says why the job failed."""

_PR_SET_PDEATHSIG = 1


class StepJob:
    """A picklable call that holds paths and numbers only.

    Args:
        run: the run's folder.
        step: what to do.
        local_port: where the ranks of a local job meet; None on Slurm, where the job id gives a port.
        cuda_devices: CUDA_VISIBLE_DEVICES of the launcher for a local job that takes all GPUs; else "unchanged".
    """

    def __init__(self, run: Path, step: Step, local_port: int | None = None, cuda_devices: str | None = "unchanged"):
        self.run, self.step = run, step
        self.local_port, self.cuda_devices = local_port, cuda_devices

    def __call__(self) -> None:
        """Run the step on this task."""
        if self.local_port is not None:
            _die_with_parent()
        self._restore_cuda_devices()
        world = self._enter_world()
        try:
            run_step(self.run, self.step, world)
        except AndscaleError as error:
            print(f"{ERROR_MARK}{error}", file=sys.stderr, flush=True)
            raise

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """After a time-out or a preemption: the same step again, which goes on from its newest checkpoint."""
        return submitit.helpers.DelayedSubmission(self)

    def _enter_world(self) -> World:
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


def run_step(run: Path, step: Step, world: World) -> None:
    """Run one step of a run in this process; the job checks its inputs itself."""
    match step.kind:
        case "index":
            from andscale.indexing.rebuild import rebuild_index

            rebuild_index(run, step.round_number, world)
        case "train":
            from andscale.training.loop import train_round

            train_round(run, step.round_number, world)
        case "evaluate":
            from andscale.evaluation.evaluate import evaluate_round

            evaluate_round(run, step.round_number, world)


def _die_with_parent() -> None:
    """Let the kernel end this task when the job's controller is killed, so that no rank trains on unseen."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # a local job's id is its controller's process number: it may have been killed before the line above
        if os.getppid() != int(submitit.JobEnvironment().job_id):
            os._exit(1)
