"""Notebook 06: every cell of its tables of differences is true, and of what every input gets."""

import inspect
import math
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from assertions import enable_x64
from sampling import only

import jxent

pytestmark = pytest.mark.relaxed

REFERENCE = Path(__file__).parents[2] / "notebooks" / "06_reference.py"
LINES = [line.removeprefix("# ") for line in REFERENCE.read_text("utf-8").splitlines()]


def _rows_after(head: str) -> list[list[str]]:
    """The cells of every table with this head, without it."""
    rows: list[list[str]] = []
    starts = [i for i, line in enumerate(LINES) if line.startswith(head)]
    assert starts
    for at in starts:
        for line in LINES[at + 2 :]:
            if not line.startswith("|"):
                break
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    assert len({len(row) for row in rows}) == 1, f"a row of '{head}' has too many or few cells"
    return rows


# --- a confident row


def _confident(classes: int) -> tuple[jax.Array, jax.Array]:
    return jnp.zeros((8, classes)).at[:, 0].set(40.0), jnp.zeros(8, jnp.int32)


@pytest.mark.parametrize("classes", [1000, 32768])
def test_the_confident_row(classes):
    cells = {row[0]: row[1:] for row in _rows_after("| float32 row |")}
    logits, labels = _confident(classes)
    exact = math.log1p((classes - 1) * math.exp(-40))

    def shown(x: Any) -> str:
        return f"{float(x):.6e}".replace("-", "−", 1) if x < 0 else f"{float(x):.6e}"

    assert cells[f"V = {classes}, loss"][0] == shown(exact)
    assert cells[f"V = {classes}, gradient of the label's logit"][0] == shown(-exact)
    for column, library in ((1, jxent), (2, optax)):
        fn = library.softmax_cross_entropy_with_integer_labels
        loss, grad = jax.jit(jax.value_and_grad(lambda z, fn=fn: fn(z, labels).sum()))(logits)
        loss, grad = float(loss) / 8, float(grad[0, 0])
        if library is optax:
            assert loss == grad == 0
            expected = ["0", "0"]
        else:
            assert loss == pytest.approx(exact, rel=1e-6, abs=0)
            assert grad == pytest.approx(-exact, rel=1e-6, abs=0)
            expected = [shown(exact), shown(-exact)]
        assert [
            cells[f"V = {classes}, loss"][column],
            cells[f"V = {classes}, gradient of the label's logit"][column],
        ] == expected


# --- every known difference: one claim for each cell that has something to say

Z = jnp.array([[2.0, 0.5, -1.0], [0.1, 0.2, 3.0]])
Y = jnp.array([0, 1])
T = jnp.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
OUTSIDE = jnp.array([[0.0, 1.0, -jnp.inf]])
INT = "softmax_cross_entropy_with_integer_labels"
CLAIMS: dict[tuple[str, str], Callable[[Any], None]] = {}
COLUMNS = {"optax": 1, "PyTorch": 2, "jxent": 3}
DIFFERENCES = _rows_after("| case | optax")


class Compiled:
    """optax.losses, each call compiled whole: step by step, every operation is compiled apart."""

    def __getattr__(self, name: str):
        fn = getattr(optax.losses, name)
        static = [option for option in ("axis",) if option in inspect.signature(fn).parameters]
        compiled = jax.jit(fn, static_argnames=static)
        setattr(self, name, compiled)
        return compiled


LIBRARIES = {"optax": Compiled(), "jxent": jxent}


def claim(case: str, *columns: str):
    def register(check):
        for column in columns:
            assert (case, column) not in CLAIMS
            CLAIMS[case, column] = check
        return check

    return register


def _cells() -> list[tuple[str, str]]:
    return [(row[0], c) for row in DIFFERENCES for c, at in COLUMNS.items() if row[at] != "—"]


def test_every_claim_is_made_in_the_table():
    assert set(CLAIMS) == set(_cells())


@pytest.mark.parametrize(
    ("case", "column"),
    only(lambda cell: cell[1] == "jxent", _cells()),
    ids=lambda x: x.replace("`", ""),
)
def test_difference(case, column):
    check = CLAIMS[case, column]
    if column == "PyTorch":
        with warnings.catch_warnings():
            # torch is not jxent's: what it says when it is imported is its own affair.
            warnings.simplefilter("ignore")
            library = pytest.importorskip("torch")
    else:
        library = LIBRARIES[column]
    check(library)


@cache
def _derivative(fn, argnum: int):
    return jax.jit(jax.grad(lambda *a, **options: jnp.sum(fn(*a, **options)), argnums=argnum))


