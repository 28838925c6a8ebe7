"""The typed, frozen sections of a run; ``config_file`` reads them.

Every section refuses unknown keys and names the valid ones. ``[resources]`` and ``[slurm]`` (``config_resources``) say
where and how steps are run and may change from launch to launch, as may ``READ_ANYHOW`` of ``[data]``; everything else
decides the results, is frozen at the first launch and hashed.
"""

import json
import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from andscale.config_data import READ_ANYHOW, AugmentConfig, DataConfig
from andscale.config_resources import ResourcesConfig, Section, SlurmConfig

BACKBONES = ("small_resnet", "alexnet", "resnet18", "resnet34", "resnet50", "resnet101")
TIMM_PREFIX = "timm:"
_CAME_LATER = (
    ("method", "memory_start"),
    ("method", "num_clusters"),
    ("method", "target_epochs"),
    ("evaluation", "purity_neighbours"),
)
"""At their defaults they stay out of the hash, so that runs from before they came go on."""
_LEAST_IMAGE_SIZE = {("alexnet", "imagenet"): 63, ("alexnet", "small"): 15}
"""Smaller images leave nothing after the last pooling: 63 -> 15 -> 7 -> 3 -> 1 and 15 -> 7 -> 3 -> 1."""


class ModelConfig(Section):
    """The backbone and its embedding head."""

    backbone: str = "resnet18"
    """small_resnet, alexnet, resnet18, resnet34, resnet50, resnet101, or ``timm:NAME``: a network of timm by its name
    there, never with weights from elsewhere."""
    stem: Literal["small", "imagenet"] = "small"
    """``small``: stride 1, for images of about 32 pixels; ``imagenet``: 7x7, stride 2, max-pool (AlexNet: 11x11, stride
    4). Networks of timm have a stem of their own: leave it out."""
    feature_dim: int = Field(default=128, ge=2, le=16384)
    """D, the length of a feature."""
    sync_batchnorm: bool = False
    """Batch norm over the global batch instead of each rank's share of it."""

    @field_validator("backbone")
    @classmethod
    def _backbone_is_known(cls, name: str) -> str:
        # a name that timm would look up on a server has a colon or a slash in it
        if name not in BACKBONES and not re.fullmatch(f"{TIMM_PREFIX}[A-Za-z0-9_.]+", name):
            raise ValueError(f"choose one of {', '.join(map(repr, BACKBONES))}, or '{TIMM_PREFIX}NAME'")
        return name

    @model_validator(mode="after")
    def _stem_fits_the_backbone(self) -> "ModelConfig":
        if self.stem != "small":
            if self.backbone == "small_resnet":
                raise ValueError("small_resnet has a small stem only: set model.stem = small")
            if self.backbone.startswith(TIMM_PREFIX):
                raise ValueError(f"{self.backbone} has a stem of its own: leave model.stem out")
        return self


