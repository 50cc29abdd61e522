"""The same kernels on a card and on the PTX machine: results agree, by bits but where the docs say they need not."""

from __future__ import annotations

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
from card import missing

if missing():
    pytest.skip(missing(), allow_module_level=True)
from simt_compare import agree
from simt_kernels import PROGRAMS

from aristos import simt


@pytest.mark.parametrize(("name", "program", "rtol"), PROGRAMS, ids=[row[0] for row in PROGRAMS])
def test_card_and_machine_agree(card, name, program, rtol):
    agree(program, simt.Machine(arch=card.arch), card, rtol)