def _grad(fn, *args, argnum: int = 0, **options):
    """The gradient of the sum of fn; everything is traced, so no value can be read."""
    return _derivative(fn, argnum)(*args, **options)


def _nan_row(x, row: int = 0) -> None:
    """NaN in this row, in no other."""
    nan = np.isnan(np.asarray(x)).reshape(len(x), -1).any(axis=-1)
    assert nan.tolist() == [i == row for i in range(len(x))]


def _same(x, expected) -> None:
    np.testing.assert_allclose(np.asarray(x), np.asarray(expected), rtol=1e-5, atol=1e-6)


def _t(torch, x, dtype=None):
    return torch.tensor(np.asarray(x), dtype=dtype)


def _ce(torch, z, t, **options):
    return torch.nn.functional.cross_entropy(_t(torch, z), _t(torch, t), **options)


def _bce(torch, x, y, **options):
    fn = torch.nn.functional.binary_cross_entropy_with_logits
    return fn(_t(torch, x), _t(torch, y), **options)


def _kl(torch, q, t, **options):
    return torch.nn.functional.kl_div(_t(torch, q), _t(torch, t), reduction="none", **options)


@claim("dtype of the loss", "optax", "jxent")
def _(m):
    labels, of = jax.ShapeDtypeStruct((2,), jnp.int32), partial(jax.ShapeDtypeStruct, (2, 3))

    def dtype(fn, *arguments):
        return jax.eval_shape(fn, *arguments).dtype

    for given in (jnp.bfloat16, jnp.float16, jnp.float32):
        expected = jnp.float32 if m is jxent else given
        assert dtype(getattr(m, INT), of(given), labels) == expected
        assert dtype(m.sigmoid_binary_cross_entropy, of(given), of(given)) == expected
        assert dtype(m.kl_divergence, of(given), of(given)) == expected
        assert dtype(m.softmax_cross_entropy, of(given), of(jnp.float32)) == jnp.float32
        if m is jxent:
            assert dtype(m.cross_entropy, of(given), labels) == jnp.float32
            assert dtype(jax.grad(m.cross_entropy), of(given), labels) == given
    with enable_x64():
        assert dtype(getattr(m, INT), of(jnp.float64), labels) == jnp.float64
        wide = dtype(m.softmax_cross_entropy, of(jnp.float32), of(jnp.float64))
        assert wide == (jnp.float32 if m is jxent else jnp.float64)


@claim("dtype of the loss", "PyTorch")
def _(torch):
    z = _t(torch, Z)
    for dtype in (torch.bfloat16, torch.float16):
        loss = torch.nn.functional.cross_entropy(z.to(dtype), _t(torch, Y, torch.long))
        assert loss.dtype == dtype
        loss = torch.nn.functional.cross_entropy(z.to(dtype), _t(torch, T))
        assert loss.dtype == torch.float32


@claim("the label leads by far (40 in float32)", "optax", "jxent")
def _(m):
    z, y = _confident(10)
    fn = getattr(m, INT)
    exact = math.log1p(9 * math.exp(-40))
    grad = _grad(fn, z, y)
    soft = m.softmax_cross_entropy(z, jax.nn.one_hot(y, 10))
    if m is jxent:
        for rows in (fn(z, y), -grad[:, 0], soft):
            np.testing.assert_allclose(rows, exact, rtol=1e-6)
    else:
        assert not fn(z, y).any() and not grad[:, 0].any() and not soft.any()


@claim("the label leads by far (40 in float32)", "PyTorch")
def _(torch):
    z = torch.tensor([[40.0, 0.0, 0.0]], requires_grad=True)
    loss = torch.nn.functional.cross_entropy(z, torch.tensor([0]))
    loss.backward()
    assert loss == 0 and z.grad[0, 0] == 0 and z.grad[0, 1] > 0


@claim("label −1", "optax")
def _(m):
    _same(getattr(m, INT)(Z, jnp.array([-1, 1])), getattr(m, INT)(Z, jnp.array([2, 1])))


@claim("other labels outside [0, V)", "optax")
def _(m):
    for label in (3, 100, -4, -100):
        y = jnp.array([label, 1])
        _nan_row(getattr(m, INT)(Z, y))
        _same(_grad(getattr(m, INT), Z, y)[0], jax.nn.softmax(Z[0]))


@claim("label −1", "PyTorch")
@claim("other labels outside [0, V)", "PyTorch")
def _(torch):
    for label in (-1, 3):
        with pytest.raises(IndexError):
            _ce(torch, Z, np.array([label, 1]))


