"""The tables of remedies are what a rerun gives, as far as their intervals tell."""

import re
from typing import NamedTuple

import generated_tables
import jax
import measure_imbalance
import numpy as np
import pytest
from scipy import stats
from scipy.special import softmax
from sklearn.metrics import log_loss, recall_score

pytestmark = pytest.mark.relaxed  # for optax

FEW = range(2)


class Cell(NamedTuple):
    mean: float
    half: float
    bold: bool
    rounding: float


def parsed(text: str) -> Cell:
    number = r"([+−]?\d+\.(\d+)) ± (\d+\.\d+)"
    (bold, mean, places, half) = re.fullmatch(rf"(\*\*)?{number}(?:\*\*)?", text).groups()
    return Cell(
        float(mean.replace("−", "-")), float(half), bold is not None, 0.5 * 10 ** -len(places)
    )


def cells(rows: list[list[str]]) -> dict[tuple[str, str], Cell]:
    head, _, *rows = rows
    return {
        (row[0], name): parsed(text)
        for row in rows
        for name, text in zip(head[1:], row[1:], strict=True)
    }


def agree(said: dict, found: dict) -> None:
    """Each mean within what was said of it, each difference called real with its sign."""
    assert said.keys() == found.keys()
    for key, cell in said.items():
        assert abs(found[key].mean - cell.mean) <= cell.half + 2 * cell.rounding, key
        assert not cell.bold or np.sign(found[key].mean) == np.sign(cell.mean), key


def split_rows(text: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in text.splitlines()]


SAID = {
    name: cells(generated_tables.table(measure_imbalance.FILE, name))
    for name in ("remedies", "continuous")
}


@pytest.mark.deep
def test_rare_classes_again():
    found = measure_imbalance.rare_classes()
    agree(SAID["remedies"], cells(split_rows(measure_imbalance.table(found, "remedy"))))

    def above(one: str, other: str, measure: str) -> measure_imbalance.Interval:
        return measure_imbalance.interval(found[one][measure] - found[other][measure])

    # What the page says beside the table.
    recall, alike = "recall of the rare", "nats, classes alike"
    after, during = measure_imbalance.AFTERWARDS, measure_imbalance.ADJUSTED
    for measure in (recall, alike):
        gain = above(during, measure_imbalance.PLAIN, measure).mean
        assert abs(above(after, during, measure).mean) < 0.1 * abs(gain)
    weights = "balanced class weights"
    for measure in (recall, "nats, prior of training"):
        more = above(during, weights, measure)
        assert more.real and more.mean > 0


@pytest.mark.deep
def test_continuous_targets_again():
    found = measure_imbalance.continuous()
    agree(SAID["continuous"], cells(split_rows(measure_imbalance.table(found, "loss"))))
    rmse = "root mean squared error"
    assert not measure_imbalance.interval(
        found[measure_imbalance.HL_GAUSS][rmse] - found[measure_imbalance.RIDGE][rmse]
    ).real


def test_every_row_is_in_the_table():
    rare = [
        measure_imbalance.PLAIN,
        measure_imbalance.AFTERWARDS,
        *list(measure_imbalance.REMEDIES)[1:],
    ]
    assert list(dict.fromkeys(row for row, _ in SAID["remedies"])) == rare
    values = [*measure_imbalance.CONTINUOUS, measure_imbalance.RIDGE]
    assert list(dict.fromkeys(row for row, _ in SAID["continuous"])) == values
    for said in SAID.values():
        some = [cell.bold for cell in said.values()]
        assert any(some) and not all(some)
        assert all(abs(c.mean) + 2 * c.rounding >= c.half for c in said.values() if c.bold)


def test_a_changed_number_is_noticed():
    for said in SAID.values():
        agree(said, said)
        for key, cell in said.items():
            changed = cell.mean + 2 * cell.half + 4 * cell.rounding
            with pytest.raises(AssertionError):
                agree(said, said | {key: cell._replace(mean=changed)})
            if cell.bold:
                with pytest.raises(AssertionError):
                    agree(said, said | {key: cell._replace(mean=-cell.mean)})


