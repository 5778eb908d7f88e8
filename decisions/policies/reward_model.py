"""Predicted rewards of all actions, each row by a model that did not see it."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fieldguide.decisions.messages import named
from fieldguide.decisions.policies.bandit_log import BanditLog


def predict_rewards(
    log: BanditLog, context: ArrayLike | pd.DataFrame, model: Any = None, folds: int = 3, seed: int = 0
) -> pd.DataFrame:
    """Return predicted rewards [n, K] by cross-fitting, for the direct and the doubly robust estimators.

    Parameters
    ----------
    log : BanditLog
    context : array or DataFrame [n, F]
        Numbers that describe the context.
    model : scikit-learn estimator, optional
        Fitted on context and one-hot action. By default a logistic regression where rewards are 0 and 1, and ridge
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

    x = np.asarray(context, dtype=np.float64)
    x = x[:, None] if x.ndim == 1 else x
    if len(x) != len(log):
        raise ValueError(f"context has {len(x)} rows, the log {len(log)}")
    missing = np.argwhere(~np.isfinite(x))
    if missing.size:
        row, column = missing[0]
        raise ValueError(f"context of row {named(log.rows, row)}, column {column} is {x[row, column]}")
    if not 2 <= folds <= len(log):
        raise ValueError(f"folds must be between 2 and the {len(log)} rows, not {folds}")
    binary = bool(np.isin(log.reward, (0, 1)).all())
    if np.ptp(log.reward) == 0:
        raise ValueError(f"all rewards are {log.reward.flat[0]:g}: there is nothing to learn")
    if model is None:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000) if binary else Ridge())
    count = len(log.actions)
    rewards = np.zeros((len(log), count))

    def with_action(rows: np.ndarray, codes: np.ndarray) -> np.ndarray:
        return np.hstack([x[rows], np.eye(count)[codes]])

    for rest, out in KFold(folds, shuffle=True, random_state=seed).split(x):
        rows = np.repeat(rest, log.action.shape[1])
        gained = log.reward[rest].ravel()
        if binary and np.ptp(gained) == 0:  # too rare to be in every fold
            rewards[out] = gained[0]
            continue
        fitted: Any = clone(model)
        fitted.fit(with_action(rows, log.action[rest].ravel()), gained)
        for a in range(count):
            inputs = with_action(out, np.full(len(out), a))
            rewards[out, a] = fitted.predict_proba(inputs)[:, 1] if is_classifier(fitted) else fitted.predict(inputs)
    return pd.DataFrame(rewards, index=log.rows, columns=log.actions)
