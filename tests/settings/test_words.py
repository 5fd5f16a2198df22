"""Recipes: files by their name, and the words after the colon."""
from inspect import signature
from typing import Literal

from hypothesis import given, strategies as st
import pytest

from tests.settings.toys import problems
from vit_efficient.settings import words
from vit_efficient.settings.store import load
from vit_efficient.settings.values import Count
from vit_efficient.settings.words import find, read_words


def test_a_bare_name_is_looked_up_beside_the_package_and_then_inside(tmp_path, monkeypatch):
    beside, inside = tmp_path / "configs", tmp_path / "vit_efficient" / "configs"
    monkeypatch.setattr(words, "FOLDERS", (beside, inside))
    for folder in (beside, inside):
        folder.mkdir(parents=True)
    (inside / "asvit.py").write_text("")
    (inside / "_private.py").write_text("")
    assert find("asvit:digits,base") == (inside / "asvit.py", "digits,base")
    (beside / "asvit.py").write_text("")
    assert find("asvit") == (beside / "asvit.py", "")
    for name in ("asvitt", "asvitt:digits", "configs/asvit", "no/asvit.py", "asvit.py"):
        with pytest.raises(FileNotFoundError, match="no such config.*asvit"):
            find(name)
    with pytest.raises(ValueError, match="no words after the colon"):
        find("asvit:")


def test_a_path_with_another_colon(tmp_path):
    (tmp_path / "a:b").mkdir()
    path = tmp_path / "a:b" / "asvit.py"
    path.write_text("")
    assert find(str(path)) == (path, "")
    assert find(f"{path}:digits,arch=x.py") == (path, "digits,arch=x.py")


@pytest.mark.parametrize("text, said", [
    ("def get_config(:", "line 1: SyntaxError"),
    ("\n\nimport no_such_module", "line 3: ModuleNotFoundError"),
    ("def get_config():\n    return lr", "line 2: NameError: name 'lr' is not defined"),
    ("x = 1", "has no function get_config"),
    ("def get_config(*, path: str): ...", "TypeError: get_config() missing"),
    ("def get_config():\n    raise ValueError('not yet')", "asvit.py: not yet"),
    ("def get_config():\n    return None", "must return a ConfigDict, not None")])
def test_a_broken_file_is_named_with_its_line(tmp_path, text, said):
    (tmp_path / "asvit.py").write_text(text)
    with problems(str(tmp_path / "asvit.py"), said):
        load(str(tmp_path / "asvit.py"))


def get_config(variant: Literal["small", "base"] = "small",
               data: Literal["imagenet", "digits"] = "imagenet",
               schedule: Literal["off", "p18", "p37"] = "p37",
               coarse: Literal["off", "on"] = "off", *,
               arch: str | None = None, folder: str = "", folds: Count = 1, half: bool = False):
    ...


PLAIN = st.text(st.characters(exclude_characters=",="), min_size=1)


@given(st.fixed_dictionaries({}, optional={
    "variant": st.sampled_from(["small", "base"]), "data": st.sampled_from(["imagenet", "digits"]),
    "schedule": st.sampled_from(["p18", "p37"]), "folder": PLAIN, "folds": st.integers(1),
    "half": st.booleans()}), st.lists(st.integers(0, 99), max_size=8), st.randoms())
def test_words_and_settings_in_any_order_and_a_list_last(arguments, arch, random):
    pieces = [value if name in ("variant", "data", "schedule") and random.random() < 0.5 else
              f"{name}={value}" for name, value in arguments.items()]
    random.shuffle(pieces)
    if arch:
        pieces.append("arch=" + ",".join(map(str, arch)))
        arguments = arguments | {"arch": ",".join(map(str, arch))}
    assert read_words(",".join(pieces), get_config) == arguments


@given(st.text(st.sampled_from("smalbde,=pof378|/ ")) | st.text())
def test_any_words_are_read_or_refused(words):
    try:
        arguments = read_words(words, get_config)
    except ValueError:
        return
    assert set(arguments) <= set(signature(get_config).parameters)


@pytest.mark.parametrize("words, said", [
    ("smal", "no such word 'smal', did you mean small? allowed: arch=, base,"),
    ("xyz", "allowed: arch=, base, digits"),
    ("small,base", "base: variant is given twice, as small and base"),
    ("variant=small,base", "given twice"),
    ("small,small", "given twice"), ("arch=1,arch=2", "given twice"),
    ("off", "write schedule=off or coarse=off"),
    ("variant=bass", "variant=bass: must be one of small, base, did you mean base?"),
    ("folds=0", "folds=0: must be a whole number at least 1"),
    ("half=yes", "must be true or false"),
    ("arch=", "the value is empty"), ("small,,base", "no such word ''"),
    (",small", "no such word ''"), ("=", "no such word"),
    ("arhc=8,2", "did you mean arch=?"), ("folder=/data,digit", "did you mean digits?"),
    ("folder=/data,dat=digits", "'dat="),
    ("arch=8,2,3|4,1,digits", "holds a comma, so it comes last; put digits before it")])
def test_wrong_words(words, said):
    with problems(said):
        read_words(words, get_config)
