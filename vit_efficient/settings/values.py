"""Values by annotation: what a text on the command line means, what a value may be, how to say so.

Config keys, the words of a config file and the flags of a job are all parameters of functions, so
one reading of their annotations serves the three: `bool`, `int`, `float`, `str`, `Literal[...]`,
`tuple[...]`, unions such as `X | None`, and any of them in `Annotated[..., Range]`. A group of a
config is the keyword-only arguments of one function, so its schema is that function's signature:

    def make_optimizer(length, no_decay, *, lr: Positive, schedule: Literal["cosine", "official"])
    parse("1e-3", Positive)      # 0.001, as on the command line
    check(-1, Positive)          # ValueError: must be a finite number above 0

The ranges come first, then reading and checking, then the nearest name for a wrong one.
"""
import ast
from collections.abc import Callable, Iterable, Mapping
import difflib
from functools import partial
import inspect
import math
import types
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin


class Range(NamedTuple):
    """From `low` to `high`; `above` leaves out `low` itself, `below` leaves out `high`."""
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        """True where `value` is finite and inside."""
        return (math.isfinite(value)
                and (self.low < value if self.above else self.low <= value)
                and (value < self.high if self.below else value <= self.high))

    def __str__(self) -> str:
        parts = []
        if self.low > -math.inf:
            parts.append(f"{'above' if self.above else 'at least'} {self.low:g}")
        if self.high < math.inf:
            parts.append(f"{'below' if self.below else 'at most'} {self.high:g}")
        return " and ".join(parts) or "finite"


Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
# a probability of dropping: 1 would drop everything
Rate = Annotated[float, Range(0, 1, below=True)]
Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]


PLAIN = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text",
         types.NoneType: "None"}


