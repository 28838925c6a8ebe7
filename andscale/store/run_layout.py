"""Every path of a run, spelt once."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RoundLayout:
    """The folders of one round; see docs/formats.md for what is in them."""

    root: Path
    number: int

    @property
    def neighbourhoods(self) -> Path:
        """The neighbourhood table (round >= 1), written by the index job."""
        return self.root / "neighbourhoods"

    @property
    def index(self) -> Path:
        """The FAISS index over the memory that was searched (round >= 1)."""
        return self.root / "index"

    @property
    def memory(self) -> Path:
        """The memory features that the round's training left, one file a rank."""
        return self.root / "memory"

    @property
    def model(self) -> Path:
        """The trained backbone: ``model.safetensors`` and ``config.json``."""
        return self.root / "model"

    @property
    def checkpoints(self) -> Path:
        """One artefact an epoch, the last ones kept."""
        return self.root / "checkpoints"

    @property
    def evaluation(self) -> Path:
        """``evaluation.json`` as an artefact."""
        return self.root / "evaluation"

    @property
    def metrics(self) -> Path:
        """``metrics.jsonl`` of the training job."""
        return self.root / "metrics.jsonl"

    def job_record(self, step: str) -> Path:
        """Which job was submitted for the step last (``index``, ``train``, ``evaluate``)."""
        return self.root / "jobs" / f"{step}.json"

    def logs(self, step: str) -> Path:
        """Submitit's folder of the step: scripts, pickles, standard output and error of every task."""
        return self.root / "jobs" / step


@dataclass(frozen=True)
class RunLayout:
    """The paths of one run folder, ``runs/NAME``."""

    root: Path

    @property
    def record(self) -> Path:
        """``run.json``: resolved config, versions, data set fingerprint; frozen at first launch."""
        return self.root / "run.json"

    @property
    def rounds(self) -> Path:
        """The folder of the rounds."""
        return self.root / "rounds"

    def round(self, number: int) -> RoundLayout:
        """The layout of one round, ``rounds/02`` for round 2."""
        return RoundLayout(self.rounds / f"{number:02d}", number)

    def events(self, line: str) -> Path:
        """TensorBoard's events of a line of its figures: ``00``, ``01`` for a round's epochs, or ``rounds``."""
        return self.root / "tensorboard" / line

    def round_numbers(self) -> list[int]:
        """The rounds that have a folder, ascending; a folder alone does not say that anything in it is done."""
        if not self.rounds.is_dir():
            return []
        return sorted(int(p.name) for p in self.rounds.iterdir() if p.is_dir() and p.name.isdigit())