@claim("label −1", "jxent")
@claim("other labels outside [0, V)", "jxent")
def _(m):
    for label in (-1, 3, 100, -4, -100):
        y = jnp.array([label, 1])
        for fn, name in ((getattr(m, INT), "labels"), (m.cross_entropy, "targets")):
            with pytest.raises(ValueError, match=rf"`{name}`\[0\] = {label} is outside \[0, 3\)"):
                fn(Z, y)
        _nan_row(jax.jit(getattr(m, INT))(Z, y))
        _nan_row(_grad(getattr(m, INT), Z, y))


@claim("NumPy label 2³² + 1", "optax", "jxent")
def _(m):
    fn, y = getattr(m, INT), np.array([2**32 + 1, 1])
    if m is jxent:
        with pytest.raises(ValueError, match="4294967297 is outside"):
            fn(Z, y)
        fn = jax.jit(fn)
    _same(fn(Z, y), fn(Z, jnp.array([1, 1])))


@claim("NumPy label 2³² + 1", "PyTorch")
def _(torch):
    with pytest.raises(IndexError):
        _ce(torch, Z, np.array([2**32 + 1, 1]))


@claim("soft target 0 on a logit of −∞", "optax", "jxent")
def _(m):
    loss = m.softmax_cross_entropy(OUTSIDE, T[:1])
    right = jnp.log1p(jnp.exp(1.0)) - 0.5
    _same(m.safe_softmax_cross_entropy(OUTSIDE, T[:1]), right)
    if m is jxent:
        _same(loss, right)
        assert jnp.isfinite(_grad(m.softmax_cross_entropy, OUTSIDE, T[:1])).all()
    else:
        assert jnp.isnan(loss)


@claim("soft target 0 on a logit of −∞", "PyTorch")
def _(torch):
    assert _ce(torch, OUTSIDE, T[:1]).isnan()


@claim("`safe_softmax_cross_entropy`", "optax")
def _(m):
    assert list(inspect.signature(m.safe_softmax_cross_entropy).parameters) == ["logits", "labels"]


@claim("`safe_softmax_cross_entropy`", "jxent")
def _(m):
    assert m.safe_softmax_cross_entropy is m.softmax_cross_entropy


@claim("negative soft target", "optax", "jxent")
def _(m):
    t = T.at[0, 0].set(-0.5)
    if m is jxent:
        for fn in (m.cross_entropy, m.softmax_focal_loss, m.kl_divergence):
            with pytest.raises(ValueError, match="negative"):
                fn(Z, t)
    expected = -jnp.sum(t * jax.nn.log_softmax(Z), axis=-1)
    _same(m.softmax_cross_entropy(Z, t), expected)
    _nan_row(jax.jit(m.kl_divergence)(jax.nn.log_softmax(Z), t))


@claim("negative soft target", "PyTorch")
def _(torch):
    t = T.at[0, 0].set(-0.5)
    expected = -jnp.sum(t * jax.nn.log_softmax(Z), axis=-1)
    _same(_ce(torch, Z, t, reduction="none"), expected)


@claim("soft labels `[N, 1]`, `[1, V]` or a scalar", "optax", "jxent")
def _(m):
    for t in (T[:, :1], T[:1], jnp.float32(0.5)):
        if m is jxent:
            with pytest.raises(ValueError, match="`labels` must have the logits' shape"):
                m.softmax_cross_entropy(Z, t)
        else:
            expected = m.softmax_cross_entropy(Z, jnp.broadcast_to(t, Z.shape))
            _same(m.softmax_cross_entropy(Z, t), expected)
    _same(m.softmax_cross_entropy(Z, T[0]), m.softmax_cross_entropy(Z, jnp.stack([T[0], T[0]])))


@claim("soft labels `[N, 1]`, `[1, V]` or a scalar", "PyTorch")
def _(torch):
    for t in (T[:, :1], T[:1], jnp.float32(0.5)):
        with pytest.raises((RuntimeError, ValueError)):
            _ce(torch, Z, t)


@claim("soft labels `[V]` of integers", "optax", "jxent")
def _(m):
    t = jnp.array([0, 1, 0])
    if m is jxent:
        with pytest.raises(ValueError, match="`labels`"):
            m.softmax_cross_entropy(Z, t)
    else:
        expected = m.softmax_cross_entropy(Z, jnp.broadcast_to(t, Z.shape))
        _same(m.softmax_cross_entropy(Z, t), expected)


@claim("soft labels `[V]` of integers", "PyTorch")
def _(torch):
    with pytest.raises((RuntimeError, ValueError)):
        _ce(torch, Z, jnp.array([0, 1, 0]))


