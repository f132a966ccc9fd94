"""The demonstration: right data, a training step that learns, figures others agree with."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from sklearn.metrics import accuracy_score, log_loss

from jxent._cli import demo
from jxent.imbalance import balanced_class_weights

pytestmark = pytest.mark.relaxed  # optax and x @ W + b need ordinary promotion


@pytest.fixture(scope="module")
def iris() -> demo.Data:
    return demo.load("iris", seed=0)


@pytest.mark.parametrize("name", demo.DATASETS)
def test_data_is_split_by_class_and_standardised_by_training_rows(name):
    data = demo.load(name, seed=0)
    assert set(data.labels) == set(data.held_out_labels) == set(range(data.classes))
    shares = [np.bincount(labels) / len(labels) for labels in (data.labels, data.held_out_labels)]
    # Stratified: every class is off by less than one example.
    np.testing.assert_allclose(*shares, atol=1 / len(data.held_out_labels))
    rounding = len(data.labels) * np.finfo(np.float32).eps
    np.testing.assert_allclose(data.x.mean(axis=0), 0, atol=rounding)
    spread = data.x.std(axis=0)
    assert np.all(np.isclose(spread, 1, atol=rounding) | (spread == 0))
    assert np.abs(data.held_out_x.mean(axis=0)).max() > 100 * rounding
    assert data.x.dtype == data.held_out_x.dtype == np.float32


def test_another_seed_is_another_split(iris):
    assert not np.array_equal(iris.x, demo.load("iris", seed=1).x)


def test_an_epoch_is_full_batches_of_different_rows(iris):
    # Number the rows, so that a batch says which rows it holds.
    numbered = iris._replace(x=np.arange(len(iris.labels), dtype=np.float32)[:, None])
    batches = list(demo._batches(np.random.default_rng(0), numbered))
    assert len(batches) == len(iris.labels) // demo.BATCH
    assert all(x.shape == (demo.BATCH, 1) for x, _ in batches)
    rows = np.concatenate([x[:, 0] for x, _ in batches]).astype(int)
    assert len(set(rows)) == len(rows)
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), iris.labels[rows])


@pytest.mark.deep
@pytest.mark.parametrize("model", demo.MODELS, ids=lambda model: model.name)
def test_training_lowers_the_loss(model, iris):
    epochs = []
    params, history = demo.train(model, iris, epochs=10, seed=0, on_epoch=epochs.append)
    assert epochs == history
    assert history[-1].train_loss < history[0].train_loss
    assert history[-1].train_accuracy > history[0].train_accuracy
    assert history[-1].held_out_log_loss < demo.class_frequencies_log_loss(iris)
    last = demo.evaluate(model, params, iris).log_loss  # in float64
    assert history[-1].held_out_log_loss == pytest.approx(last, abs=1e-7)


def test_the_step_is_gradient_descent_on_the_weighted_smoothed_loss(iris):
    linear = demo.MODELS[0]
    c, eps, rate = np.array([1.0, 2.0, 0.5], np.float32), 0.2, 0.1
    x, labels = jnp.asarray(iris.x), jnp.asarray(iris.labels)
    optimizer = optax.sgd(rate)
    step = demo.make_step(linear, optimizer, label_smoothing=eps, class_weights=c)
    params = linear.init(jax.random.key(0), x.shape[-1], 3)
    new, _, loss, accuracy = step(params, optimizer.init(params), x, labels)
    # At W = 0 every p_v is 1/V; by hand: t = c_y ((1−ε) e_y + ε/V), over Σ c_y.
    t = c[iris.labels][:, None] * ((1 - eps) * np.eye(3)[iris.labels] + eps / 3)
    weight = c[iris.labels].sum()
    dz = (t.sum(axis=-1, keepdims=True) / 3 - t) / weight
    single = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(loss, t.sum() * np.log(3) / weight, **single)
    np.testing.assert_allclose(new["W"], -rate * iris.x.T @ dz, **single)
    np.testing.assert_allclose(new["b"], -rate * dz.sum(axis=0), **single)
    np.testing.assert_allclose(accuracy, np.mean(iris.labels == 0), **single)


@pytest.mark.parametrize(
    "config",
    [
        demo.Config("iris", epochs=3),
        demo.Config("iris", epochs=3, label_smoothing=0.3, class_weights="balanced"),
    ],
)
def test_log_loss_is_scikit_learns_unweighted_and_unsmoothed(config, iris):
    weights = config.class_weights and balanced_class_weights(np.bincount(iris.labels))
    result = demo.train_and_compare(config, iris)
    for model in demo.MODELS:
        params, _ = demo.train(
            model,
            iris,
            epochs=config.epochs,
            seed=config.seed,
            label_smoothing=config.label_smoothing,
            class_weights=weights,
        )
        z = np.asarray(model.apply(params, jnp.asarray(iris.held_out_x)), np.float64)
        p = np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
        evaluation = demo.evaluate(model, params, iris)
        theirs = log_loss(iris.held_out_labels, p)
        assert abs(evaluation.log_loss - theirs) <= 1e-6
        assert abs(evaluation.sklearn_log_loss - theirs) <= 1e-12
        summary = evaluation.score.summary
        assert summary.accuracy == accuracy_score(iris.held_out_labels, p.argmax(axis=-1))
        assert summary.perplexity == pytest.approx(np.exp(theirs), abs=1e-5)
        assert result.evaluations[model.name].log_loss == evaluation.log_loss


def sure(scale: float) -> demo.Classifier:
    """Always sure of class 0, by a gap of `scale`."""
    return demo.MODELS[0]._replace(
        apply=lambda params, x: scale * jax.nn.one_hot(jnp.zeros(len(x), int), 3)
    )


def test_rows_that_scikit_learn_clips_are_reported_unclipped(iris):
    evaluation = demo.evaluate(sure(100.0), {}, iris)
    wrong = np.mean(iris.held_out_labels != 0)
    assert evaluation.log_loss == pytest.approx(100 * wrong)
    assert evaluation.sklearn_log_loss == pytest.approx(-np.log(2**-52) * wrong)
    assert evaluation.clipped == np.sum(iris.held_out_labels != 0)


def test_a_log_loss_that_scikit_learn_denies_is_refused(iris, monkeypatch):
    right = demo.score

    def wrong(z, labels):
        out = right(z, labels)
        return out._replace(rows=out.rows + 2e-6)

    monkeypatch.setattr(demo, "score", wrong)
    with pytest.raises(
        demo.MismatchError, match=r"softmax regression: held-out log loss: expected"
    ):
        demo.evaluate(sure(1.0), {}, iris)


def test_the_same_seed_gives_the_same_numbers(iris):
    config = demo.Config("iris", epochs=2)
    first, second = (demo.train_and_compare(config, iris) for _ in range(2))
    assert first.histories == second.histories
    assert first.comparison == second.comparison
    assert demo.train_and_compare(config._replace(seed=1), iris).histories != first.histories


def test_the_comparison_is_of_the_rows(iris):
    result = demo.train_and_compare(demo.Config("iris", epochs=2), iris)
    rows = {name: e.score.rows for name, e in result.evaluations.items()}
    (pair,) = result.comparison.pairs
    losses = {name: e.log_loss for name, e in result.evaluations.items()}
    assert losses[result.comparison.best] == min(losses.values())
    theirs = scipy.stats.ttest_rel(rows[pair.worse], rows[pair.better])
    interval = theirs.confidence_interval(demo.CONFIDENCE)
    np.testing.assert_allclose([pair.low, pair.high], [interval.low, interval.high], rtol=1e-9)


@pytest.mark.deep
def test_each_half_is_tempered_by_the_other():
    """A model that is too sure by a factor is found out, and no row tells its own temperature."""
    rng = np.random.default_rng(0)
    z = 2 * rng.standard_normal((4000, 5))
    labels = np.argmax(z + rng.gumbel(size=z.shape), axis=-1)
    temperatures, tempered = demo.temper(3 * z, labels)
    np.testing.assert_allclose(temperatures, 3, rtol=0.15)
    assert temperatures[0] != temperatures[1]
    even, odd = temperatures
    np.testing.assert_allclose(tempered[::2], 3 * z[::2] / odd)
    np.testing.assert_allclose(tempered[1::2], 3 * z[1::2] / even)
    before, after = demo.score(3 * z, labels).summary, demo.score(tempered, labels).summary
    assert after.log_loss < before.log_loss
    assert after.expected_calibration_error < 0.2 * before.expected_calibration_error


def test_class_frequencies_are_the_least_a_model_should_beat(iris):
    share = np.bincount(iris.labels) / len(iris.labels)
    p = np.tile(share, (len(iris.held_out_labels), 1))
    assert demo.class_frequencies_log_loss(iris) == pytest.approx(log_loss(iris.held_out_labels, p))
