"""A route: the ordered components one task runs through, with all that is needed to run and to judge it.

The paper's "path"; the name differs because `Path` is `pathlib`'s.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from models.component import ComponentRecord
from models.errors import InvalidRoute
from models.names import ComponentId, GoldenId, LoweredId, RouteId, SubgraphId, TaskName
from models.network import NetworkShape, flops
from models.precision import Precision
from models.preprocess import Preprocessing

StageKind = Literal["embed", "block", "head"]
Scalar = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Stage:
    """One subgraph of a route with the components whose weights it reads, in order.

    A route is one `embed` stage (patch embedding and position embedding), any number of `block` stages
    (a block, with the adapter before it if there is one) and one `head` stage (final norm and head).
    """

    kind: StageKind
    subgraph: SubgraphId
    components: tuple[ComponentRecord, ...]


@dataclass(frozen=True, slots=True)
class LoweredStage:
    """One subgraph of a variant; it reads the components' own files for what was not lowered."""

    subgraph: SubgraphId  # the stage's float32 one where it was left as it is
    weights: tuple[LoweredId, ...] = ()  # lowered weights that it reads


@dataclass(frozen=True, slots=True)
class Variant:
    """A route in a lower precision: another subgraph for some stages, and what that costs in accuracy.

    Both accuracies are of the same images on a CPU, by the very subgraphs that are served.
    """

    stages: tuple[LoweredStage, ...]  # one for each of the route's, in order
    golden: GoldenId  # the route's samples with the logits of these subgraphs
    validation_accuracy: float  # 0 to 1
    float32_accuracy: float
    validation_images: int

    @property
    def points_lost(self) -> float:
        """Return what the precision costs in points of accuracy; below 0 where it is the better one."""
        return 100 * (self.float32_accuracy - self.validation_accuracy)


@dataclass(frozen=True, slots=True)
class Quality:
    """What was measured when the route was published. Accuracies are 0 to 1."""

    validation_accuracy: float
    validation_images: int
    score: float  # validation accuracy after the size and compute factors
    test_accuracy: float | None = None  # None where the task has no test images
    test_images: int = 0
    expected_accuracy: float | None = None  # validation accuracy less what choosing on those images flatters


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a route comes from."""

    parent: RouteId | None  # None for the root
    mutations: tuple[str, ...]  # what the evolution changed on the way from the parent, in order
    iteration: int  # of the task, from 1; 0 for the root
    candidate: str  # its name in the journal
    trained_images: int  # images that the whole iteration trained on, all candidates together
    config: Mapping[str, Scalar] = field(default_factory=dict)  # the iteration's settings, resolved

    @property
    def searched_as(self) -> TaskName:
        """What the task was called then, and is called in the journal; "" for the root."""
        return TaskName(self.candidate.partition("/")[0])


@dataclass(frozen=True, slots=True)
class Route:
    """The components of one task, in order. Immutable; its id is the sha256 of its record in the store."""

    task: TaskName | None  # None for the root alone
    stages: tuple[Stage, ...]
    network: NetworkShape  # of the root it grew from
    image_size: int  # pixels, square
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    hparams: Mapping[str, Scalar]
    quality: Quality | None  # None for the root alone
    lineage: Lineage
    golden: GoldenId | None  # samples and the logits they must give; None for the root alone
    private: bool = False
    variants: Mapping[Precision, Variant] = field(default_factory=dict)  # beside float32
    format_version: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "format_version", 2 if self.variants else 1)  # older software would not keep variants
        owner = f"task {self.task!r}" if self.task else "root"
        kinds = [stage.kind for stage in self.stages]
        if len(kinds) < 2 or kinds != ["embed", *["block"] * (len(kinds) - 2), "head"]:
            raise InvalidRoute(f"{owner}: stages must be embed, any number of block, head; got {kinds}")
        repeated = sorted(label for label, times in Counter(self.labels).items() if times > 1)
        if repeated:
            raise InvalidRoute(f"{owner}: labels repeat: {repeated[:10]}; each class needs a name of its own")
        for precision, variant in self.variants.items():
            if len(variant.stages) != len(self.stages):
                raise InvalidRoute(
                    f"{owner}: its {precision} variant has {len(variant.stages)} stages, the route {len(self.stages)}"
                )

    def lowered_stages(self, precision: Precision | None) -> tuple[LoweredStage, ...]:
        """Return the stages as they run in a precision, in float32 where there is no such variant."""
        variant = self.variants.get(precision) if precision else None
        return variant.stages if variant else tuple(LoweredStage(stage.subgraph) for stage in self.stages)

    @property
    def components(self) -> tuple[ComponentRecord, ...]:
        return tuple(component for stage in self.stages for component in stage.components)

    @property
    def component_ids(self) -> frozenset[ComponentId]:
        return frozenset(component.id for component in self.components)

    @property
    def parameters(self) -> int:
        """Weights that a request of this task runs through."""
        return sum(component.parameters for component in self.components)

    @property
    def depth(self) -> int:
        return len(self.stages) - 2

    @property
    def flops(self) -> int:
        """Floating-point operations of one image, see `models.network.flops`."""
        return flops(
            self.network,
            image_size=self.image_size,
            adapter_dims=adapter_dims(self.components, self.network.embed_dim),
            num_classes=len(self.labels),
        )


def adapter_dims(components: Iterable[ComponentRecord], embed_dim: int) -> tuple[int | None, ...]:
    """Return for each block the inner width of the adapter before it, None where there is none."""
    dims: list[int | None] = []
    pending: int | None = None
    for component in components:
        if component.kind == "adapter":  # layer norm 2 D, down D w + w, up w D + D
            pending = (component.parameters - 3 * embed_dim) // (2 * embed_dim + 1)
        elif component.kind == "block":
            dims.append(pending)
            pending = None
    return tuple(dims)


def component_usage(routes: Iterable[Route]) -> Counter[ComponentId]:
    """Return for each component how many of the routes use it."""
    return Counter(component for route in routes for component in route.component_ids)


def accounted_parameters(components: Iterable[ComponentRecord], others: Mapping[ComponentId, int]) -> float:
    """Return the parameters that a task answers for: each component's size over the number of tasks using it.

    The root's use does not count (µ2Net, section 3.3).

    Args:
        components: those of the task in question.
        others: how many other tasks use a component, see `component_usage`.
    """
    return sum(component.parameters / (1 + others.get(component.id, 0)) for component in components)
