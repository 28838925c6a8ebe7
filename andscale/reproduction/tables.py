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
_CLUSTERS = {"cifar10": 100, "cifar100": 1000, "svhn": 100, "imagenet": 10_000, "fashion-mnist": 100}
"""Ten times the classes, as DeepCluster's authors took them for ImageNet."""
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
        max_seeds: of rows beside the main comparison; None: all that are asked for.
    """

    label: str
    config: str
    settings: tuple[str, ...] = ()
    smoke: tuple[str, ...] = ()
    published: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    max_seeds: int | None = None


@dataclass(frozen=True)
class Table:
    """A table of the paper."""

    name: str
    title: str
    columns: tuple[Column, ...]
    arms: tuple[Arm, ...]
    smoke: tuple[str, ...] = ("method.num_rounds=2", "optim.num_epochs=4")
    """Settings of every arm at the small scale."""
    smoke_columns: tuple[Column, ...] | None = None
    """Columns at the small scale, where its network has other layers; None: the same."""
    per_round: bool = False
    """Rows are the rounds of the only arm, and the figures those of the audit of their anchors."""
    draws_attention: bool = False
    """The figure shows where each row's network looks, in the place of bars."""
    compared: tuple[str, str] | None = None
    """Two rows whose difference is the point: what every row has after each round is shown too, and how far these two
    are apart seed by seed."""


KNN = Column("kNN", ("accuracy",))


def _linear(layer: str) -> Column:
    return Column(f"linear {layer}", ("linear", layer, "top1"))


def all_tables() -> dict[str, Table]:
    """Every table by name."""
    tables = (_table1(), _table2(), _table3(), _table4(), *_ablations(), _fashion_mnist())
    return {table.name: table for table in tables}


def table_named(name: str) -> Table:
    """One of them; UsageError with the names where there is none."""
    tables = all_tables()
    if name not in tables:
        raise UsageError(f"no table {name!r}: choose one of {', '.join(tables)}")
    return tables[name]


def _method(name: str, num_clusters: int) -> tuple[str, ...]:
    """The settings of a method."""
    clusters = (f"method.num_clusters={num_clusters}",) if name == "deepcluster" else ()
    return (f"method.name={name}", *clusters)


def _table1() -> Table:
    columns, sets = (KNN, _linear("conv5")), (("CIFAR-10", "cifar10"), ("CIFAR-100", "cifar100"), ("SVHN", "svhn"))
    arms = []
    for place, (title, name) in enumerate(sets):
        for label, method in METHODS.items():
            row = published.SMALL_SETS.get(label)
            known = {c.heading: (row[i][place], published.AND_TABLE_1) for i, c in enumerate(columns)} if row else {}
            small = _method(method, 20)
            arms.append(Arm(f"{title}: {label}", f"{name}_alexnet", _method(method, _CLUSTERS[name]), small, known))
    # the small network in place of AlexNet: its last convolutional map is conv4
    smoke = ("method.num_rounds=1", "optim.num_epochs=2", "evaluation.linear_epochs=2")
    return Table("table1", "Small data sets, AlexNet", columns, tuple(arms), smoke, (KNN, _linear("conv4")))


def _table2() -> Table:
    columns, arms = (*map(_linear, _LAYERS), KNN), []
    for label, method in METHODS.items():
        row = published.IMAGENET.get(label, (None,) * len(columns))
        known = {c.heading: (v, published.AND_TABLE_2) for c, v in zip(columns, row, strict=True) if v is not None}
        settings = _method(method, _CLUSTERS["imagenet"])
        arms.append(Arm(label, "imagenet_alexnet", settings, _method(method, 20), known))
    small = (*(_linear(layer) for layer in _LAYERS if layer != "conv5"), KNN)
    return Table("table2", "ImageNet, AlexNet", columns, tuple(arms), _table1().smoke, small)


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
    looks = tuple(arm(label, f"method.name={METHODS[label]}") for label in ("Random", "Instance", "AND"))
    large = ("method.num_rounds=1", "optim.num_epochs=2", "data.image_size=32")  # smaller ones leave maps of one place
    four = ("method.num_rounds=4", "optim.num_epochs=4")
    return (
        Table("figure6", f"Anchors of each round, {where}", anchors, (arm("AND"),), four, per_round=True),
        Table("figure7", f"Where networks look, {where}", (KNN,), looks, large, draws_attention=True),
        Table("table5", f"Initialisation, {where}", (KNN,), starts),
        Table("table6", f"One-off discovery and curriculum, {where}", (KNN,), orders),
        Table("figure4", f"Neighbourhood size, {where}", (KNN,), tuple(sizes)),
        Table("figure5", f"Rounds of the curriculum, {where}", (KNN,), tuple(rounds)),
        Table("n_ep", f"Epochs a round, {where}", (KNN,), lengths),
    )


def _fashion_mnist() -> Table:
    """Not of the paper: methods side by side at equal epochs, on what everyone has."""
    arms = []
    for label, method in METHODS.items():
        settings = _method(method, _CLUSTERS["fashion-mnist"])
        if method == "nat":
            settings += ("method.memory_start=noise",)
        small = (*_method(method, 20), "evaluation.purity_neighbours=10")
        max_seeds = None if method in ("random", "instance", "and") else 1
        arms.append(Arm(label, "fashion_mnist_comparison", settings, small, max_seeds=max_seeds))
    fewer = tuple(Column(f"kNN, K = {k}", ("knn", str(k), "top1")) for k in (20, 1))
    columns = (KNN, *fewer, Column("purity at 1", ("purity", "1")), Column("purity at 10", ("purity", "10")))
    smoke = ("method.num_rounds=2", "optim.num_epochs=2")
    title = "Methods on Fashion-MNIST, small network"
    return Table("fashion_mnist", title, columns, tuple(arms), smoke, compared=("AND", "Instance"))
