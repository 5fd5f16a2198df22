"""As-ViT's strings: what they say, and what is refused."""
from hypothesis import given, strategies as st
import pytest

from vit_efficient.papers.asvit.topology import Topology, check_grid, parse

SEED = "8,2,3|4,1,2|4,1,4|4,1,6|32"
LARGE = "8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,180"


def four(low: int, high: int):
    return st.tuples(*[st.integers(low, high)] * 4)


@st.composite
def topologies(draw) -> Topology:
    kernels = (draw(st.integers(4, 12)), *draw(four(2, 6))[1:])
    units = draw(st.integers(1, 8))
    return Topology(kernels, draw(four(1, 8)), draw(four(1, 9)), draw(four(1, 12)), 8 * units,
                    draw(st.integers(units, 128)))


@given(topologies())
def test_a_string_says_all_of_a_topology(topology):
    assert parse(str(topology)) == topology
    assert str(parse(str(topology))) == str(topology)


def test_what_a_string_leaves_out():
    seed = parse(SEED)
    assert str(seed) == "8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,32"
    assert seed.depths == (1, 1, 1, 1) and seed.width == 32
    assert parse(SEED + ",40").width == 40


def test_widths_double_up_to_the_cap_and_heads_to_the_last_stage():
    large = parse(LARGE)
    assert large.widths == (180, 360, 720, 1024) and large.num_heads == (4, 8, 16, 32)
    assert parse(SEED).widths == (32, 64, 128, 256)


@pytest.mark.parametrize("arch, words", [
    ("8,2,3|4,1,2|4,1,4|4,1,6", "4 fields between bars, there must be 4 stages and a last"),
    (SEED + "|32", "6 fields"),
    ("", "1 fields"),
    ("8,2|4,1,2|4,1,4|4,1,6|32", "stage 1 is '8,2', it has 3 or 4 parts"),
    ("8,2,3|4,1,2,1,1|4,1,4|4,1,6|32", "stage 2 is '4,1,2,1,1', it has 3 or 4 parts"),
    (SEED + ",32,1", "the last field is '32,32,1', it has 1 or 2 parts"),
    ("8,2,3|4,1,2|4,1,4.5|4,1,6|32", "stage 3 is '4,1,4.5', its parts must be whole numbers"),
    ("8,2,3|4,1,2|4,1,4|4,0,6|32", "stage 4 is '4,0,6', .* of at least 1"),
    ("8,2,-3|4,1,2|4,1,4|4,1,6|32", "stage 1 is '8,2,-3'"),
    ("8,2,3|4, 1,2|4,1,4|4,1,6|32", "stage 2 is '4, 1,2'"),
    ("8,2,3|4,1,2|4,1,4|4,1,\u00b2|32", "stage 4 is"),
    ("8,2,3|4,1,2|4,1,4|4,1,6|", "the last field is ''"),
    (SEED + ",7.5", "the last field is '32,7.5'"),
    (SEED + ",0", "the last field is '32,0'"),
    ("8,2,3,5|4,1,2,2|4,1,4|4,1,6,2|32,180", "some stages have a depth L .* give all or none"),
    ("3,2,3|4,1,2|4,1,4|4,1,6|32", "K1 = 3, a kernel below the stride of 4 drops pixels"),
    ("8,2,3|4,1,2|1,1,4|4,1,6|32", "K3 = 1, a merging kernel is at least 2"),
    ("8,2,3|4,1,2|4,1,4|4,1,6|12", "H = 12, it must be a multiple of 8"),
    ("8,2,3|4,1,2|4,1,4|4,1,6|4", "H = 4, it must be a multiple of 8"),
    ("8,2,3|4,1,2|4,1,4|4,1,6|64,4", "stage 1 has 8 heads for 4 channels"),
    ("8,2,3|4,1,2|4,1,4|4,1,6|16384,2048", "stage 1 has 2048 heads for 1024 channels"),
])
def test_an_error_names_the_string_the_field_and_the_form(arch, words):
    with pytest.raises(ValueError, match=words) as caught:
        parse(arch)
    assert str(caught.value).startswith(f"model.arch = {arch}: ")
    assert "the form is K,S,E[,L]|K,S,E[,L]|K,S,E[,L]|K,S,E[,L]|H[,C]" in str(caught.value)


@pytest.mark.parametrize("splits, side, words", [
    ((2, 1, 1, 1), 100, "data.image_size = 100: .* multiple of 32, the nearest is 96"),
    ((2, 1, 1, 1), 8, "the nearest is 32"),
    ((3, 1, 1, 1), 224, r"stage 1 .* 56 x 56 at data.image_size = 224, a split of 3 .*"
                        r"allowed: \[1, 2, 4, 7, 8, 14, 28, 56\]"),
    ((2, 2, 2, 2), 224, r"model.arch = WORD: stage 4 has a grid of 7 x 7 .* allowed: \[1, 7\]"),
    ((8, 8, 8, 1), 64, "stage 3 has a grid of 4 x 4 .* a split of 8"),
])
def test_grids_that_do_not_divide(splits, side, words):
    with pytest.raises(ValueError, match=words):
        check_grid("WORD", splits, side)


@pytest.mark.parametrize("splits, side", [
    ((2, 1, 1, 1), 224), ((8, 4, 2, 1), 32), ((4, 4, 2, 7), 224)])
def test_grids_that_divide(splits, side):
    check_grid("WORD", splits, side)
