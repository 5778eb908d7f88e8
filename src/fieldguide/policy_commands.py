"""The commands ``fieldguide policy`` and ``fieldguide allocate``: policies and budgets from tables."""

from pathlib import Path
from typing import Annotated, Any
from zipfile import BadZipFile

from tyro.conf import Positional, arg

from fieldguide.arguments import UsageError, check_paths, check_seed, check_whole
from fieldguide.tables import (
    IdColumn,
    Table,
    check_id,
    check_written,
    in_order,
    numbers,
    read_table,
    rows_like,
    rows_of,
    show_table,
    spelled,
    with_names,
    write_table,
)

LogFile = Annotated[Positional[Path], arg(metavar="LOG")]
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
    log: LogFile,
    policy: Annotated[Positional[Path], arg(metavar="POLICY")],
    action: str = "action",
    reward: str = "reward",
    propensity: str = "propensity",
    id: IdColumn = None,
    logging: Path | None = None,
    top: int | None = None,
    embedding: Path | None = None,
    level: float = 0.95,
    interval: str = "bootstrap",
    seed: int = 0,
    output: Path = Path("policy_value.csv"),
    report: Path | None = None,
) -> None:
    """Estimate what a policy would earn, from the log of another, by several estimators.

    Tables are CSV files, or by their ending .parquet or .feather.

    Args:
        log: Table with one row a context, its first column the name. For slates give the columns as a,b.
        policy: Table with a probability for each action (column), one row a context, or one row for all.
        action: Column of the log with the action.
        reward: Column with the reward.
        propensity: Column with the probability of the action under the logging policy.
        logging: Table like policy, of the logging policy; for selective importance sampling and embeddings.
        top: Its best so many actions are the selected set.
        embedding: Table with the category, or categories, of each action (row); for marginalised weights.
        level: Of the intervals.
        interval: bootstrap, bernstein or normal.
        seed: Of the bootstrap.
        output: File for the table of estimates.
        report: HTML file for table, figure and diagnostics.
    """
    check_paths([output, report], [log, policy, logging, embedding])
    check_written(output)
    check_seed(seed)
    check_whole(top=top)
    columns = _columns(action, reward, propensity)
    paths = [path for path in (log, policy, logging, embedding) if path is not None]
    tables = {path: read_table(path, columns[0] if path == log else (), id) for path in paths}
    check_id(id, *tables.values())
    taken, chances, known = rows_of(tables[log], id, sum(columns, [])), tables[policy], tables.get(logging)
    chosen = _policy(chances, id, taken, columns[0], log, known)
    drawn = None if known is None else _policy(known, id, taken, columns[0], log, chances)
    alike = None if embedding is None else with_names(tables[embedding], id)
    if drawn is not None:
        drawn = drawn.set_axis(spelled(str(logging), drawn.columns, chosen.columns), axis=1)
    if alike is not None:
        alike = rows_like(alike, chosen.columns, embedding)
    from fieldguide.decisions import evaluate_policy

    bandit_log = _bandit_log(taken, columns, list(chosen.columns), log)
    settings = {"level": level, "interval": interval, "seed": seed}
    evaluation = evaluate_policy(bandit_log, chosen, logging=drawn, top=top, embedding=alike, **settings)
    _show(evaluation, "estimator")
    best = evaluation.table.iloc[1] if len(evaluation.table) > 1 else evaluation.table.iloc[0]
    own = evaluation.table.loc["logging", "value"]
    summary = f"{len(bandit_log)} contexts; {best.name}: {best['value']:.5g} "
    summary += f"({best['low']:.5g} to {best['high']:.5g}), the log's own mean {own:.5g}."
    _write(evaluation, output, report, "Value of a policy", summary, ESTIMATE)


