"""The gradient check passes what keeps the promise, and nothing else."""

import jax
import mpmath
import numpy as np
import pytest

import jxent
from jxent._cli import gradcheck

pytestmark = pytest.mark.relaxed  # the plain loss is written as people write it


@pytest.mark.parametrize(
    "loss_rows", [gradcheck.jxent_rows, jxent.softmax_cross_entropy_with_integer_labels]
)
def test_both_rules_keep_the_promise(loss_rows):
    check = gradcheck.check_gradients(loss_rows=loss_rows)
    assert check.passed
    assert {(d.rows, d.quantity) for d in check.differences} == {
        (rows, quantity)
        for rows in ("ordinary", "confident")
        for quantity in ("loss", "label gradient", "other gradients")
    }


def test_plain_jax_loses_confident_rows():
    check = gradcheck.check_gradients(loss_rows=gradcheck.plain_rows)
    missed = {(d.rows, d.quantity) for d in check.differences if not d.within}
    assert missed == {("confident", "loss"), ("confident", "label gradient")}
    assert check.plain_false_zeros == gradcheck.ROWS
    assert not check.passed


@pytest.mark.parametrize("factor", [1 + 2e-5, -1.0, 0.0, np.nan])
def test_a_gradient_that_is_off_is_found(factor, monkeypatch):
    monkeypatch.setattr(gradcheck, "ROWS", 50)

    def off(z, labels):
        rows = gradcheck.jxent_rows(z, labels)
        return jax.lax.stop_gradient(rows * (1 - factor)) + rows * factor

    missed = [d for d in gradcheck.check_gradients(loss_rows=off).differences if not d.within]
    assert {d.quantity for d in missed} >= {"label gradient", "other gradients"}


def test_elsewhere_the_bounds_are_only_shown(monkeypatch):
    monkeypatch.setattr(gradcheck, "PROMISED_ON", "another device")
    check = gradcheck.check_gradients(loss_rows=gradcheck.plain_rows)
    assert check.passed and not all(d.within for d in check.differences)


def test_labels_lead_by_the_gaps_of_their_rows():
    for kind, gaps in gradcheck.GAPS.items():
        z, labels = gradcheck.logits_and_labels(7, 50, kind, seed=1)
        row = np.arange(7)
        others = z.copy()
        others[row, labels] = -np.inf
        lead = z[row, labels] - others.max(axis=-1)
        for i, gap in enumerate(gaps):
            own = lead[i :: len(gaps)]
            assert np.all(own < 4 if gap is None else own >= gap - 1e-4)
    assert set(gradcheck.ROW_KINDS) < set(gradcheck.GAPS)


@pytest.mark.parametrize("kind", gradcheck.GAPS)
def test_float64_values_are_exact(kind):
    z, labels = gradcheck.logits_and_labels(3, 7, kind, seed=1)
    got = gradcheck.float64_values(z, labels)
    with mpmath.workdps(60):
        for n, (row, y) in enumerate(zip(z.tolist(), labels.tolist(), strict=True)):
            e = [mpmath.exp(mpmath.mpf(v)) for v in row]
            loss = mpmath.log(sum(e)) - mpmath.mpf(row[y])
            p = [v / sum(e) for v in e]
            exact = [loss, p[y] - 1, *(v for i, v in enumerate(p) if i != y)]
            values = [got.loss[n], got.label_gradient[n], *got.other_gradients[n]]
            rounding = 64 * np.finfo(np.float64).eps  # of a gap near 40 in an exponent
            for ours, true in zip(values, exact, strict=True):
                assert abs(ours - true) <= rounding * abs(true)
