"""The commands ``fieldguide policy`` and ``fieldguide allocate``: policies and budgets from CSV files."""

from pathlib import Path
from typing import Any

from tyro.conf import Positional

from fieldguide.arguments import check_output, show_table, write_table

ESTIMATE = {
    "value": "Estimated mean reward for an item under the policy; of the row 'logging', the log's own mean.",
    "se": "Standard error.",
    "low": "Lower end of the interval.",
    "high": "Upper end of the interval.",
    "over_logging": "The value as a multiple of the log's own mean.",
    "mean_weight": "Mean importance weight: near 1 where the log covers the policy and its propensities are right.",
    "ess": "Effective number of logged items behind the estimate.",
    "ess_share": "That, as a share of all items.",
    "max_weight": "Largest weight.",
    "zero_weight": "Share of items that count for nothing.",
    "khat": "Pareto shape of the weights' tail; above khat_limit neither estimate nor interval is to be trusted.",
    "unsupported": "Share of the policy on actions that the log never takes.",
    "set_mass": "Share of the policy on the selected set of actions.",
}
SPENDING = {
    "option": "The option of the customer; of one between two, the likelier.",
    "cost": "Expected cost.",
    "reward": "Expected reward.",
    "other": "The other option of a customer between two.",
    "probability": "Probability of the option.",
    "spent": "Sum of the costs.",
    "multiplier": "What another unit of budget would bring: the price of the rule for new customers.",
    "value": "Sum of the rewards.",
    "dual": "What no policy within the budget can exceed.",
    "gap": "By how much this one stays below it.",
    "randomised": "Customers between two options.",
    "spending_bound": "What is really spent stays within this, with the probability asked for.",
}


def evaluate(
    log: Positional[Path],
    policy: Positional[Path],
    action: str = "action",
    reward: str = "reward",
    propensity: str = "propensity",
    logging: Path | None = None,
    top: int | None = None,
    embedding: Path | None = None,
    level: float = 0.95,
    interval: str = "bootstrap",
    seed: int = 0,
    output: Path = Path("policy.csv"),
    report: Path | None = None,
) -> None:
    """Estimate what a policy would earn, from the log of another, by several estimators.

    Args:
        log: CSV file, one row a context, its first column the name. For slates give the columns as a,b.
        policy: CSV file with a probability for each action (column), one row a context, or one row for all.
        action: Column of the log with the action.
        reward: Column with the reward.
        propensity: Column with the probability of the action under the logging policy.
        logging: CSV file like policy, of the logging policy; for selective importance sampling and embeddings.
        top: Its best so many actions are the selected set.
        embedding: CSV file with the category, or categories, of each action (row); for marginalised weights.
        level: Of the intervals.
        interval: bootstrap, bernstein or normal.
        seed: Of the bootstrap.
        output: CSV file for the table.
        report: HTML file for table, figure and diagnostics.
    """
    for path in filter(None, (output, report)):
        check_output(path)
    from fieldguide.decisions import evaluate_policy

    chances = _named(_csv(policy))
    bandit_log = _bandit_log(_csv(log), (action, reward, propensity), list(chances.columns))
    known = None if logging is None else _named(_csv(logging))
    alike = None if embedding is None else _csv(embedding).rename(index=str)
    settings = {"level": level, "interval": interval, "seed": seed}
    evaluation = evaluate_policy(bandit_log, chances, logging=known, top=top, embedding=alike, **settings)
    _show(evaluation, "estimator")
    best = evaluation.table.iloc[1] if len(evaluation.table) > 1 else evaluation.table.iloc[0]
    own = evaluation.table.loc["logging", "value"]
    summary = f"{len(bandit_log)} contexts; {best.name}: {best['value']:.5g} "
    summary += f"({best['low']:.5g} to {best['high']:.5g}), the log's own mean {own:.5g}."
    _write(evaluation, output, report, "Value of a policy", summary, ESTIMATE)


def learn(
    log: Positional[Path],
    context: Positional[Path],
    logging: Positional[Path],
    action: str = "action",
    reward: str = "reward",
    propensity: str = "propensity",
    top: str = "auto",
    max_epochs: int = 10,
    seed: int = 0,
    output: Path = Path("learned_policy.csv"),
    report: Path | None = None,
) -> None:
    """Learn a policy from a log, and evaluate it on rows of the log that did not choose it.

    Args:
        log: CSV file, one row a context, its first column the name.
        context: CSV file with the features (numbers) of the same rows.
        logging: CSV file with the logging policy's probability of each action (column) in the same rows.
        action: Column of the log with the action.
        reward: Column with the reward.
        propensity: Column with the probability of the action under the logging policy.
        top: How many of the logging policy's best actions to choose from: a number, auto, or q0.9.
        max_epochs: Epochs of training.
        seed: Equal seeds give equal policies.
        output: CSV file for the learned policy's probabilities in these contexts.
        report: HTML file for the evaluation.
    """
    for path in filter(None, (output, report)):
        check_output(path)
    from fieldguide.catalog import learn_policy

    chances, taken, features = _named(_csv(logging)), _csv(log), _csv(context)
    missing = taken.index.difference(features.index)
    if len(missing):
        raise ValueError(f"{context} has no row {missing[0]!r}")
    bandit_log = _bandit_log(taken, (action, reward, propensity), list(chances.columns))
    x = features.loc[taken.index].to_numpy(dtype=float)
    size: Any = int(top) if top.isdigit() else top
    learned = learn_policy(bandit_log, x, chances, top=size, seed=seed, max_epochs=max_epochs)
    _show(learned.evaluation, "estimator")
    summary = f"p = {learned.top} actions; evaluated on {learned.evaluation.settings['rows']} rows that chose nothing."
    print(summary)
    _write(learned.evaluation, None, report, "Learned policy", summary, ESTIMATE)
    write_table(learned.predict(x, chances.loc[taken.index].to_numpy(), taken.index).frame(), output)
    print(f"policy: {output}")


