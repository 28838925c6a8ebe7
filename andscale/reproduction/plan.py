"""From a table to its runs: which there are, and who shares round 0 with whom."""

from dataclasses import dataclass, replace
from pathlib import Path

from andscale.config import RunConfig
from andscale.config_file import flatten, load_config
from andscale.errors import UsageError
from andscale.orchestration.launch import LaunchRequest
from andscale.orchestration.sharing import initialisation_digest
from andscale.reproduction.tables import Arm, Column, Table
from andscale.store.files import as_place

SCALES = ("full", "smoke")
STAND_INS = {
    "cifar10": "digits",
    "cifar100": None,
    "svhn": "fashion-mnist",
    "dogs": "fashion-mnist",
    "fashion": "fashion-mnist",
}
"""Data sets of the small scale; those not named here are stood in for by digits, None: the rows are left out."""
_ELSEWHERE = "where the data lie elsewhere, make these links to them, or run in a folder whose data/ is such a link"
_TELL_APART = {"data.dataset": ("data sets", _ELSEWHERE), "model.backbone": ("networks", "leave it out")}
"""What configs of a table's rows differ in by design: its name, and what to do in the place of one for all."""


@dataclass(frozen=True)
class Plan:
    """How a table is to be run."""

    table: Table
    scale: str = "full"
    seeds: int = 3
    overrides: tuple[str, ...] = ()
    cluster: str = "auto"
    root: Path = Path("runs/reproduce")


@dataclass(frozen=True)
class PlannedRun:
    """One run: an arm with a seed.

    Attributes:
        arm: the row.
        seed: of the run.
        request: as it is launched: all its rounds; those after round 0, where that is another run's, evaluated there.
        config: resolved.
        donor: the run of this plan whose round 0 it takes over; None: it trains its own.
    """

    arm: Arm
    seed: int
    request: LaunchRequest
    config: RunConfig
    donor: Path | None

    @property
    def root(self) -> Path:
        """The run's folder, which explains itself: data set, backbone, method, first digits of the config's hash."""
        assert self.request.run is not None
        return self.request.run

    @property
    def rounds(self) -> range:
        """The rounds that it runs itself."""
        assert self.request.rounds is not None
        return self.request.rounds

    @property
    def num_images(self) -> int:
        """Images that its rounds train on, with repetition; the published number where nothing is prepared yet."""
        from andscale.data.published import PUBLISHED
        from andscale.data.shards import open_dataset

        place = self.config.data.dataset
        most = self.config.data.max_train_samples
        known = PUBLISHED.get(Path(place).name)
        if unprepared([self]) and (known or most):
            number = known.train if known else most or 0
        else:
            number = open_dataset(as_place(place)).splits["train"].num_samples
        number = min(number, most or number)
        rounds = [r for r in self.rounds if self.config.method.trains(r)]
        return number * self.config.optim.num_epochs * len(rounds)


def planned_runs(plan: Plan) -> list[PlannedRun]:
    """Every run of a table once, in the order in which they are launched; equal settings are one run.

    Raises:
        UsageError: a setting is wrong or would make one of several rows or seeds, or no row is left.
    """
    _refuse_overrides(plan)
    runs: list[PlannedRun] = []
    donors: dict[str, Path] = {}
    for seed in range(plan.seeds):
        for arm in arms_of(plan):
            if arm.max_seeds is not None and seed >= arm.max_seeds:
                continue
            config_path, settings = _settings(plan, arm, seed)
            config = load_config(config_path, list(settings))
            data, network = Path(config.data.dataset).name, config.model.backbone.replace(":", "-")
            root = plan.root / f"{data}-{network}-{config.method.name}-{config.digest()[:8]}"
            donor = donors.setdefault(initialisation_digest(config), root)
            takes_over = donor != root and config.method.last_round > 0
            rounds = range(1 if takes_over else 0, config.method.last_round + 1)
            request = LaunchRequest(root, rounds, config_path, settings, plan.cluster)
            runs.append(PlannedRun(arm, seed, request, config, donor if takes_over else None))
    if not runs:
        raise UsageError(f"{plan.table.name} has no row at scale {plan.scale}")
    _refuse_merged(plan, runs)
    return runs


def arms_of(plan: Plan) -> list[Arm]:
    """The rows of a table at a scale."""
    return [arm for arm in plan.table.arms if plan.scale == "full" or stand_in(arm) is not None]


def columns_of(plan: Plan) -> tuple[Column, ...]:
    """The columns of a table at a scale."""
    return plan.table.smoke_columns or plan.table.columns if plan.scale == "smoke" else plan.table.columns


