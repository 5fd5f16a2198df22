"""How a command line is split into flags."""
from hypothesis import given, strategies as st

from vit_efficient.main import FLAGS
from vit_efficient.settings.flags import split


def test_split():
    assert split(["--a=1=2", "--b", "c d", "--flag", "--x", "-1e-3", "--y", "-.5"], FLAGS) == {
        "a": "1=2", "b": "c d", "flag": None, "x": "-1e-3", "y": "-.5"}


@given(st.lists(st.text(st.sampled_from("-=.ab1 ")) | st.text()))
def test_any_words_are_split_or_refused(words):
    try:
        found = split(words, FLAGS)
    except ValueError as error:
        assert str(error)
    else:
        assert all(found.values()) or None in found.values()