def allocate(
    reward: Positional[Path],
    cost: Positional[Path],
    budget: Positional[float],
    redeemed: Path | None = None,
    overspend: float | None = None,
    draws: Path | None = None,
    integer: bool = False,
    output: Path = Path("allocation.csv"),
    report: Path | None = None,
) -> None:
    """Give each customer the option that spends a budget best.

    Args:
        reward: CSV file with the expected reward of each option (column), a row a customer, its first column the name.
        cost: CSV file with the costs of the same options: one row for all, or one a customer.
        budget: For all customers together.
        redeemed: CSV file like reward, with the probability that each option is redeemed: it costs only then.
        overspend: Largest probability with which what is really spent may exceed the budget (with redeemed).
        draws: NumPy file (.npy) of posterior draws of the rewards, draws x customers x options: for their spread.
        integer: Give everyone one option outright.
        output: CSV file for the options.
        report: HTML file with the budget curve.
    """
    for path in filter(None, (output, report)):
        check_output(path)
    from fieldguide import decisions

    costs, rewards = _csv(cost), _csv(reward)
    prices: Any = costs.iloc[0] if len(costs) == 1 else costs
    chance = None if redeemed is None else _csv(redeemed)
    allocation = decisions.allocate(rewards, prices, budget, redeemed=chance, overspend=overspend, integer=integer)
    if draws is not None:
        paid = () if chance is None else (_like(rewards, costs), _like(rewards, chance))
        allocation.spread = allocation.outcomes(_npy(draws), *paid)
    certificate = allocation.diagnostics.iloc[0]
    show_table(allocation.table["option"].value_counts().rename("customers").reset_index().astype(str), right=True)
    summary = f"value {allocation.value:.6g}, spent {certificate['spent']:.6g} of {budget:.6g}, "
    summary += f"gap {certificate['gap']:.2g}; another unit of budget would bring {certificate['multiplier']:.5g}."
    if overspend is not None:
        summary += f" Spending within {certificate['spending_bound']:.6g} at probability {1 - overspend:g}."
    if allocation.spread is not None:
        spread = allocation.spread.settings
        summary += f" Over draws, 90 %: value {spread['value_low']:.6g} to {spread['value_high']:.6g}"
        summary += f", spent {spread['spent_low']:.6g} to {spread['spent_high']:.6g}." if chance is not None else "."
    print(summary)
    for note in allocation.notes:
        print(note)
    _write(allocation, output, report, "Allocation of a budget", summary, SPENDING)


def _csv(path: Path) -> Any:
    """Read a CSV file whose first column names the rows."""
    import pandas as pd

    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    try:
        return pd.read_csv(path, index_col=0)
    except (ValueError, pd.errors.ParserError) as error:
        raise ValueError(f"{path} cannot be read as a CSV file: {error}") from error


def _npy(path: Path) -> Any:
    """Read draws that `numpy.save` wrote."""
    import numpy as np

    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as an array: {error}") from error


def _like(rewards: Any, table: Any) -> Any:
    """Return a checked table as an array in the order of the rewards; one row stands for all."""
    return (table if len(table) == 1 else table.loc[rewards.index])[list(rewards.columns)].to_numpy()


def _bandit_log(table: Any, columns: tuple[str, str, str], actions: list[str]) -> Any:
    """Return the log in a table, from its columns of actions, rewards and propensities (several as a,b)."""
    from fieldguide.decisions import BanditLog

    action, reward, propensity = (name.split(",") for name in columns)
    table = table.astype(dict.fromkeys(table.columns.intersection(action), str))
    return BanditLog.read(table, action, reward, propensity, actions=actions)


def _named(table: Any) -> Any:
    """Return the table with strings as names of its columns."""
    return table.set_axis(table.columns.astype(str), axis=1)


def _show(decision: Any, index: str) -> None:
    show_table(decision.table.rename_axis(index).reset_index().round(5).astype(str), right=True)
    for note in decision.notes:
        print(note)


def _write(decision: Any, output: Path | None, report: Path | None, title: str, summary: str, columns: dict) -> None:
    if output is not None:
        write_table(decision.table, output)
        print(f"table: {output}")
    if report is not None:
        from datetime import date

        from fieldguide.reports.decision_page import decision_page

        report.write_text(decision_page(decision, title, summary, columns, date.today().isoformat()), encoding="utf-8")
        print(f"report: {report}")


POLICY = {"evaluate": evaluate, "learn": learn}
