"""What README and docs/ say was measured is what the result files say; the bars follow from the raw figures."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.evolve import clones, search
from benchmarks.results import FOLDER, at_least, at_most
from benchmarks.serving.bars import bars
from benchmarks.tables import pages, with_tables
from evolve import products
from evolve.config import EvolveConfig, load_config


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_pages_have_the_measured_figures(page: Path) -> None:
    text = page.read_text()
    assert with_tables(text) == text, "the tables are old: run 'uv run python -m benchmarks.tables'"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_a_bar_without_a_value_is_not_met(path: Path) -> None:
    assert not [bar for bar in json.loads(path.read_text())["bars"] if bar["value"] is None and bar["met"]]


def test_bars_are_met_up_to_their_limit() -> None:
    assert at_most("a-1", 1.1, 1.1).met
    assert not at_most("a-1", 1.2, 1.1).met
    assert at_least("a-2", 2.0, 2.0).met
    assert not at_least("a-2", None, 2.0).met


@pytest.mark.parametrize(
    ("info", "faster"),
    [
        ("GenuineIntel avx512f avx512_bf16 amx_bf16", True),
        ("AuthenticAMD avx512f avx512_bf16", True),
        ("GenuineIntel avx512f avx512_bf16", False),
        ("AuthenticAMD avx2", False),
    ],
)
def test_bfloat16_is_multiplied_where_that_is_faster(
    info: str, faster: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "CPU_INFO", tmp_path / "cpuinfo")
    products.CPU_INFO.write_text(info)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert clones.multiplies_bf16_faster() == faster


def test_serving_compares_with_the_best_peer() -> None:
    def windows(**throughput: float) -> dict[str, list[dict[str, float]]]:
        return {name: [{"throughput": value}] for name, value in throughput.items()}

    speeds = windows(ours=30, bentoml=10, litserve=25, ray=20)
    found = {bar.bar: bar for bar in bars({"fixed-20": {"random": speeds, "many": speeds}})}
    assert (found["serving-2"].value, found["serving-2"].met) == (1.2, True)
    assert (found["serving-5"].value, found["serving-5"].met) == (1.2, False)
    assert found["serving-3"].value is None


def test_servings_last_bars_are_of_a_gpu() -> None:
    gpu = {"nodes_on_cpu": 0, "one_task": 1000.0, "mixed": 600.0, "memory_mib": {"5": 1000, "50": 1040}}
    found = [(bar.bar, bar.value, bar.met) for bar in bars({"gpu": gpu})][-3:]
    assert found == [("serving-11", 0, True), ("serving-12", 0.6, False), ("serving-13", 1.04, True)]


def test_the_preset_for_few_images_is_what_was_measured() -> None:
    sizes = ("image_size", "min_image_size", "max_image_size", "depth")  # left to the root
    ours = {name: getattr(EvolveConfig(), name) for name in (*sizes, "rank_images")}  # the last is of other ways
    measured = replace(search.WAYS[search.ALL_THREE], **ours)
    assert load_config(None, preset="few-images") == measured


def test_a_search_that_never_reached_the_score_is_no_gain() -> None:
    def found(*points: tuple[int, float]) -> dict[str, list[tuple[int, float]]]:
        return {"best_score_after": list(points)}

    plain = found((100, 0.5), (200, 0.9), (300, 0.9))
    searches = {
        ("sign_digits", "plain", 0): plain,
        ("sign_digits", "all", 0): found((50, 0.4), (80, 0.95), (400, 0.96)),
        ("sign_digits", "plain", 1): found((600, 0.9)),
        ("sign_digits", "all", 1): found((240, 0.9)),
        ("bangla", "plain", 0): plain,
        ("bangla", "all", 0): found((50, 0.4), (120, 0.8)),
        ("mnist", "plain", 0): plain,
        ("mnist", "all", 0): found((50, 0.4), (500, 0.8)),
    }
    raw = {search.Search(*one).key: points for one, points in searches.items()}
    assert search.task_ratios(raw, "all", [0]) == {"sign_digits": 0.4, "bangla": 1.5, "mnist": 2.5}
    assert search.task_ratios(raw, "all", [0, 1]) == {"sign_digits": 320 / 800}  # what was not measured is no gain
