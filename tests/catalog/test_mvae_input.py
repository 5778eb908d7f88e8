"""Labels, annotators and arguments that M-VAE and its decisions refuse, and what they say."""

import numpy as np
import pytest

from fieldguide.catalog.data.noise import annotate, confusion_matrix, noisy_clusters, pair_noise, uniform_noise
from fieldguide.catalog.mvae import MVAE
from fieldguide.decisions import noise_matrix, relabel, suspects, true_labels
from fieldguide.inference import SchemaError, fit

SMALL = {"n_hidden": 8, "n_latent": 3, "n_second": 2}
X = np.random.default_rng(0).random((60, 5))
BOTH = {"fields": {"labels": ["labels", "b"]}}


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        ({"labels": np.full(60, np.nan)}, {}, "column 'labels' has no label at all; an annotator must have used"),
        ({"labels": np.full(60, 3)}, {}, "column 'labels' has only '3'"),
        ({"labels": np.arange(60) % 2, "b": np.ones(60, int)}, {"fields": {"labels": ["labels", "b"]}}, "'b' has only"),
        ({"labels": np.arange(60) % 2}, {"fields": {"labels": ["labels", "labels"]}}, "given twice among labels"),
        ({"labels": np.r_[2, np.arange(59) % 2]}, {"validation": np.array([0])}, "class number 2 .of 3.* has no label"),
        ({"labels": np.arange(60) % 2, "values": X}, {}, "there is both 'x' and 'values'"),
        ({"labels": np.arange(60) % 2, "b": np.r_[1, -np.ones(59, int)]}, BOTH, "'b' has only '1'; an annotator must"),
        ({"labels": np.arange(60) % 2, "b": -np.ones(60, int)}, BOTH, "column 'b' has no label at all; an annotator"),
        (
            {"labels": np.arange(60) % 2, "b": np.r_[1, 0, -np.ones(58, int)]},
            BOTH | {"validation": np.arange(2)},
            "annotator number 1 .of 2.* has no label among training cells",
        ),
        ({"labels": np.arange(60) % 2}, BOTH, "no .*'b'"),
        ({}, {}, "no .*'labels'"),
    ],
    ids=[
        "missing",
        "one-class",
        "one-label",
        "twice",
        "held-out",
        "both",
        "one-cell",
        "no-cell",
        "annotator-held-out",
        "no-column",
        "no-labels",
    ],
)
def test_data_that_do_not_fit_say_where(data, settings, message):
    with pytest.raises(SchemaError, match=message):
        fit("mvae", {"x": X} | data, progress=False, max_epochs=1, **SMALL, **settings)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MVAE(3, n_features=5, form="D"), "form must be one of A, B, C, not 'D'"),
        (lambda: MVAE(3, n_features=5, observation="nb"), "observation='nb' is not for the field 'x'"),
        (lambda: MVAE(3, n_features=5, initial=0.3), "initial must be between 1/3"),
        (lambda: MVAE(3, n_features=5, diagonal=-1), "diagonal must be a number of at least 0, not -1"),
        (lambda: MVAE(3, n_features=5, speed=-1.0), "speed must be a number of at least 0, not -1"),
        (lambda: MVAE(3, n_features=5, weight=float("nan")), "weight must be a number of at least 0, not nan"),
        (lambda: MVAE(3), "there is none"),
        (lambda: uniform_noise(1, 0.3), "1 class"),
        (lambda: pair_noise(3, 1.5), "rate must be in"),
        (lambda: annotate([0], [[0.5, 0.6], [0, 1]]), "row 0 of the noise matrix is no distribution"),
        (lambda: annotate([0, 5], np.eye(2)), "true class 5 of row 1"),
        (lambda: annotate([0], np.ones((1, 2))), "square"),
        (lambda: confusion_matrix([0], [0], 2), "class 1 has no label"),
        (lambda: noisy_clusters(labelled=0), "labelled must be a share"),
        (lambda: relabel([[0.5, 0.5]]), "there are no labels: pass labels="),
        (lambda: relabel([[0.5, 0.5]], labels=["7"]), "label '7' of row 0 .annotator 'labels'. is no class"),
        (lambda: relabel([[0.5, 0.5]], labels=["0", "1"]), "2 values for 1 cells"),
        (lambda: relabel([[0.5, 0.5]], labels=["0"], annotator="k"), "no annotator 'k'"),
        (lambda: noise_matrix([[0.5, 0.5]]), "there are no labels"),
        (lambda: noise_matrix([[0.5, 0.5]], ["0"], level=1), "level must be a number in"),
        (lambda: noise_matrix([[0.5, 0.5]], ["0"], draws=1), "draws must be a whole number of at least 2"),
        (lambda: noise_matrix([[0.5, 0.5]], [None]), "has given no label"),
        (lambda: suspects(true_labels([[0.5, 0.5]])), "suspects are read from"),
    ],
    ids=range(23),
)
def test_impossible_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