@claim("binary labels `[N]` against logits `[N, 1]`, or `[V]` against `[N, V]`", "optax", "jxent")
def _(m):
    for fn in (m.sigmoid_binary_cross_entropy, m.sigmoid_focal_loss):
        assert fn(Z, 1).shape == Z.shape
        for x, y, shape in ((Z[:, :1], Y, (2, 2)), (Z, T[0], (2, 3))):
            if m is jxent:
                with pytest.raises(ValueError, match="`labels` must have the logits' shape"):
                    fn(x, y)
            else:
                assert fn(x, y).shape == shape


@claim("binary labels `[N]` against logits `[N, 1]`, or `[V]` against `[N, V]`", "PyTorch")
def _(torch):
    for x, y in ((Z[:, :1], T[:, 0]), (Z, T[0])):
        with pytest.raises(ValueError, match="must be the same"):
            _bce(torch, x, y)


@claim("`where` of shape `[N, 1]`", "optax", "jxent")
def _(m):
    keep = jnp.array([True, False])
    for fn, t in ((getattr(m, INT), Y), (m.softmax_cross_entropy, T)):
        rows = fn(Z, t, where=keep)
        assert rows[1] == 0 and rows[0] > 0
        if m is jxent:
            with pytest.raises(ValueError, match="`where` must have the rows' shape"):
                fn(Z, t, where=keep[:, None])
        else:
            _same(fn(Z, t, where=keep[:, None]), rows)


@claim("`where` excludes the label's class", "optax", "jxent")
def _(m):
    mask = jnp.ones(Z.shape, bool).at[0, 0].set(False)
    rows = getattr(m, INT)(Z, Y, where=mask)
    if m is jxent:
        _nan_row(rows)
        _nan_row(_grad(partial(m.cross_entropy, reduction="none"), Z, Y, where=mask))
    else:
        assert rows[0] < 0 and jnp.isfinite(rows).all()


@claim("`where` excludes a class with soft mass, in a softmax loss", "optax", "jxent")
def _(m):
    mask = jnp.ones(Z.shape, bool).at[0, 0].set(False)
    for fn in (m.softmax_cross_entropy, m.poly_loss_cross_entropy):
        _same(fn(Z, T, where=mask), fn(Z, T.at[0, 0].set(0), where=mask))
    if m is jxent:
        _nan_row(m.cross_entropy(Z, T, where=mask, reduction="none"))
        _nan_row(m.softmax_focal_loss(Z, T, where=mask))


@claim("`where` of shape `[N]` in `kl_divergence`, `poly_loss_cross_entropy`", "optax", "jxent")
def _(m):
    keep = jnp.array([False, True, True])
    square = jnp.array([[0.1, 0.2, 0.3], [0.5, 0.1, 0.1], [0.0, 0.3, 0.9]])
    targets = jnp.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [0.1, 0.1, 0.8]])
    log_p = jax.nn.log_softmax(square)
    for fn, z in ((m.kl_divergence, log_p), (m.poly_loss_cross_entropy, square)):
        if m is jxent:
            full = fn(z, targets)
            _same(fn(z, targets, where=keep), full.at[0].set(0))
            _same(fn(z[:2], targets[:2], where=keep[:2]), full[:2].at[0].set(0))
        else:
            wrong = fn(z, targets, where=keep)
            assert wrong[0] != 0 and not jnp.allclose(wrong[1:], fn(z, targets)[1:])
            with pytest.raises(ValueError, match="Incompatible shapes"):
                fn(z[:2], targets[:2], where=keep[:2])


@claim("binary label outside [0, 1]", "optax", "jxent")
def _(m):
    y = jnp.array([[2.0, 1.0, 0.0], [0.0, 1.0, 0.5]])
    fn = m.sigmoid_binary_cross_entropy
    rows = jax.jit(fn)(Z, y)
    if m is jxent:
        for loss in (fn, m.sigmoid_focal_loss):
            with pytest.raises(ValueError, match=r"`labels`\[0, 0\] = 2.0 is outside \[0, 1\]"):
                loss(Z, y)
            assert np.argwhere(np.isnan(jax.jit(loss)(Z, y))).tolist() == [[0, 0]]
            assert np.argwhere(np.isnan(_grad(loss, Z, y))).tolist() == [[0, 0]]
    else:
        assert jnp.isfinite(rows).all() and rows[0, 0] < 0


@claim("binary label outside [0, 1]", "PyTorch")
def _(torch):
    assert _bce(torch, Z[:, :1], jnp.full((2, 1), 2.0), reduction="none")[0] < 0


@claim("`sigmoid_focal_loss` with α outside [0, 1] or γ < 0", "optax", "jxent")
def _(m):
    for options, word in (({"alpha": 2.0}, "alpha"), ({"gamma": -1.0}, "gamma")):
        rows = jax.jit(lambda x, o: m.sigmoid_focal_loss(x, 1.0, **o))(Z, options)
        if m is jxent:
            with pytest.raises(ValueError, match=word):
                m.sigmoid_focal_loss(Z, 1.0, **options)
            assert jnp.isnan(rows).all()
        else:
            assert jnp.isfinite(rows).all()


