"""Predicted rewards of all actions, each row by a model that did not see it."""

from typing import Any

import numpy as np
import pandas as pd

from fieldguide.decisions.messages import real_array
from fieldguide.decisions.policies.bandit_log import BanditLog
from fieldguide.inference.checks.arguments import checked_int

MOST_CLASSES = 50
"""Different rewards up to which a classifier may predict them."""


def predict_rewards(log: Any, context: Any, model: Any = None, folds: Any = 3, seed: Any = 0) -> pd.DataFrame:
    """Return predicted rewards [n, K] by cross-fitting, for the direct and the doubly robust estimators.

    Parameters
    ----------
    log : BanditLog
    context : array or DataFrame [n, F]
        Numbers that describe the context; a table is found by the names of its rows.
    model : scikit-learn estimator, optional
        Fitted on context and one-hot action; of a classifier, whose classes are the rewards, the expected reward is
        taken. By default a logistic regression where rewards are 0 and 1, and ridge
        regression elsewhere, on standardised numbers.
    folds : int
        Each row is predicted by a model fitted on the other folds; the items of a slate stay together.
    seed : int
        Of the folds.

    Raises
    ------
    ValueError
        Naming the row of a missing number; if there are fewer rows than folds; if all rewards are equal.

    Examples
    --------
    >>> log = BanditLog.of([0, 1] * 20, [0, 1] * 20, [0.5] * 40, actions=["no", "yes"])
    >>> predict_rewards(log, np.zeros((40, 1))).iloc[0].round(1).tolist()
    [0.1, 0.9]
    """
    from sklearn.base import clone, is_classifier
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.model_selection import KFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if not isinstance(log, BanditLog):
        raise TypeError(f"log must be a BanditLog, not {type(log).__name__}")
    if isinstance(context, pd.Series):  # one number a row is one column
        context = context.to_frame()
    elif not isinstance(context, pd.DataFrame):
        context = real_array("context", context)
        context = context[:, None] if context.ndim == 1 else context
    x, folds, seed = log.context(context), checked_int("folds", folds), checked_int("seed", seed, 0, 2**32 - 1)
    if not 2 <= folds <= len(log):
        raise ValueError(f"folds must be between 2 and the {len(log)} rows, not {folds}")
    binary = bool(np.isin(log.reward, (0, 1)).all())
    if np.ptp(log.reward) == 0:
        raise ValueError(f"all rewards are {log.reward.flat[0]:g}: there is nothing to learn")
    if model is None:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000) if binary else Ridge())
    if isinstance(model, type):
        raise TypeError(f"model must be an estimator, not the class {model.__name__}: make one, {model.__name__}()")
    if not hasattr(model, "fit"):
        raise TypeError(f"model must be a scikit-learn estimator, not {type(model).__name__}")
    classes = is_classifier(model)
    if classes and not hasattr(model, "predict_proba"):
        raise TypeError(f"model {type(model).__name__} has no predict_proba: expected rewards need probabilities")
    if classes and len(np.unique(log.reward)) > MOST_CLASSES:
        raise TypeError(
            f"model {type(model).__name__} is a classifier, and the rewards take {len(np.unique(log.reward))} values: "
            "give a regressor"
        )
    count = len(log.actions)
    rewards = np.zeros((len(log), count))

    def with_action(rows: np.ndarray, codes: np.ndarray) -> np.ndarray:
        return np.hstack([x[rows], np.eye(count)[codes]])

    for rest, out in KFold(folds, shuffle=True, random_state=seed).split(x):
        rows = np.repeat(rest, log.action.shape[1])
        gained = log.reward[rest].ravel()
        if (binary or classes) and np.ptp(gained) == 0:  # too rare to be in every fold
            rewards[out] = gained[0]
            continue
        fitted: Any = clone(model)
        values, codes = np.unique(gained, return_inverse=True)
        fitted.fit(with_action(rows, log.action[rest].ravel()), codes if classes else gained)
        for a in range(count):
            inputs = with_action(out, np.full(len(out), a))
            if classes:  # the expectation over the rewards that are its classes
                rewards[out, a] = fitted.predict_proba(inputs) @ values[np.asarray(fitted.classes_, dtype=int)]
            else:
                rewards[out, a] = fitted.predict(inputs)
    return pd.DataFrame(rewards, index=log.rows, columns=log.actions)
