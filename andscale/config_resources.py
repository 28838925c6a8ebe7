"""Where and how steps are run: ``[resources]`` and ``[slurm]``, which may differ from launch to launch."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys, no silent conversions, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ResourcesConfig(Section):
    """Where and how the steps run; may differ from launch to launch."""

    num_nodes: int = Field(default=1, ge=1)
    """Nodes of a training job."""
    tasks_per_node: int = Field(default=1, ge=1)
    """Ranks on each node of a training job; one GPU each where the node has them."""
    index_num_nodes: int = Field(default=1, ge=1)
    """Nodes of an index job."""
    index_tasks_per_node: int = Field(default=1, ge=1)
    """Ranks on each node of an index job; one GPU each where the node has them. On CPUs one rank uses all cores."""
    evaluate_num_nodes: int = Field(default=1, ge=1)
    """Nodes of an evaluation job."""
    evaluate_tasks_per_node: int = Field(default=1, ge=1)
    """Ranks on each node of an evaluation job; one GPU each where the node has them."""
    gpus_per_node: int | None = Field(default=None, ge=0)
    """GPUs of each node, of which a rank uses one; 0: the CPU. None: locally whichever this machine has, on Slurm what
    the partition gives unasked."""
    cpus_per_task: int | None = Field(default=None, ge=1)
    """CPUs of a training rank; None leaves Slurm its default and shares this machine's cores out locally."""
    memory_gb: float | None = Field(default=None, gt=0)
    """Memory a node."""
    timeout_min: int = Field(default=1440, ge=1)
    """Time limit of one job, minutes; on Slurm a training job is warned ahead of it, saves and goes on in a new one.
    Index and evaluation jobs save nothing on their way, so one that reaches it has failed."""
    max_requeues: int = Field(default=100, ge=0)
    """How often a job that was preempted, or a training job that reached its limit, is put into the queue again."""
    checkpoint_min: float = Field(default=15, gt=0)
    """Minutes between two checkpoints within an epoch."""
    hang_timeout_min: float = Field(default=10, gt=0)
    """Minutes that ranks wait for one that does not answer, before they end the job."""

    def job_size(self, kind: str) -> tuple[int, int]:
        """Nodes and ranks a node of a job: "train", "index" or "evaluate"."""
        match kind:
            case "train":
                return self.num_nodes, self.tasks_per_node
            case "index":
                return self.index_num_nodes, self.index_tasks_per_node
            case _:
                return self.evaluate_num_nodes, self.evaluate_tasks_per_node


def _one_line(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError("it must be one line of printable characters")
    return text


OneLine = Annotated[str, AfterValidator(_one_line)]

_SETTINGS_OF_THEIR_OWN = {
    "account": "account",
    "constraint": "constraint",
    "cpus-per-task": "cpus_per_task",
    "gpus-per-node": "gpus_per_node",
    "mem": "memory_gb",
    "partition": "partition",
    "qos": "qos",
    "time": "timeout_min",
}
_ANDSCALE_SETS = (
    "array", "chdir", "comment", "dependency", "error", "job-name", "kill-on-invalid-dep", "nodes", "ntasks",
    "ntasks-per-node", "open-mode", "output", "parsable", "requeue", "no-requeue", "signal", "wait", "wrap",
)  # fmt: skip


class SlurmSettings(Section):
    """What a site wants of a job; None leaves a setting to the level below."""

    partition: OneLine | None = None
    account: OneLine | None = None
    qos: OneLine | None = None
    constraint: OneLine | None = None
    """Features that nodes must have, in sbatch's own words."""
    gpus_per_node: int | None = Field(default=None, ge=0)
    cpus_per_task: int | None = Field(default=None, ge=1)
    memory_gb: float | None = Field(default=None, gt=0)
    """Memory a node."""
    timeout_min: int | None = Field(default=None, ge=1)
    """Time limit of one job, minutes."""
    setup: list[OneLine] | None = None
    """Lines of shell that every job runs before the step: modules, variables."""
    srun_args: list[OneLine] | None = None
    """Further arguments of srun, one an entry."""
    additional: dict[str, Any] | None = None
    """Further options of sbatch -> value, for example ``exclusive = true``; true is an option without a value."""

    @field_validator("additional")
    @classmethod
    def _options_are_free(cls, options: dict[str, Any] | None) -> dict[str, Any] | None:
        for name, value in (options or {}).items():
            if not re.fullmatch("[a-z][a-z0-9-]+", name):
                raise ValueError(f"{name!r} is not a long option of sbatch without its dashes, like 'exclusive'")
            if name in _SETTINGS_OF_THEIR_OWN:
                raise ValueError(f"{name!r} has a setting of its own here: {_SETTINGS_OF_THEIR_OWN[name]}")
            if name in _ANDSCALE_SETS:
                raise ValueError(f"{name!r} is set by andscale; what it sets itself: {', '.join(_ANDSCALE_SETS)}")
            if value is False or not isinstance(value, (str, int, float)):
                raise ValueError(f"{name!r} takes a text, a number, or true")
            _one_line(str(value))
        return options


class SlurmConfig(SlurmSettings):
    """Settings of every job on Slurm, and tables of single steps over them."""

    train: SlurmSettings = SlurmSettings()
    index: SlurmSettings = SlurmSettings()
    evaluate: SlurmSettings = SlurmSettings()

    def of_step(self, kind: str, resources: ResourcesConfig) -> SlurmSettings:
        """What holds for a job of ``kind``: ``[slurm.KIND]`` over ``[slurm]`` over ``[resources]``, name by name.

        ``additional`` goes option by option. A general ``cpus_per_task`` is that of a training rank: index and
        evaluation jobs share the CPUs of a training job's node out among their own ranks; their own one is literal.
        """
        own: SlurmSettings = getattr(self, kind)
        values: dict[str, Any] = {}
        for name in SlurmSettings.model_fields:
            given = [getattr(own, name), getattr(self, name), getattr(resources, name, None)]
            values[name] = next((value for value in given if value is not None), None)
        if own.cpus_per_task is None and values["cpus_per_task"] is not None and kind != "train":
            _, tasks = resources.job_size(kind)
            values["cpus_per_task"] = max(1, values["cpus_per_task"] * resources.tasks_per_node // tasks)
        if self.additional and own.additional:
            values["additional"] = self.additional | own.additional
        return SlurmSettings(**values)