def stand_in(arm: Arm) -> str | None:
    """The data set that the small scale has in place of an arm's."""
    return STAND_INS.get(arm.config.partition("_")[0], "digits")


def describe_plan(plan: Plan) -> str:
    """What would be launched: runs, whose round 0 each takes over, images to train on where that is known."""
    runs, lines, total = planned_runs(plan), [], 0
    for number, run in enumerate(runs, start=1):
        shares = f", round 0 of {run.donor.name}" if run.donor else ""
        images = 0 if is_repeated(runs, number - 1) else run.num_images
        total += images
        lines.append(
            f"run {number} of {len(runs)}: {run.arm.label}, seed {run.seed}: {run.root.name}{shares}, {images:,} images"
        )
    absent = unprepared(runs)
    lines.append(f"{total:,} images to train on, with repetition" + (f"; not prepared: {absent}" if absent else ""))
    return "\n".join(lines)


def unprepared(runs: list[PlannedRun]) -> list[str]:
    """The data sets of runs that are not prepared; one on a server is not asked for."""
    places = sorted({run.config.data.dataset for run in runs})
    return [place for place in places if "://" not in place and not (Path(place) / "dataset.json").exists()]


def is_repeated(runs: list[PlannedRun], place: int) -> bool:
    """Whether the run at a place is one that stands before it already."""
    return any(run.root == runs[place].root for run in runs[:place])


def _refuse_overrides(plan: Plan) -> None:
    """Raise UsageError where an override sets what tells rows or seeds apart: one run would stand in several rows."""
    for name in (override.partition("=")[0].strip() for override in plan.overrides):
        if name == "seed":
            raise UsageError(
                "--set seed: it tells the runs of a row apart: leave it out, choose their number with --seeds"
            )
        for arm in arms_of(plan):
            own = [setting for setting in _arm_settings(plan, arm) if _overlap(name, setting.partition("=")[0])]
            if own:
                raise UsageError(
                    f"--set {name}: row {arm.label!r} of {plan.table.name} sets it itself ({own[0]}): leave it out"
                )
        for key, (what, remedy) in _TELL_APART.items():
            if not _overlap(name, key):
                continue
            known = {str(flatten(_without_overrides(plan, arm, 0).model_dump())[key]) for arm in arms_of(plan)}
            if len(known) > 1:
                differ = f"the rows of {plan.table.name} have different {what} ({', '.join(sorted(known))})"
                raise UsageError(f"--set {name}: {differ}: {remedy}")


def _refuse_merged(plan: Plan, runs: list[PlannedRun]) -> None:
    """Raise UsageError where overrides make one run of rows or seeds that are several without them."""
    seen: dict[Path, tuple[PlannedRun, str]] = {}
    for run in runs if plan.overrides else ():
        digest = _without_overrides(plan, run.arm, run.seed).digest()
        first, its_digest = seen.setdefault(run.root, (run, digest))
        if digest != its_digest:
            one, other = (f"{r.arm.label!r}, seed {r.seed}," for r in (first, run))
            raise UsageError(
                f"--set {' '.join(plan.overrides)}: {one} and {other} would be one run: leave out what makes them alike"
            )


def _overlap(one: str, other: str) -> bool:
    """Whether one of two settings is the other or a section that it stands in."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _without_overrides(plan: Plan, arm: Arm, seed: int) -> RunConfig:
    path, settings = _settings(replace(plan, overrides=()), arm, seed)
    return load_config(path, list(settings))


def _arm_settings(plan: Plan, arm: Arm) -> tuple[str, ...]:
    """What a row sets itself."""
    return arm.settings if plan.scale == "full" else arm.smoke or arm.settings


def _settings(plan: Plan, arm: Arm, seed: int) -> tuple[Path, tuple[str, ...]]:
    if plan.scale == "full":
        return Path(f"configs/{arm.config}.toml"), (*_arm_settings(plan, arm), f"seed={seed}", *plan.overrides)
    small = [
        *("resources.tasks_per_node=1", "evaluation.num_neighbours=20", f"data.dataset=data/{stand_in(arm)}"),
        *("data.max_train_samples=1000", "data.max_val_samples=360"),
    ]
    if stand_in(arm) == "fashion-mnist":
        small += ["data.image_size=16", "data.max_train_samples=2000", "data.max_val_samples=1000"]
    small += plan.table.smoke
    small += _arm_settings(plan, arm)
    return Path("configs/digits_demo.toml"), (*small, f"seed={seed}", *plan.overrides)
