"""Which tokenization a step has; 300 epochs stand in the golden schedule."""
from types import SimpleNamespace

from hypothesis import given, strategies as st
import pytest

from vit_efficient.papers.asvit.models import asvit
from vit_efficient.papers.asvit.phases import SCHEDULES, progressive, tokenization
from vit_efficient.seams.phases import Length

MODEL = asvit(image_size=64, arch="8,2,2|2,1,2|2,1,2|2,1,2|16")
TEN = Length(100, 10, 30)              # 10 steps an epoch


def of_steps(phases) -> list[tuple[int, int, int]]:
    """(first step, stride, dilation) of every phase."""
    return [(first, *dict(phase.model).values()) for phase, first in phases.distinct().items()]


@pytest.mark.parametrize("name, epochs, firsts", [
    ("p18", 30, (0, 4, 7)), ("p37", 60, (0, 16, 28)),
    ("p56", 5, (0, 2, 4)), ("figure", 25, (0, 7, 11)),
    ("p18", 45, (0, 6, 11)),        # 10.5: half goes up
    ("p56", 15, (0, 6, 11)),
])
def test_fractions_become_whole_epochs(name, epochs, firsts):
    assert tokenization(epochs, name) == tuple(zip(firsts, (16, 8, 4), (None,) * 3))


@given(st.sampled_from(["p18", "p37", "p56", "figure"]), st.integers(10, 2000))
def test_boundaries_are_the_exact_fractions_rounded_half_up(name, epochs):
    exact = {"p18": (4, 7, 30), "p37": (8, 14, 30), "p56": (12, 21, 30), "figure": (20, 33, 75)}
    *parts, whole = exact[name]
    expected = [(2 * part * epochs + whole) // (2 * whole) for part in parts]
    assert [first for first, _, _ in tokenization(epochs, name)] == [0, *expected]


def test_every_switch_is_on_the_first_step_of_its_epoch():
    phases = progressive(TEN, MODEL, schedule="p37")
    assert of_steps(phases) == [(0, 16, 4), (80, 8, 2), (140, 4, 1)]
    assert phases.total == 300
    assert phases.phase_at(79) != phases.phase_at(80) == phases.phase_at(139)
    assert phases.position(80) == (8, 0, 1, 1)             # the examples go on as without phases


def test_without_phases_there_is_one_program():
    assert of_steps(progressive(TEN, MODEL, schedule="off")) == [(0, 4, 1)]


def test_a_list_of_ones_own():
    own = progressive(TEN, MODEL, schedule=((0, 16, 5), (1.5, 8, None), (20, 4, None)))
    assert of_steps(own) == [(0, 16, 5), (15, 8, 2), (200, 4, 1)]
    coarse = progressive(TEN, MODEL, schedule=((0, 4, 2), (3, 32, None)), coarse_end=True)
    assert of_steps(coarse) == [(0, 4, 2), (30, 32, 9)]


@pytest.mark.parametrize("schedule, words", [
    ("p38", "phases.schedule = p38: did you mean p37"),
    ("", "allowed: figure, off, p18, p37, p56, or"),
    ((), "must start at 0"),
    ((0, 4, None), "must be a name or"),
    (((0, 4),), "must be a name or"),
    (((0, "coarse", None),), "must be a name or"),
    (((1, 4, None),), "must start at 0"),
    (((0, 8, None), (0, 4, None)), "must start at 0, increase"),
    (((0, 16, None), (9, 8, None), (5, 4, None)), "increase"),
    (((0, 8, None), (30, 4, None)), "stay below the 30 epochs"),
    (((0, 8, None), (float("nan"), 4, None)), "increase"),
    (((0, 6, None), (1, 4, None)), "stride 6 must be a multiple of 4 that divides "
                                   r"data.image_size = 64; allowed: \[4, 8, 16, 32, 64\]"),
    (((0, 12, None), (1, 4, None)), "stride 12"),
    (((0, 2, None), (1, 4, None)), "stride 2"),
    (((0, 0, None), (1, 4, None)), "stride 0"),
    (((0, 8, 0), (1, 4, None)), "dilation 0 must be a whole number of at least 1, or None"),
    (((0, 8, 1.5), (1, 4, None)), "dilation 1.5"),
    (((0, 8, None),), "ends at stride 8; .* or set phases.coarse_end = True"),
    (((0, 8, None), (1, 4, 2)), "the official model .stride 4, dilation 1."),
])
def test_an_error_says_what_is_allowed(schedule, words):
    with pytest.raises(ValueError, match=words) as caught:
        progressive(TEN, MODEL, schedule=schedule)
    assert str(caught.value).startswith("phases.schedule = ")


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "off"])
def test_too_few_epochs(name):
    with pytest.raises(ValueError, match=f"{name}: 1 epochs are too few .* after epochs [01] and"):
        progressive(TEN._replace(epochs=1), MODEL, schedule=name)
    assert of_steps(progressive(TEN._replace(epochs=1), MODEL, schedule="off"))


def test_a_model_without_a_stride_is_refused():
    with pytest.raises(ValueError, match="phases.name = progressive: needs a model"):
        progressive(TEN, SimpleNamespace(knobs=("stride",)))