def learn(
    log: LogFile,
    context: Annotated[Positional[Path], arg(metavar="CONTEXT")],
    logging: Annotated[Positional[Path], arg(metavar="LOGGING")],
    action: str = "action",
    reward: str = "reward",
    propensity: str = "propensity",
    id: IdColumn = None,
    top: str = "auto",
    max_epochs: int = 10,
    seed: int = 0,
    output: Path = Path("learned_policy.csv"),
    report: Path | None = None,
) -> None:
    """Learn a policy from a log, and evaluate it on rows of the log that did not choose it.

    Tables are CSV files, or by their ending .parquet or .feather.

    Args:
        log: Table with one row a context, its first column the name.
        context: Table with the features (numbers) of the same rows.
        logging: Table with the logging policy's probability of each action (column) in these rows, or one row for all.
        action: Column of the log with the action.
        reward: Column with the reward.
        propensity: Column with the probability of the action under the logging policy.
        top: How many of the logging policy's best actions to choose from: a number, auto, or q0.9.
        max_epochs: Epochs of training.
        seed: Equal seeds give equal policies.
        output: File for the learned policy's probabilities in these contexts.
        report: HTML file for the evaluation.
    """
    check_paths([output, report], [log, context, logging])
    check_written(output)
    check_seed(seed)
    size: Any = int(top) if top.lstrip("-").isdigit() else top
    check_whole(max_epochs=max_epochs, top=size if isinstance(size, int) else None)
    columns = _columns(action, reward, propensity)
    tables = read_table(log, columns[0], id), read_table(context, (), id), read_table(logging, (), id)
    check_id(id, *tables)
    taken = rows_of(tables[0], id, sum(columns, []))
    _require_names(taken, log, context)
    x = rows_like(numbers(with_names(tables[1], id), context), taken.index, context).to_numpy()
    chances = _policy(tables[2], id, taken, columns[0], log)
    if len(chances) == 1:
        chances = chances.iloc[[0] * len(taken)].set_axis(taken.index, axis=0)
    from fieldguide.catalog import learn_policy

    bandit_log = _bandit_log(taken, columns, list(chances.columns), log)
    learned = learn_policy(bandit_log, x, chances, top=size, seed=seed, max_epochs=max_epochs)
    policy = learned.predict(x, chances.to_numpy(), taken.index).frame()
    write_table(policy, output)
    _show(learned.evaluation, "estimator")
    summary = f"p = {learned.top} actions; evaluated on {learned.evaluation.settings['rows']} rows that chose nothing."
    print(summary)
    print(f"policy: {output}")
    _write(learned.evaluation, None, report, "Learned policy", summary, ESTIMATE)


def allocate(
    reward: Annotated[Positional[Path], arg(metavar="REWARD")],
    cost: Annotated[Positional[Path], arg(metavar="COST")],
    budget: Annotated[Positional[float], arg(metavar="BUDGET")],
    id: IdColumn = None,
    redeemed: Path | None = None,
    overspend: float | None = None,
    draws: Path | None = None,
    integer: bool = False,
    output: Path = Path("allocation.csv"),
    report: Path | None = None,
) -> None:
    """Give each customer the option that spends a budget best.

    Tables are CSV files, or by their ending .parquet or .feather.

    Args:
        reward: Table with the expected reward of each option (column), a row a customer, its first column the name.
        cost: Table with the costs of the same options: one row for all, or one a customer.
        budget: For all customers together.
        redeemed: Table like reward, with the probability that each option is redeemed: it costs only then.
        overspend: Largest probability with which what is really spent may exceed the budget (with redeemed).
        draws: NumPy file (.npy) of posterior draws of the rewards, draws x customers x options: for their spread.
        integer: Give everyone one option outright.
        output: File for the options.
        report: HTML file with the budget curve.
    """
    check_paths([output, report], [reward, cost, redeemed, draws])
    check_written(output)
    if overspend is not None and redeemed is None:
        raise UsageError("overspend needs redeemed: --overspend P asks for --redeemed FILE")
    tables = {path: read_table(path, (), id) for path in (reward, cost, redeemed) if path is not None}
    check_id(id, *tables.values())

    def named(path: Path, whole: bool) -> Any:
        others = set().union(*(table.columns for other, table in tables.items() if other != path))
        return numbers(with_names(tables[path], id, others, whole), path)

    rewards = named(reward, False)
    costs = _like(rewards, named(cost, True), cost, reward)
    chance = None if redeemed is None else _like(rewards, named(redeemed, True), redeemed, reward)
    if chance is not None and len(chance) == 1 < len(rewards):
        chance = chance.iloc[[0] * len(rewards)].set_axis(rewards.index, axis=0)
    drawn = None if draws is None else _npy(draws)
    if drawn is not None and drawn.shape[1:] != rewards.shape:
        raise ValueError(f"{draws} has shape {drawn.shape}: it must be draws x {len(rewards)} x {rewards.shape[1]}")
    from fieldguide import decisions

    prices: Any = costs.iloc[0] if len(costs) == 1 else costs
    allocation = decisions.allocate(rewards, prices, budget, redeemed=chance, overspend=overspend, integer=integer)
    if drawn is not None:
        paid = () if chance is None else (costs.to_numpy(), chance.to_numpy())
        allocation.spread = allocation.outcomes(drawn, *paid)
    certificate = allocation.diagnostics.iloc[0]
    show_table(allocation.table["option"].value_counts().rename("customers").reset_index(), right=True)
    summary = f"value {allocation.value:.6g}, spent {certificate['spent']:.6g} of {budget:.6g}, "
    summary += f"gap {certificate['gap']:.2g}"
    if not integer:  # whole options have no price
        summary += f"; another unit of budget would bring {certificate['multiplier']:.5g}"
    summary += "."
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