class MethodConfig(Section):
    """Anchor Neighbourhood Discovery; the defaults are the published ones."""

    name: Literal["and", "instance", "deepcluster", "nat", "supervised", "random"] = "and"
    """``and``: the method. Baselines: ``instance`` trains every round without neighbourhoods (eq 2); ``deepcluster``
    classifies the k-means clusters of its own features, found anew in every epoch; ``nat`` draws each sample to a
    fixed random vector of its own (noise as targets); ``supervised`` learns the data set's labels by cross-entropy;
    ``random`` leaves the first weights as they are (round 0 only)."""
    initialisation: Literal["instance", "random"] = "instance"
    """What round 0 is for ``and``: training by eq 2 (published), or ``random`` weights and a memory of their features;
    ``instance`` can begin so too, for a comparison from the same start."""
    memory_start: Literal["noise", "features"] = "noise"
    """What the memory holds when the training of round 0 begins: random unit vectors (published), of which eq 8 keeps
    a share (1 - eta)^v after v visits, or the ``features`` of the first weights, for trainings of few epochs."""
    num_rounds: int = Field(default=4, ge=1)
    """R: in round r the floor(N r/R) samples of lowest entropy are anchors (eq 6)."""
    num_neighbours: int = Field(default=1, ge=1)
    """k: neighbours of a sample besides itself (eq 1)."""
    temperature: float = Field(default=0.1, gt=0)
    """tau of p_ij (eq 2)."""
    memory_momentum: float = Field(default=0.5, gt=0, le=1)
    """eta: the share of the new feature in the memory update (eq 8)."""
    objective: Literal["exact", "sampled"] = "exact"
    """``exact``: p_ij over all N samples, at any N; ``sampled``: the sum over samples is estimated from
    ``num_negatives`` of them, drawn anew in every step, for 100 million samples and more."""
    num_negatives: int = Field(default=65_536, ge=1)
    """m of the sampled objective; with m >= N it is the exact one."""
    num_clusters: int = Field(default=10_000, ge=2)
    """C of ``deepcluster``, whose authors took ten times the number of classes (10,000 for ImageNet)."""
    target_epochs: int = Field(default=3, ge=1)
    """``nat``: in the first of every so many epochs of a round, the samples of a batch exchange their targets."""
    score_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of features and memory rows in the products of the objective, whose sums are float32. ``bfloat16``: faster on
    GPUs, a loss within 2^-6 / temperature; on CPUs the same numbers in more time."""

    @model_validator(mode="after")
    def _only_the_method_and_instances_can_start_at_random(self) -> "MethodConfig":
        if self.initialisation == "random" and self.name not in ("and", "instance"):
            raise ValueError(f"initialisation = random belongs to name = and or instance, not to {self.name}")
        return self

    @model_validator(mode="after")
    def _targets_are_noise(self) -> "MethodConfig":
        if self.name == "nat" and self.memory_start != "noise":
            raise ValueError("name = nat has its targets, which are noise, in the memory: set memory_start = noise")
        return self

    @property
    def finds_neighbours(self) -> bool:
        """Whether rounds after the first begin with an index step."""
        return self.name == "and"

    @property
    def update_momentum(self) -> float:
        """The eta of the memory's update: ``nat`` keeps targets there, which are exchanged and never mixed."""
        return 1.0 if self.name == "nat" else self.memory_momentum

    @property
    def last_round(self) -> int:
        """The last round that there can be."""
        return 0 if self.name == "random" else self.num_rounds

    @property
    def starts_from_features(self) -> bool:
        """Whether the memory begins as features of the first weights, or as noise."""
        return self.memory_start == "features" or not self.trains(0)

    def trains(self, round_number: int) -> bool:
        """Whether a round trains at all, or publishes the first weights."""
        return round_number > 0 or "random" not in (self.name, self.initialisation)