@claim("binary logit of ±∞, and right", "optax", "jxent")
def _(m):
    x, y = jnp.array([jnp.inf, -jnp.inf]), jnp.array([1.0, 0.0])
    for fn in (m.sigmoid_binary_cross_entropy, m.sigmoid_focal_loss):
        if m is jxent:
            assert fn(x, y).tolist() == [0, 0]
            assert _grad(fn, x, y).tolist() == [0, 0]
        else:
            assert jnp.isnan(fn(x, y)).all()


@claim("binary logit of ±∞, and right", "PyTorch")
def _(torch):
    x, y = np.array([np.inf, -np.inf], np.float32), np.array([1, 0], np.float32)
    assert _bce(torch, x, y, reduction="none").isnan().all()


@claim("KL targets `[N, 1]` or `[1, V]`", "optax", "jxent")
def _(m):
    q = jax.nn.log_softmax(Z)
    for t in (T[:, :1], T[:1]):
        if m is jxent:
            with pytest.raises(ValueError, match="`targets` must have the shape"):
                m.kl_divergence(q, t)
        else:
            _same(m.kl_divergence(q, t), m.kl_divergence(q, jnp.broadcast_to(t, q.shape)))
    _same(m.kl_divergence(q, T[0]), m.kl_divergence(q, jnp.stack([T[0], T[0]])))


@claim("KL targets `[N, 1]` or `[1, V]`", "PyTorch")
def _(torch):
    q = jax.nn.log_softmax(Z)
    for t in (T[:, :1], T[:1]):
        assert _kl(torch, q, t).shape == (2, 3)


SURE = jnp.array([[0.0, -jnp.inf]])
HALVES = jnp.log(jnp.array([[0.5, 0.5]]))


@claim("KL with a target of 0 where the prediction is 0 (log −∞)", "optax", "jxent")
def _(m):
    loss = m.kl_divergence(SURE, jnp.exp(SURE))
    assert loss == 0 if m is jxent else jnp.isnan(loss)


@claim("KL with a target of 0 where the prediction is 0 (log −∞)", "PyTorch")
def _(torch):
    assert _kl(torch, SURE, jnp.exp(SURE)).sum().isnan()


@claim("KL with a log-target of −∞", "optax", "jxent")
def _(m):
    loss = m.kl_divergence_with_log_targets(HALVES, SURE)
    if m is jxent:
        _same(loss, math.log(2))
    else:
        assert jnp.isnan(loss)


@claim("KL with a log-target of −∞", "PyTorch")
def _(torch):
    assert _kl(torch, HALVES, SURE, log_target=True).sum().isnan()


@claim("KL with a log-prediction of +∞", "optax", "jxent")
def _(m):
    loss = m.kl_divergence(HALVES.at[0, 0].set(jnp.inf), jnp.exp(HALVES))
    assert jnp.isnan(loss) if m is jxent else loss == -jnp.inf


@claim("KL with a log-prediction of +∞", "PyTorch")
def _(torch):
    assert _kl(torch, HALVES.at[0, 0].set(jnp.inf), jnp.exp(HALVES)).sum() == -np.inf


@claim("slope of ±∞ by a target (a target or prediction of 0)", "optax", "jxent")
def _(m):
    slopes = (
        _grad(m.kl_divergence, HALVES, jnp.exp(SURE), argnum=1),
        _grad(m.kl_divergence, SURE, jnp.exp(HALVES), argnum=1),
        _grad(m.softmax_cross_entropy, OUTSIDE, T[:1], argnum=1),
    )
    for slope in slopes:
        if m is jxent:
            assert jnp.isfinite(slope).all() and abs(slope[0, -1]) > 1e30
        else:
            assert not jnp.isfinite(slope[0, -1])


@claim("slope of ±∞ by a target (a target or prediction of 0)", "PyTorch")
def _(torch):
    t = torch.tensor([[0.5, 0.5, 0.0]], requires_grad=True)
    torch.nn.functional.cross_entropy(_t(torch, OUTSIDE), t).backward()
    assert t.grad[0, 2] == np.inf
    t = torch.tensor([[1.0, 0.0]], requires_grad=True)
    torch.nn.functional.kl_div(_t(torch, HALVES), t, reduction="sum").backward()
    assert t.grad[0, 1].isnan()


