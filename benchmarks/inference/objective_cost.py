"""What an objective costs: one training step of scVI under each, beside the same step written by hand in bare torch.

128 cells x 2,000 genes, negative binomial, K = 25 particles, one thread; both sides have the same networks, likelihood
and optimiser and run in one process in alternation. CPU seconds of a step (draws, loss, backward, Adam): medians over
rounds. By hand there are no Pyro handlers, no sites and no second run of the guide: loc and scale are detached.

Memory: peak of what a step allocates (torch's profiler) at K = 5, 25 and 50. What one more particle takes is printed in
tensors of 128 x 2,000 single-precision numbers, and has to be the same from 5 to 25 as from 25 to 50 (linear in K).

Nothing is published on either. Targets: 1.15 times the hand-written step at most, in time and in memory a particle.
"""

import argparse
import itertools
import statistics
import time

import torch
from torch.distributions import Normal

from benchmarks.common import show, verdict
from fieldguide.catalog.parts.likelihoods import NegativeBinomial
from fieldguide.catalog.scvi import SCVI
from fieldguide.inference import CUBO, ELBO, IWAE, Chi, ForwardKL, Renyi, Step, VRMax, WakeWake

CELLS, GENES = 128, 2000
OBJECTIVES = {
    "ELBO reparam": lambda k: ELBO(k),
    "ELBO stl": lambda k: ELBO(k, "stl"),
    "IWAE reparam": lambda k: IWAE(k, "reparam"),
    "IWAE dreg": lambda k: IWAE(k),
    "Renyi 0.5 dreg": lambda k: Renyi(0.5, k),
    "VRMax": lambda k: VRMax(k),
    "WakeWake score": lambda k: WakeWake(k),
    "WakeWake dreg": lambda k: WakeWake(k, "dreg"),
    "Chi path": lambda k: Chi(k),
    "Chi score": lambda k: Chi(k, "score"),
    "ForwardKL dreg": lambda k: ForwardKL(k, "dreg"),
    "CUBO path": lambda k: CUBO(2, k),
}


def by_hand(name, program, counts, k):
    """The loss of one step, for the networks of ``program``: {group: loss}, or one loss for both groups."""
    found = program.encoder_z(counts.log1p()).base_dist
    loc, scale = found.loc, found.scale
    z = loc + scale * torch.randn(k, *loc.shape)
    path = any(word in name for word in ("stl", "dreg", "path"))
    score = "score" in name
    alias = z.detach() if score else z.view_as(z)
    q = Normal(loc.detach(), scale.detach()) if path else Normal(loc, scale)
    log_q = q.log_prob(alias).sum(-1)
    logits = program.head_rho(program.decoder(alias))
    likelihood = NegativeBinomial.from_logits(logits, counts.sum(-1, keepdim=True).log(), program.log_dispersion)
    log_p = Normal(0.0, 1.0).log_prob(alias).sum(-1) + likelihood.log_prob(counts)
    log_w = log_p - log_q
    fixed = log_w.detach()
    share = torch.softmax(fixed, 0)

    def surrogate(r, ratio=None):
        if ratio is not None:
            alias.register_hook(lambda gradient: gradient * ratio[..., None])
        return -(r * log_w).sum(0).mean()

    match name:
        case "ELBO reparam" | "ELBO stl":
            return -log_w.mean(0).mean()
        case "IWAE reparam":
            return -torch.logsumexp(log_w, 0).mean()
        case "IWAE dreg":
            return surrogate(share, share)
        case "Renyi 0.5 dreg":
            v = torch.softmax(0.5 * fixed, 0)
            return surrogate(v, 0.5 + 0.5 * v)
        case "VRMax":
            return -log_w.amax(0).mean()
        case "WakeWake score":
            return -(share * log_p + share * log_q).sum(0).mean()
        case "WakeWake dreg":
            return surrogate(share, 1 - share)
        case "Chi path":
            return surrogate(share, share / (share**2).sum(0))
        case "Chi score":
            return -(share * log_p + 0.5 * torch.softmax(2 * fixed, 0) * log_q).sum(0).mean()
        case "ForwardKL dreg":
            return {"phi": -((share - share**2) * log_w).sum(0).mean()}
        case "CUBO path":
            return {"phi": -(torch.softmax(2 * fixed, 0) * log_w).sum(0).mean()}
    raise ValueError(name)