class OptimConfig(Section):
    """SGD with Nesterov momentum and its schedule, which starts anew in every round."""

    num_epochs: int = Field(default=200, ge=1)
    """Epochs a round."""
    global_batch_size: int = Field(default=128, ge=2)
    """Largest number of samples of one step, over all ranks."""
    accumulation_steps: int = Field(default=1, ge=1)
    """Parts of a step's batch that go through the network one after the other, for less memory; loss and gradient are
    those of the whole batch, batch norm's statistics those of each part."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the backbone's products (autocast); weights, features, objective and memory are float32."""
    compile: bool = False
    """Whether torch.compile makes kernels for the network; worth it on GPUs, and needs a C++ compiler on CPUs."""
    learning_rate: float = Field(default=0.03, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    schedule: Literal["step", "cosine"] = "step"
    """``step``: times ``decay_factor`` at ``first_decay_epoch`` and every ``decay_every_epochs`` after it (the
    published code begins at 120, docs/faithfulness.md); ``cosine``: to zero over the round, step by step."""
    first_decay_epoch: int = Field(default=80, ge=1)
    decay_every_epochs: int = Field(default=40, ge=1)
    decay_factor: float = Field(default=0.1, gt=0, le=1)
    warmup_steps: int = Field(default=0, ge=0)
    """Steps at the start of a round over which the rate rises linearly from zero."""


class IndexConfig(Section):
    """The rebuild job."""

    check_rows: int = Field(default=1000, ge=1)
    """Rows that are searched again in float64 and compared before anything is published."""
    mode: Literal["auto", "exact", "approximate"] = "auto"
    """``approximate``: neighbours from the FAISS index and entropies with an estimated tail, for tens of millions of
    samples and more; ``auto`` takes it when the exact sweep would take longer than an hour on the devices at hand."""
    kind: Literal["auto", "flat", "ivf_flat", "ivf_pq", "hnsw", "cagra"] = "auto"
    """The FAISS index that a round keeps; ``auto`` chooses from N, D and memory (indexing/faiss_index.py)."""
    precision: Literal["auto", "float32", "float16"] = "auto"
    """Of the scores of the exact sweep on GPUs; neighbours are those of float64 with all of them. ``float32``:
    entropies within 1e-4 nats; ``float16``, which ``auto`` takes: faster, within 1e-2 nats. CPUs use float32."""


class StorageConfig(Section):
    """What a run leaves on disk."""

    feature_dtype: Literal["float32", "float16"] = "float32"
    """Of the features in ``memory/``: float16 takes half the space; readers scale rows to unit length again."""


class EvaluationConfig(Section):
    """Weighted kNN of the embedding, and linear classifiers on the layers where they are asked for."""

    num_neighbours: int = Field(default=200, ge=1)
    """K: training samples that vote, for the accuracy that stands in tables; K = 1, 5, 20 and 200 are measured too."""
    temperature: float = Field(default=0.07, gt=0)
    """A vote weighs exp(similarity / temperature)."""
    features: Literal["recomputed", "memory"] = "recomputed"
    """Of the training samples that vote: embedded anew with the evaluation transform, or the memory that the round
    left, as the published code has it."""
    batch_size: int = Field(default=500, ge=1)
    """Images that are embedded at once by one rank."""
    purity_neighbours: int = Field(default=0, ge=0)
    """Purity of the nearest training samples of every training sample is measured at K = 1, 10 and 100 up to this one,
    and at this one; 0: not at all. It searches N samples among N, so it takes a GPU where N is large."""
    linear_epochs: int = Field(default=0, ge=0)
    """Epochs of the linear classifiers on conv1..conv5 and the embedding; 0: none are trained."""
    linear_batch_size: int = Field(default=256, ge=2)
    """Largest number of samples of one of their steps, over all ranks."""
    linear_learning_rate: float = Field(default=0.01, gt=0)
    """At the start; it falls to zero along a cosine, step by step."""
    linear_weight_decay: float = Field(default=1e-4, ge=0)


class RunConfig(Section):
    """A whole run. The defaults are the published settings, but for what docs/faithfulness.md names."""

    seed: int = Field(default=0, ge=0)
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    method: MethodConfig = MethodConfig()
    optim: OptimConfig = OptimConfig()
    index: IndexConfig = IndexConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    storage: StorageConfig = StorageConfig()
    resources: ResourcesConfig = ResourcesConfig()
    slurm: SlurmConfig = SlurmConfig()

    @model_validator(mode="after")
    def _batch_reaches_every_rank(self) -> "RunConfig":
        ranks = self.resources.num_nodes * self.resources.tasks_per_node
        parts = self.optim.accumulation_steps
        # batches of an epoch are evened out and can be half as large: two samples a rank and part are left then
        if self.optim.global_batch_size < 4 * ranks * parts - 1:
            spread = f"{ranks} ranks" + (f" and optim.accumulation_steps = {parts}" if parts > 1 else "")
            raise ValueError(
                f"optim.global_batch_size = {self.optim.global_batch_size} is too small for {spread}: it must be at "
                f"least {4 * ranks * parts - 1}, so that each rank has two samples in every batch"
            )
        return self

    @model_validator(mode="after")
    def _images_reach_the_last_layer(self) -> "RunConfig":
        least = _LEAST_IMAGE_SIZE.get((self.model.backbone, self.model.stem), 1)
        if self.data.image_size < least:
            raise ValueError(
                f"data.image_size = {self.data.image_size} is too small for {self.model.backbone} with "
                f"model.stem = {self.model.stem}: it must be at least {least}"
            )
        return self

    def scientific_record(self) -> dict[str, Any]:
        """All that decides the results, as plain JSON values: every section but ``[resources]`` and ``[slurm]``.

        What may differ from launch to launch stands at its default, as in the hashes of runs from before it might.
        """
        record = self.model_dump(mode="json", exclude={"resources", "slurm"})
        record["data"] |= {key: DataConfig.model_fields[key].default for key in READ_ANYHOW}
        for section, key in _CAME_LATER:
            if record[section][key] == type(getattr(self, section)).model_fields[key].default:
                del record[section][key]
        return record

    def digest(self) -> str:
        """BLAKE3 of ``scientific_record`` as canonical JSON; stands in every manifest."""
        from andscale.store.files import hash_bytes

        return hash_bytes(json.dumps(self.scientific_record(), sort_keys=True, separators=(",", ":")).encode())
