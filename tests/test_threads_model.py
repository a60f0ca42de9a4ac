"""No schedule breaks the thread protocol, as far as its model goes; every change of it is found."""

import pytest
from threads_model import MUTANTS, Broken, Setting, explore

GROUPS = {"meetings": 0, "private": False}  # of rows: threads claim work and never meet
SETTINGS = [
    Setting(),
    Setting(meetings=2, private=False),
    Setting(**GROUPS),
    Setting(helpers=2, calls=1),
    Setting(helpers=2, calls=1, windows=1, meetings=2),
    Setting(helpers=2, calls=1, private=False),
    Setting(helpers=2, calls=1, **GROUPS),
    Setting(leaders=2, calls=1, windows=1, **GROUPS),
    Setting(leaders=2, calls=1, windows=1),
    Setting(leaders=2, windows=1, private=False),
    Setting(leaders=2, windows=1, **GROUPS),
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_no_schedule_breaks_it(setting):
    assert explore(setting) > 300


@pytest.mark.parametrize("mutant", MUTANTS)
def test_every_change_is_found(mutant):
    with pytest.raises(Broken):
        for setting in SETTINGS:
            explore(setting, mutant)