class Side:
    """One program with its optimiser, trained by ours or by hand."""

    def __init__(self, name, k, hand):
        torch.manual_seed(0)
        self.name, self.k, self.hand = name, k, hand
        self.program = SCVI(n_genes=GENES, n_latent=10, n_hidden=128, dropout=0.1).train()
        self.groups = self.program.groups()
        self.optimizer = torch.optim.Adam(self.program.parameters(), lr=1e-3, eps=0.01, fused=True)
        self.objective = OBJECTIVES[name](k)

    def step(self, counts):
        batch = {"counts": counts, "index": torch.arange(len(counts))}
        if self.hand:
            losses = by_hand(self.name, self.program, counts, self.k)
        else:
            losses = self.objective(Step(self.program, batch, 10_000))
        self.optimizer.zero_grad(set_to_none=True)
        if isinstance(losses, dict):
            for group, loss in losses.items():
                found = torch.autograd.grad(loss, self.groups[group], allow_unused=True)
                for parameter, gradient in zip(self.groups[group], found, strict=True):
                    parameter.grad = gradient
        else:
            losses.backward()
        self.optimizer.step()


def counts_like_cells():
    """Counts [B, G] with about nine zeros in ten."""
    torch.manual_seed(1)
    counts = torch.poisson(torch.distributions.Gamma(0.1, 0.5).sample((CELLS, GENES)))
    counts[:, 0] += 1
    return counts


def seconds(names, k, rounds):
    """Rows of the table of times: median CPU seconds of a step, by hand and ours, alternating."""
    counts, rows = counts_like_cells(), []
    for name in names:
        sides = {"by hand": Side(name, k, True), "fieldguide": Side(name, k, False)}
        times = {which: [] for which in sides}
        for number in range(rounds + 1):
            for which, side in sides.items():
                start = time.process_time()
                side.step(counts)
                if number:  # the first warms up
                    times[which].append(time.process_time() - start)
        middle = {which: statistics.median(found) for which, found in times.items()}
        ratio = statistics.median(b / a for a, b in zip(times["by hand"], times["fieldguide"], strict=True))
        rows.append({"objective": name} | middle | {"ratio": ratio})
    return rows


def peak(name, k, hand):
    """Peak of the memory that one step holds at a time, in MB, the parameters not counted."""
    side, counts = Side(name, k, hand), counts_like_cells()
    side.step(counts)
    with torch.profiler.profile(profile_memory=True) as profile:
        side.step(counts)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    return max(held) / 2**20


def memory(names):
    """Rows of the table of memory."""
    rows, tensor = [], CELLS * GENES * 4 / 2**20
    for name in names:
        for hand in (True, False):
            at = {k: peak(name, k, hand) for k in (5, 25, 50)}
            row = {"objective": name, "side": "by hand" if hand else "fieldguide"} | {
                f"K={k}": v for k, v in at.items()
            }
            row["5 to 25"] = (at[25] - at[5]) / 20 / tensor
            row["25 to 50"] = (at[50] - at[25]) / 25 / tensor
            rows.append(row)
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--particles", type=int, default=25)
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--objectives", nargs="+", default=list(OBJECTIVES))
    p.add_argument("--memory-of", nargs="*", default=["IWAE dreg", "Chi path", "WakeWake score"])
    a = p.parse_args()
    torch.set_num_threads(1)
    rows = seconds(a.objectives, a.particles, a.rounds)
    show(f"CPU seconds of one step, K = {a.particles}, {CELLS} cells x {GENES} genes, medians of {a.rounds}", rows)
    ok = True
    for row in rows:
        found = row["ratio"]
        ok &= verdict(f"{row['objective']}: {found:.2f} times the step by hand, at most 1.15", found <= 1.15)
    if not a.memory_of:
        return ok
    rows = memory(a.memory_of)
    show("Peak memory in MB; tensors of 128 x 2,000 for each further particle", rows)
    for hand, ours in zip(rows[::2], rows[1::2], strict=True):
        name, slope = ours["objective"], ours["25 to 50"]
        found = slope / hand["25 to 50"]
        ok &= verdict(f"{name}: memory linear in K", abs(slope / ours["5 to 25"] - 1) <= 0.15)
        ok &= verdict(f"{name}: memory a particle {found:.2f} times that by hand, at most 1.15", found <= 1.15)
    return ok


if __name__ == "__main__":
    raise SystemExit(not main())
