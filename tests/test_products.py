"""Products of matrices are the same by either library, and each is taken where it is the faster."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from evolve import products
from evolve.products import PIECE_ROWS, add_product, product, product_over_rows

ZEN5 = "vendor_id : AuthenticAMD\nflags : fpu avx2 avx512f avx512_bf16"
ZEN3 = "vendor_id : AuthenticAMD\nflags : fpu avx2"
XEON = "vendor_id : GenuineIntel\nflags : fpu avx2 avx512f avx512_bf16"


@pytest.fixture
def told_anew() -> Iterator[None]:
    products.prefers_onednn.cache_clear()
    yield
    products.prefers_onednn.cache_clear()


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("images", "tokens", "inputs", "outputs"), [(64, 17, 24, 72), (7, 5, 3, 2), (2, 3, 600, 500)])
def test_products_are_those_of_float64(images: int, tokens: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = torch.randn(images, tokens, inputs).to(dtype)
    matrix = torch.randn(outputs, inputs).to(dtype).t()  # as a linear layer has it
    bias, total = torch.randn(outputs), torch.randn(images, tokens, outputs)
    before = total.clone()
    exact = values.double() @ matrix.double()
    rtol, atol = (1e-2, 0.3) if dtype == torch.bfloat16 else (1e-5, 1e-4)
    for made, wanted in (
        (product(values, matrix), exact),
        (product(values, matrix.contiguous(), bias), exact + bias),
        (add_product(total, values, matrix, bias), exact + bias + total),
    ):
        assert made.dtype == torch.float32
        torch.testing.assert_close(made, wanted.float(), rtol=rtol, atol=atol)
    assert torch.equal(total, before)


@pytest.mark.usefixtures("library")
def test_products_over_rows_are_those_of_float64() -> None:
    left, right = torch.randn(9, 17, 6), torch.randn(9, 17, 4)
    exact = left.double().flatten(0, 1).t() @ right.double().flatten(0, 1)
    torch.testing.assert_close(product_over_rows(left, right), exact.float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("called", "by_mkl"), [(product, "bmm"), (add_product, "baddbmm_"), (product_over_rows, "mm")])
def test_the_library_is_the_one_that_is_named(library: str, called: Callable[..., object], by_mkl: str) -> None:
    values, matrix, bias = torch.randn(4, 5, 6), torch.randn(6, 7), torch.randn(7)
    total = values @ matrix
    arguments = {
        product: (values, matrix, bias),
        add_product: (total, values, matrix, bias),
        product_over_rows: (total, values),
    }
    with torch.profiler.profile() as profile:
        called(*arguments[called])
    names = {event.name for event in profile.events()}
    assert ("mkldnn::_linear_pointwise" in names) == (library == "onednn")
    assert (f"aten::{by_mkl}" in names) == (library == "mkl")


@pytest.mark.usefixtures("told_anew")
@pytest.mark.parametrize(("info", "prefers"), [(ZEN5, True), (ZEN3, False), (XEON, False), (None, False)])
def test_onednn_is_for_avx512_of_others_than_intel(
    info: str | None, prefers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cpuinfo"  # None: another system than Linux
    if info is not None:
        path.write_text(info)
    monkeypatch.setattr(products, "CPU_INFO", path)
    assert products.prefers_onednn() == prefers


def test_pieces_are_equal_and_whole_images() -> None:
    for images in (1, 7, 30, 64):
        for tokens in (5, 17, 50, 197):
            count = products._piece_count(images, tokens)
            assert images % count == 0
            assert count == 1 or images // count * tokens in PIECE_ROWS
    assert products._piece_count(64, 17) == 8