def test_split_of_the_digits():
    data, other = measure_imbalance.digits(0), measure_imbalance.digits(1)
    np.testing.assert_array_equal(np.bincount(data.labels), [120, 6] * 5)
    np.testing.assert_array_equal(np.bincount(data.held_out_labels), [50] * 10)
    images = lambda x: {row.tobytes() for row in x}
    assert not images(data.x) & images(data.held_out_x)
    epoch = data.batches[: len(data.labels) // measure_imbalance.BATCH]
    assert data.batches.shape == (measure_imbalance.STEPS, measure_imbalance.BATCH)
    assert len(np.unique(epoch)) == epoch.size
    assert np.any(other.x != data.x) and np.any(other.batches != data.batches)
    jax.tree.map(np.testing.assert_array_equal, measure_imbalance.digits(0), data)


def test_split_of_the_diabetes():
    data = measure_imbalance.diabetes(0)
    parts = [data.x, data.validation_x, data.held_out_x]
    assert [len(x) for x in parts] == [266, 88, 88]
    assert len({row.tobytes() for x in parts for row in x}) == 442
    values = np.concatenate([data.y, data.validation_y, data.held_out_y])
    np.testing.assert_allclose([values.min(), values.max()], [-1.25, 1.96], rtol=1e-6)
    np.testing.assert_allclose(np.concatenate(parts).std(axis=0), 1, rtol=1e-5)


def test_each_remedy_is_another_loss():
    data = measure_imbalance.digits(0)
    params = measure_imbalance.init(jax.random.key(0), 64, 8, measure_imbalance.CLASSES)
    x, labels = data.x[data.batches[0]], data.labels[data.batches[0]]

    @jax.jit  # once for all of them
    def gradients(params):
        return {
            n: jax.grad(fn)(params, x, labels)["W2"] for n, fn in measure_imbalance.REMEDIES.items()
        }

    found = {name: np.asarray(gradient) for name, gradient in gradients(params).items()}
    plain = found.pop(measure_imbalance.PLAIN)
    assert len(found) == len(measure_imbalance.REMEDIES) - 1
    for name, other in found.items():
        assert np.all(np.isfinite(other)), name
        assert np.linalg.norm(other - plain) > 1e-3 * np.linalg.norm(plain), name


def test_measures_are_scikit_learns():
    rng = np.random.default_rng(0)
    labels = np.stack([measure_imbalance.digits(seed).held_out_labels for seed in FEW])
    logits = rng.normal(size=(*labels.shape, 10)).astype(np.float32)
    logits += 2 * np.eye(10, dtype=np.float32)[labels]
    found = measure_imbalance.measures(logits, labels)
    p = softmax(logits.astype(np.float64), axis=-1)
    for i, y in enumerate(labels):
        recall = 100 * recall_score(y, logits[i].argmax(-1), average=None)
        expected = [
            recall[1::2].mean(),
            recall[::2].mean(),
            log_loss(y, p[i], sample_weight=np.tile([120, 6], 5)[y]),
            log_loss(y, p[i]),
        ]
        np.testing.assert_allclose([x[i] for x in found.values()], expected, rtol=1e-5)


@pytest.mark.deep
def test_rare_classes_run():
    balanced = "balanced class weights"
    found = measure_imbalance.rare_classes(
        FEW, steps=150, remedies=[measure_imbalance.PLAIN, balanced]
    )
    assert list(found) == [measure_imbalance.PLAIN, measure_imbalance.AFTERWARDS, balanced]
    plain, after = found[measure_imbalance.PLAIN], found[measure_imbalance.AFTERWARDS]
    for name in ("nats, prior of training", "nats, classes alike"):
        assert plain[name].shape == (2,) and plain[name][0] != plain[name][1]  # another seed
        assert np.all(plain[name] != found[balanced][name])
        assert np.all(plain[name] != after[name])
    # It learns, the frequent classes first; who knows the prior finds the rare ones as well.
    assert np.all(plain["nats, prior of training"] < np.log(10) / 2)
    assert np.all(plain["recall of the frequent"] > 50 + plain["recall of the rare"])
    assert np.all(after["recall of the rare"] > 20 + plain["recall of the rare"])


@pytest.mark.deep
def test_continuous_targets_run():
    names = [measure_imbalance.SQUARED, measure_imbalance.HL_GAUSS]
    found = measure_imbalance.continuous(FEW, checkpoints=20, losses=names)
    assert list(found) == [*names, measure_imbalance.RIDGE]
    spread = [100 * measure_imbalance.diabetes(seed).held_out_y.std() for seed in FEW]
    for name, measured in found.items():
        rmse, mae = measured.values()
        assert rmse.shape == (2,) and rmse[0] != rmse[1], name
        assert np.all((mae > 30) & (mae < rmse) & (rmse < spread)), name


def test_the_best_checkpoint_is_kept():
    validation = np.array([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
    values = np.arange(12).reshape(2, 3, 2)
    np.testing.assert_array_equal(measure_imbalance.kept(validation, values), [[2, 3], [6, 7]])


def test_interval_is_students():
    x = np.random.default_rng(0).normal(0.3, 1, 12)
    low, high = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    found = measure_imbalance.interval(x)
    np.testing.assert_allclose([found.mean - found.half, found.mean + found.half], [low, high])
    assert not found.real and measure_imbalance.interval(x + 3).real


def test_table_says_what_was_found():
    x = np.random.default_rng(0).normal(size=(3, 9))
    found = {"a": {"recall": 50 + x[0]}, "b": {"recall": 50 + x[0] + 0.1 * (x[1] - x[1].mean())}}
    found["c"] = {"recall": 47 + x[0] + 0.1 * x[2]}
    said = cells(split_rows(measure_imbalance.table(found, "remedy")))
    assert said["a", "recall"].mean == round(found["a"]["recall"].mean(), 1)
    assert said["c", "recall"].mean == round(-3 + 0.1 * x[2].mean(), 1)
    assert [cell.bold for cell in said.values()] == [False, False, True]
