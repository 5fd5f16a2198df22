"""Values by annotation: reading, checking, and the nearest name."""
from functools import partial
import json
import math
from typing import Annotated, Any, Literal

from hypothesis import example, given, strategies as st
import pytest

from vit_efficient.settings.values import (
    Count,
    Fraction,
    NonNegative,
    Positive,
    Range,
    Rate,
    Whole,
    allowed,
    check,
    closest,
    keywords,
    nearest,
    parse,
)

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(min_size=1).filter(lambda text: text not in ("None", "none"))
TYPES = {                                                  # annotation -> its values
    int: st.integers(),
    float: FLOATS,
    bool: st.booleans(),
    str: st.text(),
    Positive: st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    Rate: st.floats(0, 1, exclude_max=True),
    Count: st.integers(1),
    Literal["small", "base", 3, None]: st.sampled_from(["small", "base", 3, None]),
    float | None: FLOATS | st.none(),
    str | None: TEXTS | st.none(),
    tuple[float, int]: st.tuples(FLOATS, st.integers()),
    tuple[str, ...]: st.lists(st.text()).map(tuple),
    Literal["off", "p18"] | tuple[tuple[NonNegative, Count, Count | None], ...]:
        st.sampled_from(["off", "p18"]) | st.lists(
            st.tuples(st.floats(0, 1e9), st.integers(1), st.integers(1) | st.none())).map(tuple),
}
VALUES = st.one_of([st.tuples(st.just(kind), values) for kind, values in TYPES.items()])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner))


def same(a: Any, b: Any) -> bool:
    return a == b and type(a) is type(b)


def tuples(value: Any) -> Any:
    return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value


@given(VALUES)
def test_the_text_of_a_value_reads_as_the_value(case):
    kind, value = case
    assert same(parse(str(value), kind), value)


@given(VALUES)
def test_a_value_survives_json(case):
    kind, value = case
    assert same(check(json.loads(json.dumps(value)), kind), value)


@given(st.sampled_from(list(TYPES)), ANYTHING)
def test_whatever_passes_is_stable(kind, value):
    try:
        passed = check(value, kind)
    except ValueError as error:
        assert str(error).startswith("must be ")
    else:
        assert same(check(passed, kind), passed) and passed == tuples(value)
        assert isinstance(passed, bool) == isinstance(value, bool)


@given(st.sampled_from([kind for kind in TYPES if kind is not str]), st.text())
@example(tuple[float, int], "({[]: 1}, 2)")
@example(tuple[float, int], "(" * 10_000)
@example(int, "9" * 10_000)
def test_any_text_reads_or_is_refused(kind, text):
    try:
        check(parse(text, kind), kind)
    except ValueError as error:
        assert str(error).startswith("must be ")


@pytest.mark.parametrize("text, kind, value", [
    ("1e-3", float, 0.001), ("7", float, 7.0), ("true", bool, True), ("False", bool, False),
    ("none", float | None, None),
    ("0.08,1", tuple[float, float], (0.08, 1.0)), ("(0.08, 1)", tuple[float, float], (0.08, 1.0)),
    ("[1, 2]", tuple[int, ...], (1, 2)), ("normalize", tuple[str, ...], ("normalize",)),
    ("8,2,3|4", str, "8,2,3|4"), ("None", str | None, None), ("None", tuple[str, ...] | None, None),
    ("3", int | str, 3),
    ("3", str | int, 3)])
def test_parse(text, kind, value):
    assert same(parse(text, kind), value)


@pytest.mark.parametrize("value, kind, expected", [
    (True, int, "a whole number"), (1, bool, "true or false"), (0, bool, "true or false"),
    ("1", int, "a whole number"),
    (True, float, "a finite number"), (math.nan, float, "a finite number"),
    (math.inf, Positive, "above 0"),
    (10**400, float, "a finite number"), (10**400, Count, "at least 1"),
    (1.0, int, "a whole number"),
    (0, Positive, "above 0"), (1, Rate, "at least 0 and below 1"), (-1, Whole, "at least 0"),
    (1.5, Fraction, "at most 1"),
    (None, float, "a finite number"), (1, str, "a text"),
    ("bass", Literal["base", "large"], "did you mean base?"),
    (True, Literal[1, 2], "one of 1, 2"),
    ((1.0,), tuple[float, float], "a tuple of 2: a finite number, a finite"),
    ((1.0, 2.0, 3.0), tuple[float, float], "a tuple of 2"),
    ((1, "a"), tuple[int, ...], "each a whole number"),
    ("ab", tuple[str, ...], "any length, each a text"),
    ({}, float | None, "a finite number or None")])
def test_check_refuses(value, kind, expected):
    with pytest.raises(ValueError, match="must be .*" + expected.replace("?", r"\?")):
        check(value, kind)


@pytest.mark.parametrize("text, kind", [
    ("nan", float), ("inf", float | None), ("1.0", int), ("yes", bool), ("1", bool), ("", int),
    ("0.1", tuple[float, float]),
    ("1,2,3", tuple[float, float]), ("(1", tuple[float, ...]),
    ("__import__('os')", tuple[int, ...]), ("Base", Literal["base"])])
def test_parse_refuses(text, kind):
    with pytest.raises(ValueError, match="must be"):
        parse(text, kind)


def test_a_type_that_no_config_holds_is_the_programmers_mistake():
    for use in (allowed, partial(parse, "1"), partial(check, 1)):
        with pytest.raises(TypeError, match="complex"):
            use(complex)


def test_keywords_are_what_stands_behind_the_star_and_a_partial_gives_defaults():
    def make(num_classes, image_size=224, dtype="float32", *, width: Count, depth: Count = 12):
        ...
    assert list(keywords(make)) == ["width", "depth"]
    assert keywords(make)["width"].default is keywords(make)["width"].empty
    tiny = keywords(partial(make, image_size=32, width=192))
    assert list(tiny) == ["width", "depth"] and tiny["width"].default == 192


def test_annotations_may_be_texts():
    def later(*, lr: "Positive" = 1.0):
        ...
    assert keywords(later)["lr"].annotation == Annotated[float, Range(0, above=True)]


@pytest.mark.parametrize("word, near", [
    ("lr", "optim.lr"), ("optim.lrr", "optim.lr"), ("loader.every", "log.every"),
    ("EPOCHS", "epochs"), ("epoch", "epochs"),
    ("optm.lr", "optim.lr"), ("dropout", None), ("", None)])
def test_closest(word, near):
    assert closest(word, ["epochs", "optim.lr", "optim.eps", "log.every"]) == near


def test_nearest_lists_all_names_where_none_is_near():
    assert nearest("smal", ["small", "base"]) == "did you mean small? allowed: base, small"
    assert nearest("x", []) == "allowed: none"
    many = [f"variant_{i}" for i in range(100)]
    assert nearest("variant_7", many) == "did you mean variant_7?"
    assert "variant_99" in nearest("x", many)