@claim("no classes (V = 0)", "optax", "jxent")
def _(m):
    if m is jxent:
        with pytest.raises(ValueError, match="no classes"):
            getattr(m, INT)(jnp.zeros((2, 0)), jnp.array([0, 0]))
    else:
        assert (getattr(m, INT)(jnp.zeros((2, 0)), jnp.array([0, 0])) == -jnp.inf).all()


@claim("no classes (V = 0)", "PyTorch")
def _(torch):
    with pytest.raises(IndexError):
        _ce(torch, np.zeros((2, 0), np.float32), np.array([0, 0]))


C = jnp.array([1.0, 2.0, 4.0])


@claim("weighted mean over distributions", "PyTorch", "jxent")
def _(m):
    rows = jxent.cross_entropy(Z, T, class_weights=C, reduction="none")
    if m is jxent:
        weight = jnp.sum(C * T, axis=-1) / jnp.sum(T, axis=-1)
        _same(m.cross_entropy(Z, T, class_weights=C), rows.sum() / weight.sum())
        labels, one_hot = Y, jax.nn.one_hot(Y, 3)
        as_labels = m.cross_entropy(Z, labels, class_weights=C)
        _same(m.cross_entropy(Z, one_hot, class_weights=C), as_labels)
    else:
        theirs = _ce(m, Z, T, weight=_t(m, C))
        _same(theirs, rows.sum() / len(Z))
        _same(jxent.cross_entropy(Z, T, class_weights=C, normalizer=float(len(Z))), theirs)
        one_hot = _ce(m, Z, jax.nn.one_hot(Y, 3), weight=_t(m, C))
        assert abs(one_hot - _ce(m, Z, np.asarray(Y, int), weight=_t(m, C))) > 0.1


@claim("dropped row that holds NaN or ∞", "optax", "jxent")
def _(m):
    keep = jnp.array([False, True])
    for value in (jnp.nan, jnp.inf, -jnp.inf):
        z = Z.at[0].set(value)
        for fn, t in ((getattr(m, INT), Y), (m.softmax_cross_entropy, T)):
            assert fn(z, t, where=keep)[0] == 0
            grad = _grad(fn, z, t, where=keep)
            assert not grad[0].any() and jnp.isfinite(grad).all()


@claim("dropped row that holds NaN or ∞", "PyTorch")
def _(torch):
    z = _t(torch, Z.at[0, 0].set(jnp.nan)).requires_grad_()
    loss = torch.nn.functional.cross_entropy(z, torch.tensor([-100, 1]))
    loss.backward()
    assert loss.isfinite() and z.grad[0].isnan().all()


@claim("mean when every row is ignored, or there is none", "PyTorch", "jxent")
def _(m):
    ignored = np.array([-100, -100])
    if m is jxent:
        value, grad = jax.value_and_grad(m.cross_entropy)(Z, ignored, ignore_index=-100)
        assert value == 0 and not grad.any()
        assert m.cross_entropy(Z[:0], Y[:0]) == 0
    else:
        assert _ce(m, Z, ignored).isnan()
        assert _ce(m, Z[:0], ignored[:0]).isnan()


@claim("axis of the classes", "optax", "jxent")
def _(m):
    labels = jnp.array([0, 1, 0])
    for fn in (getattr(m, INT), getattr(optax.losses, INT)):
        _same(fn(Z, labels, axis=0), fn(Z.T, labels))


@claim("axis of the classes", "PyTorch")
def _(torch):
    z = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    y = np.random.default_rng(1).integers(0, 4, (2, 3))
    _same(_ce(torch, z, y), jxent.cross_entropy(jnp.moveaxis(z, 1, -1), y))


@claim("`ignore_index` by default", "PyTorch", "jxent")
def _(m):
    y = np.array([-100, 1])
    if m is jxent:
        with pytest.raises(ValueError, match="-100 is outside"):
            m.cross_entropy(Z, y)
    else:
        _same(_ce(m, Z, y), jxent.cross_entropy(Z, y, ignore_index=-100))


@claim("Python lists as logits or labels", "optax", "PyTorch", "jxent")
def _(m):
    if m is jxent:
        _same(getattr(m, INT)(Z.tolist(), Y.tolist()), getattr(m, INT)(Z, Y))
    elif isinstance(m, Compiled):
        with pytest.raises(TypeError):
            getattr(m, INT)(Z, Y.tolist())
        with pytest.raises(TypeError):
            getattr(m, INT)(Z.tolist(), Y)
    else:
        with pytest.raises(TypeError):
            m.nn.functional.cross_entropy(Z.tolist(), Y.tolist())


# --- coming from optax, from PyTorch: the arguments