def _npy(path: Path) -> Any:
    """Read draws that `numpy.save` wrote."""
    import numpy as np

    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    try:
        draws = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as an array: {error}") from error
    if not isinstance(draws, np.ndarray):
        raise ValueError(f"{path} holds several arrays (.npz): save the one with the draws by numpy.save, as .npy")
    return draws


def _like(rewards: Any, table: Any, path: Path, reward: Path) -> Any:
    """Return a table with the customers and options of the rewards, in their order; one row stands for all."""
    table = table.set_axis(spelled(str(path), table.columns, rewards.columns), axis=1)
    for name in table.columns.symmetric_difference(rewards.columns, sort=False):
        without, other = (path, reward) if name in rewards else (reward, path)
        raise ValueError(f"{without} has no option {name!r}, which {other} has: both must have the same options")
    return (table if len(table) == 1 else rows_like(table, rewards.index, path))[list(rewards.columns)]


def _columns(*names: str) -> list[list[str]]:
    """Columns of actions, rewards and propensities; those of slates are given as a,b."""
    return [name.split(",") for name in names]


def _bandit_log(table: Any, columns: list[list[str]], actions: list[str], path: Path) -> Any:
    """Return the log in a table, from its columns of actions, rewards and propensities."""
    from fieldguide.decisions import BanditLog

    table = table.copy()
    for name in table.columns.intersection(columns[0]):
        table[name] = spelled(f"{path}: {name}", table[name], actions)
    wanted = [name for name in (*columns[1], *columns[2]) if name in table]
    table[wanted] = numbers(table[wanted], path)
    return BanditLog.read(table, *columns, actions=actions)


def _policy(table: Table, column: str | None, taken: Any, action: list[str], log: Path, other: Any = None) -> Any:
    """Probabilities [n or 1, K] of a policy, by the log's rows; actions in an order that no file decides."""
    from fieldguide.inference.checks.labels import label_texts

    options = set() if other is None else set(other.columns)
    for name in taken.columns.intersection(action):
        options |= {text for text in label_texts(taken[name]) if text is not None}
    chances = numbers(with_names(table, column, options, whole=True), table.path)
    if len(chances) > 1:
        _require_names(taken, log, table.path)
        chances = rows_like(chances, taken.index, table.path)
    return chances[in_order(chances.columns)]


def _require_names(taken: Any, log: Path, other: Path | None) -> None:
    import pandas as pd

    if isinstance(taken.index, pd.RangeIndex):
        raise ValueError(
            f"the rows of {log} have no names to find them in {other} by: write the same names as the first column of "
            "both, or say which column they are with --id COLUMN"
        )


def _show(decision: Any, index: str) -> None:
    show_table(decision.table.rename_axis(index).reset_index().round(5), right=True)
    for note in decision.notes:
        print(note)


def _write(decision: Any, output: Path | None, report: Path | None, title: str, summary: str, columns: dict) -> None:
    if output is not None:
        write_table(decision.table, output)
        print(f"table: {output}")
    if report is not None:
        from datetime import date

        from fieldguide.inference.checks.files import write_text
        from fieldguide.reports.decision_page import decision_page

        write_text(report, decision_page(decision, title, summary, columns, date.today().isoformat()))
        print(f"report: {report}")


POLICY = {"evaluate": evaluate, "learn": learn}
