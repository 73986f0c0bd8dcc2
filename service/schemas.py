"""The answers of the HTTP interface as types: what clients may rely on, and what /openapi.json says."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, Field

from models.route import Scalar


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str = Field(description="urn:mu2net: and a short name of the kind of error, for programs")
    title: str
    status: int
    detail: str = Field(description="what happened, the value, what is allowed, what to do next")
    error: str = Field(description="the same, where clients of the Open Inference Protocol look for it")


class Prediction(BaseModel):
    label: str
    probability: float = Field(description="0 to 1; over all classes of the task they sum to 1")


class ImageResult(BaseModel):
    predictions: list[Prediction] = Field(description="the most probable classes, best first")
    logits: list[float] | None = Field(None, description="of all classes in the order of the task's labels; ?logits=1")


class Classification(BaseModel):
    """One task's answer."""

    task: str
    release: int = Field(description="number of the release that answered")
    route: str = Field(description="sha256 of the route's record in the store")
    results: list[ImageResult] = Field(description="one for each image, in the order sent")


class ManyClassifications(BaseModel):
    """Several tasks' answers to the same images, all of one release."""

    release: int
    answers: list[Classification] = Field(description="one for each task, in the order asked; of `all` by name")


class QualityView(BaseModel):
    validation_accuracy: float = Field(description="0 to 1")
    validation_images: int
    score: float = Field(description="validation accuracy after the size and compute factors")
    test_accuracy: float | None
    test_images: int


class TaskSummary(BaseModel):
    task: str
    release: int
    route: str
    is_private: bool = Field(description="only those who may know of it are told")
    num_classes: int
    image_size: int = Field(description="pixels, square; images of any size may be sent")
    quality: QualityView | None
    parameters: int = Field(description="weights that a request runs through")
    parameters_added: int = Field(description="of these, weights that no other task and not the root uses")
    accounted_parameters: float = Field(description="each component's weights over the number of tasks using it")
    flops: int = Field(description="floating-point operations of one image; a multiply-add counts as two")
    root_flops: int = Field(description="the same for the root")


class TaskList(BaseModel):
    release: int
    tasks: list[TaskSummary]


class ComponentView(BaseModel):
    kind: str
    id: str
    parameters: int
    of_root: bool = Field(description="it is the pretrained root's own")
    shared_with: list[str] = Field(description="other tasks of the release that use it")


class StageView(BaseModel):
    kind: str
    subgraph: str
    components: list[ComponentView]


class LineageView(BaseModel):
    parent: str | None = Field(description="route it grew from")
    mutations: list[str]
    iteration: int
    candidate: str
    trained_images: int


class VariantView(BaseModel):
    validation_accuracy: float
    float32_accuracy: float = Field(description="of the same images")
    validation_images: int
    points_lost: float = Field(description="of accuracy, to this precision")


class TaskDetail(TaskSummary):
    labels: list[str]
    precision: str = Field(description="in which this server answers: float32, int8 or float16")
    variants: Mapping[str, VariantView] = Field(description="precisions that the route has beside float32")
    hparams: Mapping[str, Scalar]
    lineage: LineageView
    stages: list[StageView]


class ReleaseSummary(BaseModel):
    release: int
    parent: int | None
    reason: str | None = Field(description="what it changed; null for who may not know of private tasks")
    created_at: str
    tasks: int | None = Field(description="how many; null likewise")


class ReloadView(BaseModel):
    """What the last reload of this server took."""

    release: int
    taken_up_at: str
    seconds: float
    bytes_read: int | None = Field(
        default=None, description="of the store; null, as all below, for callers who may not see every task"
    )
    subgraphs_added: int | None = None
    subgraphs_reused: int | None = None
    subgraphs_freed: int | None = None
    memory_before: int | None = Field(
        default=None, description="resident bytes of the process; null also where the system does not say"
    )
    memory_after: int | None = None


class FailureView(BaseModel):
    release: int | None = Field(description="null where the store could not be read at all")
    kind: str = Field(description="short name of the kind of error, for programs")
    error: str | None = Field(description="null for who may not know of private tasks: the server's log has it")
    attempts: int
    last_attempt_at: str
    next_attempt_in_s: float


class Pointer(BaseModel):
    """What the store asks for after a change of it, and what this server answers from meanwhile."""

    active: int
    held: bool
    pending: list[int]
    serving: int | None


class Readiness(BaseModel):
    """The body of /readyz where a release answers."""

    release: int = Field(description="the release this process answers from")
    active: int | None = Field(description="the release the store asks for, when it was last read")
    skewed: bool = Field(description="these differ: a load is under way, or has failed")
    failure: FailureView | None = Field(description="why it has failed")


class DifferenceView(BaseModel):
    """A task that two releases have not alike; null is what belongs to a release that lacks it."""

    task: str
    what: Literal["added", "removed", "changed"]
    route_before: str | None
    route_after: str | None
    validation_before: float | None = Field(description="accuracy, 0 to 1; null also where it was never measured")
    validation_after: float | None
    is_private: bool = Field(description="in one of the releases at least")
    new_parameters: int = Field(description="weights that no route of the release before has")


class ReleaseDiff(BaseModel):
    before: int
    after: int
    changes: list[DifferenceView] = Field(description="by task; tasks that both have alike are left out")


class EngineView(BaseModel):
    provider: str = Field(description="ONNX Runtime's execution provider")
    threads: int
    onnxruntime: str
    precision: str = Field(description="in which routes run that have it; others in float32")


class ReleaseList(BaseModel):
    serving: int | None = Field(description="the release this server answers from")
    active: int | None = Field(description="the release the store asks for; null where it cannot be read")
    held: bool | None = Field(description="a person chose the active release, and publishing leaves it alone")
    pending: list[int] = Field(description="published while held, oldest first; a resume makes their changes active")
    resident: list[int] = Field(description="releases that a request may ask for with MU2NET-Release, the live first")
    last_reload: ReloadView | None
    failure: FailureView | None = Field(description="why the active release is not the one serving")
    engine: EngineView
    releases: list[ReleaseSummary] = Field(description="the newest of the store, newest first")


class IndexRequest(BaseModel):
    """What the Open Inference Protocol asks of the index of models."""

    ready: bool = Field(default=False, description="list only models that are ready, which all are")


class JobView(BaseModel):
    """A job: a task that is added or evolved further."""

    id: str
    task: str
    kind: str = Field(description="add or iterate")
    state: str = Field(description="queued, running, done, failed or cancelled")
    phase: str = Field(description="what is being done, for people")
    generation: int = Field(description="generations that are done")
    generations: int | None = Field(description="null where a budget of time decides")
    candidates: int = Field(description="candidates that were trained")
    best_quality: float | None = Field(description="validation accuracy of the best candidate, 0 to 1")
    release: int | None = Field(description="the last release that the job published")
    seconds: float = Field(description="since a worker first took the job up")
    seconds_left: float | None = Field(description="an estimate; null where there is none")
    created: str
    key: str | None = Field(description="id of the API key that asked for it; null without, and for who adds no tasks")
    error: str | None = Field(description="why the job failed, and what to do")


class JobAnswer(BaseModel):
    job: JobView


class JobList(BaseModel):
    jobs: list[JobView] = Field(description="newest first")


class Removed(BaseModel):
    """A task was retired."""

    task: str
    release: int = Field(description="the release without it")
    uploads_deleted: int
    cancelled: list[str] = Field(description="ids of the task's jobs that were stopped")
