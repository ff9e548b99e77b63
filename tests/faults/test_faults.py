"""Whatever a server does: the right bytes, or one error that names the address and the offset, in time."""

from __future__ import annotations

import pytest
from faults.cases import POSITIONS
from faults.play import cases_of, kits, play


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("kit", kits())
def test_faults(kit, position):
    cases = [case for case in cases_of(kit) if case.position == position]
    assert cases
    outcomes = play(cases)
    wrong = [
        f"{outcome.case} (after {outcome.seconds:.1f} s): {outcome.wrong}" for outcome in outcomes if outcome.wrong
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("kit", kits())
def test_every_fault_strikes_everywhere(kit):
    cases = cases_of(kit)
    assert len({str(case) for case in cases}) == len(cases)
    assert {(case.fault, case.position) for case in cases} == {
        (case.fault, position) for case in cases for position in POSITIONS
    }
