"""The tables: arms (rows) with their runs, columns with where each figure is read, published numbers beside."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from andscale.errors import UsageError
from andscale.reproduction import published_figures as published

METHODS = {
    "Random": "random",
    "Instance": "instance",
    "DeepCluster": "deepcluster",
    "NAT": "nat",
    "AND": "and",
    "Supervised": "supervised",
}
_LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "embedding")


@dataclass(frozen=True)
class Column:
    """One figure of a row: its heading, and the keys to it in ``evaluation.json`` of a run's last round."""

    heading: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Arm:
    """One row.

    Attributes:
        label: as the table has it.
        config: a file of ``configs/``.
        settings: ``section.key=value`` over it.
        smoke: further settings of the small scale, over those of its stand-in.
        published: column's heading -> percent and source.
    """

    label: str
    config: str
    settings: tuple[str, ...] = ()
    smoke: tuple[str, ...] = ()
    published: Mapping[str, tuple[float, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table of the paper."""

    name: str
    title: str
    columns: tuple[Column, ...]
    arms: tuple[Arm, ...]
    smoke: tuple[str, ...] = ("method.num_rounds=2", "optim.num_epochs=4")
    """Settings of every arm at the small scale."""
    per_round: bool = False
    """Rows are the rounds of the only arm, and the figures those of the audit of their anchors."""


KNN = Column("kNN", ("accuracy",))


def _linear(layer: str) -> Column:
    return Column(f"linear {layer}", ("linear", layer, "top1"))


def all_tables() -> dict[str, Table]:
    """Every table by name."""
    tables = (_table1(), _table2(), _table3(), _table4(), *_ablations())
    return {table.name: table for table in tables}


def table_named(name: str) -> Table:
    """One of them; UsageError with the names where there is none."""
    tables = all_tables()
    if name not in tables:
        raise UsageError(f"no table {name!r}: choose one of {', '.join(tables)}")
    return tables[name]


def _table1() -> Table:
    columns, sets = (KNN, _linear("conv5")), (("CIFAR-10", "cifar10"), ("CIFAR-100", "cifar100"), ("SVHN", "svhn"))
    arms = []
    for place, (title, name) in enumerate(sets):
        for label, method in METHODS.items():
            row = published.SMALL_SETS.get(label)
            known = {c.heading: (row[i][place], published.AND_TABLE_1) for i, c in enumerate(columns)} if row else {}
            settings = (f"method.name={method}",)
            arms.append(Arm(f"{title}: {label}", f"{name}_alexnet", settings, published=known))
    smoke = (
        *("method.num_rounds=1", "optim.num_epochs=2", "method.num_clusters=20"),
        *("model.backbone=alexnet", "data.image_size=16", "evaluation.linear_epochs=3"),
    )
    return Table("table1", "Small data sets, AlexNet", columns, tuple(arms), smoke)


def _table2() -> Table:
    columns, arms = (*map(_linear, _LAYERS), KNN), []
    for label, method in METHODS.items():
        row = published.IMAGENET.get(label, (None,) * len(columns))
        known = {c.heading: (v, published.AND_TABLE_2) for c, v in zip(columns, row, strict=True) if v is not None}
        arms.append(Arm(label, "imagenet_alexnet", (f"method.name={method}",), published=known))
    return Table("table2", "ImageNet, AlexNet", columns, tuple(arms), _table1().smoke)


def _table3() -> Table:
    sets = {"CUB-200": "cub200", "Stanford Dogs": "dogs"}
    arms = [
        Arm(t, f"{n}_resnet18", published={"kNN": (published.FINE_GRAINED[n], published.SUPER_AND_2)})
        for t, n in sets.items()
    ]
    return Table("table3", "Fine-grained data sets, ResNet-18", (KNN,), tuple(arms))


def _table4() -> Table:
    arms = []
    for title, name in (("AlexNet", "alexnet"), ("ResNet-18", "resnet18"), ("ResNet-101", "resnet101")):
        settings = (f"model.backbone={name}", "data.image_size=16")
        known = {"kNN": (published.BACKBONES[name], published.AND_REVIEW)}
        arms.append(Arm(title, f"cifar10_{name}", (), settings, known))
    smoke = ("method.num_rounds=1", "optim.num_epochs=1", "data.max_train_samples=300")
    return Table("table4", "Backbones, CIFAR-10", (KNN,), tuple(arms), smoke)


def _ablations() -> tuple[Table, ...]:
    def arm(label: str, *settings: str, smoke: tuple[str, ...] = (), known: float | None = None) -> Arm:
        beside = {} if known is None else {"kNN": (known, published.AND_REVIEW)}
        return Arm(label, "cifar10_resnet18", settings, smoke or settings, beside)

    def epochs(number: int, first: int, every: int, small: int) -> Arm:
        schedule = (f"optim.first_decay_epoch={first}", f"optim.decay_every_epochs={every}")
        return arm(f"N_ep = {number}", f"optim.num_epochs={number}", *schedule, smoke=(f"optim.num_epochs={small}",))

    sizes = [
        arm(f"k = {k}", f"method.num_neighbours={k}", known=published.NEIGHBOURHOOD_SIZES.get(k))
        for k in (1, 5, 10, 20, 50, 100)
    ]
    starts = (arm("Random", "method.initialisation=random"), arm("Instance", "method.initialisation=instance"))
    orders = (arm("One-off", "method.num_rounds=1"), arm("Curriculum", "method.num_rounds=4"))
    rounds = [arm(f"R = {r}", f"method.num_rounds={r}") for r in (1, 2, 4, 8)]
    lengths = (epochs(50, 20, 10, 2), epochs(100, 40, 20, 4), epochs(200, 80, 40, 8))
    where = "CIFAR-10, ResNet-18"
    anchors = (Column("consistent", ("consistent",)), Column("inconsistent", ("inconsistent",)))
    four = ("method.num_rounds=4", "optim.num_epochs=4")
    return (
        Table("figure6", f"Anchors of each round, {where}", anchors, (arm("AND"),), four, per_round=True),
        Table("table5", f"Initialisation, {where}", (KNN,), starts),
        Table("table6", f"One-off discovery and curriculum, {where}", (KNN,), orders),
        Table("figure4", f"Neighbourhood size, {where}", (KNN,), tuple(sizes)),
        Table("figure5", f"Rounds of the curriculum, {where}", (KNN,), tuple(rounds)),
        Table("n_ep", f"Epochs a round, {where}", (KNN,), lengths),
    )
