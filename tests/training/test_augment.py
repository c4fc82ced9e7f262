import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from biggan.training.augment import NUMBERS, augment, cut_out, jitter_colour, translate

POLICY = ("colour", "translation", "cutout")
half = torch.full((1,), 0.5)


def images(count=4, side=16):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def numbers(count=4, seed=0):
    return torch.rand(count, NUMBERS, generator=torch.Generator().manual_seed(seed))


def test_the_middle_of_every_colour_range_is_the_image_itself():
    x = images(1)
    torch.testing.assert_close(jitter_colour(x, half, half, half), x)


def test_colour_does_what_it_says():
    x, zero = images(1), torch.zeros(1)
    torch.testing.assert_close(jitter_colour(x, zero, half, half), x - 0.5)
    grey = jitter_colour(x, half, zero, half)
    torch.testing.assert_close(grey, x.mean(1, keepdim=True).expand_as(x))
    flat = jitter_colour(x, half, half, zero)
    torch.testing.assert_close(flat - flat.mean(), (x - x.mean()) / 2)


@given(st.floats(0, 0.999), st.floats(0, 0.999))
@settings(max_examples=40, deadline=None)
def test_translation_moves_the_image_and_fills_with_zeros(across, down):
    side, most = 16, 2
    x = images(1, side)
    moved = translate(x, torch.tensor([across]), torch.tensor([down]))
    dx, dy = int(across * (2 * most + 1)) - most, int(down * (2 * most + 1)) - most
    expected = torch.zeros_like(x)
    for row in range(side):
        for column in range(side):
            if 0 <= row + dy < side and 0 <= column + dx < side:
                expected[:, :, row, column] = x[:, :, row + dy, column + dx]
    assert torch.equal(moved, expected)


@given(st.floats(0, 0.999), st.floats(0, 0.999))
@settings(max_examples=40, deadline=None)
def test_cutout_removes_one_square(across, down):
    hole = cut_out(torch.ones(1, 3, 16, 16), torch.tensor([across]), torch.tensor([down]))[0, 0] == 0
    rows, columns = (hole.any(dim).nonzero().flatten() for dim in (1, 0))
    assert torch.equal(hole, hole.any(1)[:, None] & hole.any(0)[None])
    centre = int(down * 16), int(across * 16)
    for span, middle in zip((rows, columns), centre, strict=True):
        assert span.tolist() == [i for i in range(middle - 4, middle + 4) if 0 <= i < 16]


@pytest.mark.parametrize("policy", [(), *[(name,) for name in POLICY], POLICY])
def test_an_image_is_changed_the_same_in_any_company(policy):
    """What happens to an image depends on its own numbers alone."""
    x, u = images(5), numbers(5)
    whole = augment(x, u, policy)
    parts = torch.cat([augment(x[i : i + 2], u[i : i + 2], policy) for i in (0, 2, 4)])
    torch.testing.assert_close(parts, whole)
    assert torch.equal(whole, x) == (policy == ())


@pytest.mark.parametrize("name", POLICY)
def test_gradients_are_those_of_finite_differences(name):
    x = images(2, 8).double().requires_grad_()
    u = numbers(2).double()
    assert torch.autograd.gradcheck(lambda t: augment(t, u, (name,)), x)


def test_two_numbers_never_share_their_meaning():
    """Leaving an augmentation out does not change what the others do."""
    x, u = images(3), numbers(3)
    composed = augment(augment(augment(x, u, ("colour",)), u, ("translation",)), u, ("cutout",))
    assert torch.equal(composed, augment(x, u, POLICY))
