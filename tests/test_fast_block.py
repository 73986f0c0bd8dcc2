"""A block with its training step written out computes what the plain block computes, forwards and backwards."""

import pytest
import torch

from evolve.fast_block import FastBlock
from models.vit import Block

DIM = 24

pytestmark = pytest.mark.usefixtures("library")


def block(*, is_own: bool) -> Block:
    torch.manual_seed(0)
    made = Block(DIM, 3, 4 * DIM)
    with torch.no_grad():
        for weight in made.parameters():
            weight.uniform_(-0.3, 0.5)  # also of the layer norms, whose scales would all be 1 and shifts 0
    return made.requires_grad_(is_own)


@pytest.mark.parametrize(("images", "tokens"), [(64, 17), (7, 5), (2, 197), (1, 1)])  # in eight pieces, or in one
@pytest.mark.parametrize(("is_own", "is_first"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("scale", [1.0, 1e-3])  # so small that the layer norms' epsilons count
def test_outputs_and_gradients_are_the_blocks(
    images: int, tokens: int, is_own: bool, is_first: bool, scale: float
) -> None:
    plain = block(is_own=is_own)
    with torch.no_grad():
        for weight in plain.attn.proj.parameters():
            weight.mul_(scale)
    values = (scale * torch.randn(images, tokens, DIM)).requires_grad_(not is_first)
    differentiable = [value for value in (values, *plain.parameters()) if value.requires_grad]
    incoming = torch.randn(images, DIM, tokens).transpose(1, 2)  # laid out in another order than it is taken in
    before = incoming.clone()
    wanted = plain(values)
    wanted_gradients = torch.autograd.grad(wanted, differentiable, incoming)
    answer = FastBlock(plain)(values)
    torch.testing.assert_close(answer, wanted, rtol=1e-4, atol=1e-5)
    gradients = torch.autograd.grad(answer, differentiable, incoming)
    for mine, theirs in zip(gradients, wanted_gradients, strict=True):
        assert (mine - theirs).norm() <= 1e-5 * max(1.0, theirs.norm())
    assert torch.equal(incoming, before)


@pytest.mark.parametrize(("is_own", "is_first"), [(True, True), (True, False), (False, False)])
def test_products_in_bfloat16_round_and_do_nothing_else(is_own: bool, is_first: bool) -> None:
    plain = block(is_own=is_own)
    values = torch.randn(8, 17, DIM).requires_grad_(not is_first)
    differentiable = [value for value in (values, *plain.parameters()) if value.requires_grad]
    incoming = torch.randn(8, 17, DIM)
    wanted = plain(values)
    wanted_gradients = torch.autograd.grad(wanted, differentiable, incoming)
    with torch.autocast("cpu", torch.bfloat16):
        answer = FastBlock(plain, bf16_products=True)(values)
    assert answer.dtype == torch.float32
    assert 1e-4 < (answer - wanted).norm() / wanted.norm() < 1e-2
    gradients = torch.autograd.grad(answer, differentiable, incoming)
    for mine, theirs in zip(gradients, wanted_gradients, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - theirs).norm() <= 2e-2 * theirs.norm()
    if is_own:  # a sum, of what nothing has rounded
        torch.testing.assert_close(gradients[-1], incoming.sum((0, 1)), rtol=1e-5, atol=1e-5)


def test_the_first_token_alone_is_computed_in_float32() -> None:
    plain, values = block(is_own=True), torch.randn(2, 5, DIM)
    with torch.autocast("cpu", torch.bfloat16):
        found = FastBlock(plain, bf16_products=True).first_token(values)
    torch.testing.assert_close(found, plain.first_token(values))


@pytest.mark.parametrize("bf16_products", [False, True])
@pytest.mark.parametrize("was_frozen", [False, True])
def test_the_weights_of_a_block_that_trains_are_those_of_each_step(was_frozen: bool, bf16_products: bool) -> None:
    plain = block(is_own=not was_frozen)
    fast, values = FastBlock(plain, bf16_products=bf16_products), torch.randn(2, 5, DIM)
    fast(values)
    plain.requires_grad_(True)
    with torch.no_grad():
        for weight in plain.parameters():
            weight.add_(0.1)
    tolerance = 0.05 if bf16_products else 1e-4
    torch.testing.assert_close(fast(values), plain(values), rtol=tolerance, atol=tolerance)


def test_names_and_weights_are_the_blocks() -> None:
    plain = block(is_own=True)
    assert list(FastBlock(plain).state_dict()) == list(plain.state_dict())
    assert list(FastBlock(plain).parameters()) == list(plain.parameters())
