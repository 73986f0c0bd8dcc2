"""The quality of a live route on labelled images: accuracy, classes, confusion, calibration."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64

from evolve.onnx_route import OnnxRoute
from evolve.task import LabelledImages
from models.errors import InvalidConfig
from models.precision import Precision
from models.route import Route
from models.store import Store

BINS = 15  # of confidence, for the calibration error (Guo et al. 2017)
MAX_NAMED_CLASSES = 40  # in the confusion plot; beyond these the names would overlap


@dataclass(frozen=True, slots=True)
class ClassQuality:
    """One class. Precision and recall are 0 to 1, None where there is nothing to divide by."""

    label: str
    images: int
    recall: float | None
    precision: float | None
    most_confused_with: str | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a route is worth on a set of images. Shares are 0 to 1."""

    images: int
    accuracy: float
    standard_error: float
    top5_accuracy: float | None  # None with five classes or less
    calibration_error: float  # expected calibration error over `BINS` bins of confidence
    mean_confidence: float
    negative_log_likelihood: float
    classes: tuple[ClassQuality, ...]
    confusion: tuple[tuple[int, ...], ...]  # [true class][answered class]


def evaluate(store: Store, route: Route, images: LabelledImages, precision: Precision | None = None) -> Evaluation:
    """Run a route's subgraphs, as the service does, over labelled images whose labels are the route's.

    Raises:
        InvalidConfig: the route does not have that precision; None, float32, it always has.
    """
    if precision is not None and precision not in route.variants:
        has = ", ".join(["float32", *sorted(route.variants)])
        raise InvalidConfig(f"task {route.task!r} has no {precision}, only {has}: 'mu2net precision' adds it")
    logits = OnnxRoute(store, route.stages, route.lowered_stages(precision)).logits(images.pixels(route.image_size))
    return judge(logits, images.labels, route.labels)


def judge(
    logits: Float[np.ndarray, "images classes"], labels: Int64[np.ndarray, " images"], names: Sequence[str]
) -> Evaluation:
    """Return all figures from logits and the true classes."""
    count, num_classes = logits.shape
    answers = logits.argmax(axis=1)
    is_right = answers == labels
    log_shares = _log_softmax(logits.astype(np.float64))
    confidence = np.exp(log_shares.max(axis=1))
    confusion = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(confusion, (labels, answers), 1)
    accuracy = float(is_right.mean())
    top5 = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    return Evaluation(
        images=count,
        accuracy=accuracy,
        standard_error=(accuracy * (1 - accuracy) / count) ** 0.5,
        top5_accuracy=float((top5 == labels[:, None]).any(axis=1).mean()) if num_classes > 5 else None,
        calibration_error=calibration_error(confidence, is_right),
        mean_confidence=float(confidence.mean()),
        negative_log_likelihood=float(-log_shares[np.arange(count), labels].mean()),
        classes=tuple(_class_quality(confusion, index, names) for index in range(num_classes)),
        confusion=tuple(tuple(int(value) for value in row) for row in confusion),
    )


def calibration_error(confidence: np.ndarray, is_right: np.ndarray) -> float:
    """Return the expected calibration error: |accuracy - confidence| per bin of confidence, weighted by images."""
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    error = 0.0
    for index in np.unique(bins):
        inside = bins == index
        error += inside.mean() * abs(is_right[inside].mean() - confidence[inside].mean())
    return float(error)


def plot_confusion(evaluation: Evaluation, names: Sequence[str], path: Path) -> None:
    """Draw the confusion matrix, each row as shares of its true class; the suffix says the format."""
    from matplotlib.figure import Figure

    counts = np.array(evaluation.confusion, dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(4 + 0.25 * len(names), 14)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, ax=axes, label="share of the true class")
    axes.set(
        xlabel="answered", ylabel="true", title=f"accuracy {evaluation.accuracy:.3f} on {evaluation.images:,} images"
    )
    if len(names) <= MAX_NAMED_CLASSES:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    figure.savefig(path)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))  # type: ignore[no-any-return]


def _class_quality(confusion: np.ndarray, index: int, names: Sequence[str]) -> ClassQuality:
    images, answered, right = int(confusion[index].sum()), int(confusion[:, index].sum()), int(confusion[index, index])
    others = confusion[index].copy()
    others[index] = 0
    return ClassQuality(
        label=names[index],
        images=images,
        recall=right / images if images else None,
        precision=right / answered if answered else None,
        most_confused_with=names[int(others.argmax())] if others.any() else None,
    )