def keywords(function: Callable) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of `function`; what a `partial` binds is their default."""
    bound = function.keywords if isinstance(function, partial) else {}
    function = function.func if isinstance(function, partial) else function
    parameters = inspect.signature(function, eval_str=True).parameters
    return {name: p.replace(default=bound.get(name, p.default))
            for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


def parse(text: str, annotation: Any) -> Any:
    """The value that `text` means under `annotation`; ValueError says what is allowed.

    `None`, `true`, `false` mean themselves, a tuple is written `0.08,1` or `(0.08, 1)`.
    """
    for option in _options(annotation):
        try:
            return check(_read(text, option), annotation)
        except ValueError:
            continue
    raise ValueError(_must_be(text, annotation))


def check(value: Any, annotation: Any) -> Any:
    """`value` as `annotation` asks for it; ValueError says what is allowed.

    An int becomes a float and a list a tuple where that is asked for. No other type changes: a bool
    is no number, a text is never read. Numbers are finite.
    """
    try:
        return _convert(value, annotation)
    except (ValueError, OverflowError):
        raise ValueError(_must_be(value, annotation)) from None


def allowed(annotation: Any) -> str:
    """What `annotation` allows, in words: "a finite number above 0 or None"."""
    kind, arguments = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        return " ".join([allowed(arguments[0]), *map(str, arguments[1:])])
    if kind is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if kind is tuple and arguments[-1] is Ellipsis:
        return f"a tuple of any length, each {allowed(arguments[0])}"
    if kind is tuple:
        return f"a tuple of {len(arguments)}: " + ", ".join(map(allowed, arguments))
    if kind in (Union, types.UnionType):
        return " or ".join(map(allowed, arguments))
    if annotation not in PLAIN:
        raise TypeError(f"a config cannot hold the type {annotation}; there are {list(PLAIN)}")
    return PLAIN[annotation]


def choices(annotation: Any) -> list:
    """What the `Literal`s in `annotation` list."""
    return [choice for option in _options(annotation) if get_origin(option) is Literal
            for choice in get_args(option)]


def closest(word: str, names: Iterable[str]) -> str | None:
    """The name most like `word`: by its last part (`lr` is near `optim.lr`), then as a whole."""
    last = lambda name: name.lower().rpartition(".")[2]
    alike = lambda name: difflib.SequenceMatcher(None, word.lower(), name.lower()).ratio()
    names, group = list(names), word.rpartition(".")[0]
    ends = difflib.get_close_matches(last(word), sorted({last(name) for name in names}), 1)
    near = [name for name in names if last(name) in ends]
    if not near and not any(group and name.startswith(f"{group}.") for name in names):
        near = [name for name in names if alike(name) >= 0.6]
    return max(near, key=alike, default=None)


def hint(word: str, names: Iterable[str], prefix: str = "") -> str:
    """`, did you mean NAME?` for the closest of `names`, empty where none is near."""
    near = closest(word, names)
    return f", did you mean {prefix}{near}?" if near else ""


def nearest(word: str, names: Iterable[str]) -> str:
    """What to say of a wrong name: the closest right one, and all of them where they fit a line."""
    names = sorted(names)
    near, listed = closest(word, names), ", ".join(names) or "none"
    meant = [f"did you mean {near}?"] if near else []
    return " ".join(meant + ([f"allowed: {listed}"] if not near or len(listed) < 200 else []))


def member(key: str, name: str, table: Mapping[str, Any]) -> Any:
    """`table[name]`; ValueError with the nearest name where the value of `key` is none of them."""
    if name not in table:
        raise ValueError(f"{key} = {name}: {nearest(name, table)}")
    return table[name]


def _must_be(value: Any, annotation: Any) -> str:
    near = hint(value, map(str, choices(annotation))) if isinstance(value, str) else ""
    return f"must be {allowed(annotation)}{near}"


def _options(annotation: Any) -> list:
    """The members of a union or the one type itself; `None` first, `str` last, as it reads all."""
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        options = [option for member in get_args(annotation) for option in _options(member)]
        return sorted(options, key=lambda option: (option is str) - (option is types.NoneType))
    return [annotation]


def _read(text: str, option: Any) -> Any:
    """The value that `text` spells for one type, unchecked; ValueError where it spells none."""
    kind, arguments = get_origin(option), get_args(option)
    if kind is tuple:
        if text.startswith(("(", "[")):
            try:
                return ast.literal_eval(text)
            except (TypeError, SyntaxError, MemoryError, RecursionError) as error:
                raise ValueError(text) from error
        elements = arguments[:-1] if arguments[-1] is Ellipsis else arguments
        return tuple(parse(part.strip(), elements[min(i, len(elements) - 1)])
                     for i, part in enumerate(text.split(",")))
    if kind is Literal:
        spelled = {str(choice): choice for choice in arguments}
    elif option in (bool, types.NoneType):
        values = (True, False) if option is bool else (None,)
        spelled = {spell(str(value)): value for value in values for spell in (str, str.lower)}
    else:
        allowed(option)                                 # a type that no config holds: TypeError
        return option(text)
    if text not in spelled:
        raise ValueError(text)
    return spelled[text]


def _convert(value: Any, annotation: Any) -> Any:
    """`check` with errors that say nothing."""
    kind, arguments = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        value = _convert(value, arguments[0])
        if all(limit.holds(value) for limit in arguments[1:] if isinstance(limit, Range)):
            return value
    elif kind is Literal:
        for choice in arguments:
            if type(value) is type(choice) and value == choice:     # True is not 1 here
                return choice
    elif kind in (Union, types.UnionType):
        for member in arguments:
            try:
                return _convert(value, member)
            except ValueError:
                continue
    elif kind is tuple and isinstance(value, tuple | list):
        many = arguments[-1] is Ellipsis
        elements = arguments[:1] * len(value) if many else arguments
        return tuple(_convert(v, element) for v, element in zip(value, elements, strict=True))
    elif isinstance(value, bool) or annotation in (bool, types.NoneType):
        if type(value) is annotation:
            return value
    elif annotation is float and isinstance(value, int | float):
        if Range().holds(value):
            return float(value)
    elif annotation in (int, str) and isinstance(value, annotation):
        return annotation(value)
    raise ValueError(value)
