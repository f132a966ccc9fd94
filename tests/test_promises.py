"""The table of hostile inputs is what jxent and its peers do."""

import re

import marks
import promises
import pytest
from compare import relaxed

TEXT = (marks.TABLES / promises.FILE).read_text("utf-8")


def seldom(peer: str) -> tuple[pytest.MarkDecorator, ...]:
    return () if peer.startswith("jxent") else (pytest.mark.deep,)


@pytest.mark.parametrize(
    "peer", [pytest.param(peer, marks=seldom(peer)) for peer in promises.installed()]
)
def test_hostile_inputs(peer, unhooked):
    head, _, *rows = marks.table(promises.FILE, "peers")
    said = {row[0]: row[head.index(peer)] for row in rows}
    with relaxed():
        found = {x.name: promises.cell(promises.PEERS[peer][1], x) for x in promises.INPUTS}
    assert found == said
    if peer.startswith("jxent"):
        assert not [cell for cell in found.values() if promises.WRONG in cell]


def test_measured_bounds():
    """Each share is one, of a regime that is measured."""
    _, _, *rows = marks.table(promises.FILE, "measured bounds")
    assert [row[0].split(", V")[0] for row in rows] == [
        name.split(", V")[0] for name in promises.REGIMES
    ]
    for row in rows:
        assert all(0 <= float(cell.split(", ")[-1]) <= 1 for cell in row[2:5])


def test_writing_keeps_the_rest():
    tables = dict.fromkeys(("measured bounds", "peers", "versions"), "x")
    once = marks.written(TEXT, tables)
    assert marks.written(once, tables) == once
    outside = re.compile(
        r"<!-- (?:measured bounds|peers|versions) -->\n.*?\n<!-- end -->", re.DOTALL
    )
    assert outside.sub("", once) == outside.sub("", TEXT)
    with pytest.raises(AssertionError, match="no marks for other"):
        marks.written(TEXT, {"other": "x"})
