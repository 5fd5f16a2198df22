"""Every number of every fixture: computed by the authors' code, by ours, and compared.

`check_<paper>.py` holds CHECKS, layout -> function of a fixture, and LATER, layout -> what it waits
for. A check compares every expected array and reads every number of the JSON. `test_<paper>.py`
takes `test_file` from here, so that each paper's files can be checked by a process of their own.
"""
import importlib

import pytest

from tests.golden.reader import Fixture


def test_file(golden_file, request):
    fixture = Fixture(golden_file)
    module = importlib.import_module(f"tests.golden.check_{fixture.paper}")
    if waits_for := module.LATER.get(fixture.layout):
        request.applymarker(pytest.mark.xfail(strict=True, reason=f"waits for {waits_for}"))
    module.CHECKS[fixture.layout](fixture)
    assert not fixture.unread(), f"no check reads {', '.join(fixture.unread())}"
