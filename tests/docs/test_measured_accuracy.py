"""The table of hostile inputs is what jxent and its peers do."""

import re

import generated_tables
import measure_accuracy
import pytest
from assertions import relaxed

TEXT = (generated_tables.TABLES / measure_accuracy.FILE).read_text("utf-8")


def seldom(peer: str) -> tuple[pytest.MarkDecorator, ...]:
    return () if peer.startswith("jxent") else (pytest.mark.deep,)


@pytest.mark.parametrize(
    "peer", [pytest.param(peer, marks=seldom(peer)) for peer in measure_accuracy.installed()]
)
def test_hostile_inputs(peer, unhooked):
    head, _, *rows = generated_tables.table(measure_accuracy.FILE, "peers")
    said = {row[0]: row[head.index(peer)] for row in rows}
    with relaxed():
        found = {
            x.name: measure_accuracy.cell(measure_accuracy.PEERS[peer][1], x)
            for x in measure_accuracy.INPUTS
        }
    assert found == said
    if peer.startswith("jxent"):
        assert not [cell for cell in found.values() if measure_accuracy.WRONG in cell]


def test_measured_bounds():
    """Each share is one, of a regime that is measured."""
    _, _, *rows = generated_tables.table(measure_accuracy.FILE, "measured bounds")
    assert [row[0].split(", V")[0] for row in rows] == [
        name.split(", V")[0] for name in measure_accuracy.REGIMES
    ]
    for row in rows:
        assert all(0 <= float(cell.split(", ")[-1]) <= 1 for cell in row[2:5])


def test_writing_keeps_the_rest():
    tables = dict.fromkeys(("measured bounds", "peers", "versions"), "x")
    once = generated_tables.written(TEXT, tables)
    assert generated_tables.written(once, tables) == once
    outside = re.compile(
        r"<!-- (?:measured bounds|peers|versions) -->\n.*?\n<!-- end -->", re.DOTALL
    )
    assert outside.sub("", once) == outside.sub("", TEXT)
    with pytest.raises(AssertionError, match="no marks for other"):
        generated_tables.written(TEXT, {"other": "x"})