def test_smooth_labels_is_label_smoothing():
    smooth = optax.smooth_labels(jax.nn.one_hot(Y, 3), 0.1)
    theirs = optax.softmax_cross_entropy(Z, smooth)
    ours = jxent.softmax_cross_entropy_with_integer_labels(Z, Y, label_smoothing=0.1)
    _same(ours, theirs)


@pytest.fixture
def torch():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torch")


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torch_s(torch, reduction, weighted, smoothing):
    y = np.array([-100, 1])
    theirs = _ce(
        torch,
        Z,
        y,
        weight=_t(torch, C) if weighted else None,
        label_smoothing=smoothing,
        reduction=reduction,
    )
    ours = jxent.cross_entropy(
        Z,
        y,
        ignore_index=-100,
        class_weights=C if weighted else None,
        label_smoothing=smoothing,
        reduction=reduction,
    )
    _same(ours, theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_distributions_are_torch_s(torch, smoothing):
    options = {"label_smoothing": smoothing}
    _same(jxent.cross_entropy(Z, T, **options), _ce(torch, Z, T, **options))
    rows = jxent.cross_entropy(Z, T, class_weights=C, reduction="none", **options)
    _same(rows, _ce(torch, Z, T, weight=_t(torch, C), reduction="none", **options))


def test_the_other_torch_losses(torch):
    q = jax.nn.log_softmax(Z)
    nll = torch.nn.functional.nll_loss(_t(torch, q), _t(torch, Y, torch.long))
    _same(jxent.cross_entropy(q, Y), nll)

    w = jnp.array([[0.5, 1.0, 2.0], [1.0, 0.0, 3.0]])
    rows = jxent.sigmoid_binary_cross_entropy(Z, T, pos_weight=C)
    _same(rows.mean(), _bce(torch, Z, T, pos_weight=_t(torch, C)))
    weighed = jxent.sigmoid_binary_cross_entropy(
        Z, T, pos_weight=C, row_weights=w, reduction="mean", normalizer=Z.size
    )
    _same(weighed, _bce(torch, Z, T, pos_weight=_t(torch, C), weight=_t(torch, w)))

    kl_div, q_, t_ = torch.nn.functional.kl_div, _t(torch, q), _t(torch, T)
    _same(jxent.kl_divergence(q, T).mean(), kl_div(q_, t_, reduction="batchmean"))
    _same(jxent.kl_divergence(q, T).sum(), kl_div(q_, t_, reduction="sum"))
    log_t = jnp.log(T + 0.1)
    theirs = kl_div(q_, _t(torch, log_t), reduction="batchmean", log_target=True)
    _same(jxent.kl_divergence_with_log_targets(q, log_t).mean(), theirs)


# --- what every input gets, where no row of the differences has said it


def test_inputs_labels():
    fn = getattr(jxent, INT)
    y = jnp.array([200], jnp.uint8)
    wide = jnp.zeros((1, 300)).at[0, 200].set(5.0)
    _same(fn(wide, y), fn(wide, y.astype(jnp.int32)))
    for bad in (jnp.array([0.0, 1.0]), jnp.array([False, True])):
        with pytest.raises(TypeError, match="must be integers"):
            fn(Z, bad)
    with pytest.raises(ValueError, match="one label a row"):
        fn(Z, Y[:, None])


IMPOSSIBLE = Z.at[0, 0].set(-jnp.inf)


def test_inputs_logits():
    fn = getattr(jxent, INT)
    assert fn(IMPOSSIBLE, jnp.array([0, 1]))[0] == jnp.inf
    assert jnp.isfinite(_grad(fn, IMPOSSIBLE, jnp.array([0, 1]))).all()
    _same(fn(IMPOSSIBLE, jnp.array([1, 1]))[0], fn(Z[0, 1:], jnp.array(0)))
    assert _grad(fn, IMPOSSIBLE, jnp.array([1, 1]))[0, 0] == 0
    for value, at in ((jnp.inf, (0, 0)), (jnp.nan, (0, 0)), (-jnp.inf, (0,))):
        _nan_row(fn(Z.at[at].set(value), Y))
        _nan_row(_grad(fn, Z.at[at].set(value), Y))

    smooth = fn(IMPOSSIBLE, jnp.array([1, 1]), label_smoothing=0.1)
    assert smooth[0] == jnp.inf
    allowed = jnp.isfinite(IMPOSSIBLE)
    smooth = fn(IMPOSSIBLE, jnp.array([1, 1]), where=allowed, label_smoothing=0.1)
    assert jnp.isfinite(smooth).all()


def test_inputs_weights_and_targets():
    for weights in ({"row_weights": jnp.array([0.0, 1.0])}, {"class_weights": C.at[0].set(0)}):
        rows = jxent.cross_entropy(IMPOSSIBLE, Y, reduction="none", **weights)
        assert rows[0] == 0 and jnp.isfinite(rows[1])
    nothing = jnp.zeros(2)
    value, grad = jax.value_and_grad(jxent.cross_entropy)(Z, Y, row_weights=nothing)
    assert value == 0 and not grad.any()

    signed = jnp.array([1.0, -0.5])
    with pytest.raises(ValueError, match="normalizer="):
        jxent.cross_entropy(Z, Y, row_weights=signed)
    assert jnp.isnan(jax.jit(jxent.cross_entropy)(Z, Y, row_weights=signed))
    each = jxent.cross_entropy(Z, Y, reduction="none")
    _same(jxent.cross_entropy(Z, Y, row_weights=signed, normalizer=2.0), (signed * each).sum() / 2)

    t = jnp.array([[0.5, 0.1, 0.0], [1.0, 2.0, 0.0]])
    expected = t.sum(axis=-1, keepdims=True) * jax.nn.softmax(Z) - t
    _same(_grad(jxent.softmax_cross_entropy, Z, t), expected)


def test_inputs_excluded_classes():
    bias, kept = jnp.array([0.0, 0.0, -jnp.inf]), jnp.array([True, True, False])
    y, options = jnp.array([0, 1]), {"label_smoothing": 0.1}
    stored = jxent.cross_entropy(Z, y, where=jnp.broadcast_to(kept, Z.shape), **options)

    def loss(head, bias, **more):
        return jxent.linear_cross_entropy(Z, head, y, bias=bias, **options, **more)

    assert loss(jnp.eye(3), bias) == jnp.inf
    holes = jnp.eye(3).at[:, 2].set(jnp.nan)
    value, grads = jax.value_and_grad(loss, (0, 1))(holes, bias * 0, class_mask=kept)
    _same(value, stored)
    assert all((grad[..., 2] == 0).all() for grad in grads)


def test_inputs_distributions_of_the_linear_loss():
    def linear(z, t):
        return jxent.linear_cross_entropy(z, jnp.eye(3), t, class_weights=C)

    def stored(z, t):
        return jxent.cross_entropy(z, t, class_weights=C)

    ours, theirs = (jax.value_and_grad(fn, (0, 1))(Z, T) for fn in (linear, stored))
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        _same(x, y)


def test_inputs_options():
    # The types checked in these tests may be the first to object.
    for options in ({"label_smoothing": 1.5}, {"z_loss": -1.0}, {"logit_softcap": 0.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            jxent.cross_entropy(Z, Y, **options)
        with pytest.raises(TypeError, match=next(iter(options))):
            jax.jit(lambda o: jxent.cross_entropy(Z, Y, **o))(options)
    with pytest.raises((ValueError, TypeError), match="reduction"):
        jxent.cross_entropy(Z, Y, reduction="average")


def test_forward_mode_is_the_row_losses():
    with pytest.raises(TypeError, match=r"no forward mode.*use softmax_cross_entropy"):
        jax.jvp(lambda z: jxent.cross_entropy(z, Y), (Z,), (Z,))


@pytest.mark.parametrize("implementation", ["tokens", "vocab", "reference"])
def test_forward_mode_of_the_linear_loss_is_the_reference(implementation):
    def loss(z):
        return jxent.linear_cross_entropy(z, jnp.eye(3), Y, implementation=implementation)

    if implementation == "reference":
        _, tangent = jax.jvp(loss, (Z,), (jnp.ones_like(Z),))
        _same(tangent, 0)  # lse and z_y grow alike
    else:
        with pytest.raises(TypeError, match=r"no forward mode.*use implementation='reference'"):
            jax.jvp(loss, (Z,), (Z,))
    assert jnp.isfinite(jax.jvp(jax.grad(loss), (Z,), (Z,))[1]).all()


def test_class_weights_of_the_table_weigh_every_class_the_same():
    labels = np.array([0, 0, 0, 1, 2, 2])
    c = labels.size / (3 * np.bincount(labels))
    weights = jxent.label_weights(labels, class_weights=c.astype(np.float32))
    _same([weights[labels == v].sum() for v in range(3)], [2, 2, 2])


def test_kl_divergence_has_the_gradient_of_cross_entropy():
    entropy = -jnp.sum(T * jnp.log(jnp.where(T == 0, 1, T)), axis=-1)

    def kl(z):
        return jxent.kl_divergence(jax.nn.log_softmax(z), T)

    _same(kl(Z), jxent.softmax_cross_entropy(Z, T) - entropy)
    _same(_grad(kl, Z), _grad(jxent.softmax_cross_entropy, Z, T))
