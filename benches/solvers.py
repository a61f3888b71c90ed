"""pushpull against the field's own solvers on one problem: marginal error, agreement and time, at equal samples.

    python3 -m venv venv && venv/bin/pip install numpy==2.4.6 scipy==1.17.1 POT==0.9.7.post1 jax==0.10.2 ott-jax==0.6.0
    venv/bin/python benches/solvers.py

Runs `cargo bench --bench solvers` for our side. Everything random comes from --seed. The three problems, for unit vectors and cost 1 − cos:

* even: one reference set, every row counts alike. The balanced semi-discrete problem. The stochastic solvers (POT `ot.semidiscrete`, OTT
  `SemidiscreteSolver`) get as many samples as pushpull looked at, drawn from the same rows; each with its own defaults and with
  the best learning rate of a grid, chosen on this very problem in hindsight, which favours them.
* pull: push 0 and a fixed temperature, POT `sinkhorn_unbalanced` with reg_m = (τ − ε, inf).
* push-pull: push 1. No other solver states the joint problem, so POT `sinkhorn_log` gets pushpull's weights and solves either side.

The marginal error is ‖p − q‖₁, computed here in float64 from each solver's potential, over the sample and over fresh rows of the same
distribution (where sampling noise alone makes most of it). OTT's `converged` is not looked at: version 0.6.0 says False after an early stop.
Its time is that of a second call, without compilation. Ours is until the potentials are done.
"""
import argparse
import json
import pathlib
import subprocess
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import ot
import ott
from ott.geometry.semidiscrete_pointcloud import SemidiscretePointCloud
from ott.problems.linear.semidiscrete_linear_problem import SemidiscreteLinearProblem
from ott.solvers.linear.semidiscrete import SemidiscreteSolver

BATCH = 1024


def unit(v):
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def blob(rng, centres, rows, spread):
    picked = centres[rng.integers(len(centres), size=rows)]
    return unit(picked + spread * rng.normal(size=picked.shape) / np.sqrt(picked.shape[1])).astype(np.float32)


def cost(x, y):
    return 1.0 - x.astype(np.float64) @ y.astype(np.float64).T


def transform(c, g, eps):
    """Soft c-transform and responsibilities, even masses."""
    a = (g[None] - c) / eps - np.log(len(g))
    m = a.max(1, keepdims=True)
    e = np.exp(a - m)
    s = e.sum(1, keepdims=True)
    return -eps * (np.log(s) + m)[:, 0], e / s


def marginal_error(pi, w):
    return np.abs(w @ pi / w.sum() - 1 / pi.shape[1]).sum()


def centred(g):
    g = np.asarray(g, dtype=np.float64)
    return g - g.mean()


def timed(call):
    start = time.perf_counter()
    out = call()
    return out, time.perf_counter() - start


class Table:
    def __init__(self):
        self.lines = []

    def add(self, problem, solver, samples, errors, fresh, off, seconds):
        line = f"| {problem} | {solver} | {samples and f'{samples:,}' or 'all, often'} | {errors} | {fresh} | {off} | {seconds:.2f} |"
        print(line, flush=True)
        self.lines.append(line)


def pot_semidiscrete(x, y, eps, samples, seed, **options):
    rng = np.random.default_rng(seed)
    steps = max(1, samples // BATCH)
    return timed(lambda: ot.semidiscrete.solve_semidiscrete(
        y, lambda b: x[rng.integers(len(x), size=b)], metric=lambda a, b: 1.0 - a @ b.T, reg=eps, max_iter=steps, batch_size=BATCH, **options))


def ott_semidiscrete(x, y, eps, samples, seed, optimizer, ema):
    # Their squared distance is twice our cost on unit vectors, so epsilon and potential are twice ours.
    rows, steps = jnp.asarray(x), max(1, samples // BATCH)
    sampler = lambda key, shape, dtype: rows[jax.random.randint(key, (shape[0],), 0, len(x))]
    problem = SemidiscreteLinearProblem(SemidiscretePointCloud(sampler, jnp.asarray(y), epsilon=2 * eps))
    # The error is an estimate by further samples; it is taken once, at the end, and never stops the run.
    solver = jax.jit(SemidiscreteSolver(
        num_iterations=steps, batch_size=BATCH, optimizer=optimizer, error_eval_every=steps, error_num_repeats=1, threshold=-2.0,
        potential_ema=ema))
    run = lambda: jax.block_until_ready(solver(jax.random.key(seed), problem).g)
    run()
    g, seconds = timed(run)
    return np.asarray(g) / 2, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--dims", type=int, default=512)
    parser.add_argument("--references", type=int, default=1024)
    parser.add_argument("--epsilon", type=float, default=0.05)
    parser.add_argument("--tau", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pushpull", help="the built benchmark, instead of `cargo bench --bench solvers --`")
    args = parser.parse_args()
    eps, tau, n, m = args.epsilon, args.tau, args.rows, args.references
    rng = np.random.default_rng(args.seed)
    centres = unit(rng.normal(size=(32, args.dims)))
    x, fresh = blob(rng, centres, n, 1.0), blob(rng, centres, n, 1.0)
    y, z = blob(rng, centres[:20], m, 0.9), blob(rng, centres[14:], m, 0.9)
    c, c_fresh, even = cost(x, y), cost(fresh, y), np.ones(n)
    tasks = [
        {"name": "even, one epoch", "push": 0.0, "tau": 1e9, "max_steps": 1, "epochs": 1},
        {"name": "even", "push": 0.0, "tau": 1e9, "max_steps": 500, "epochs": 1},
        {"name": "pull", "push": 0.0, "tau": tau, "max_steps": 500, "epochs": 1},
        {"name": "push-pull", "push": 1.0, "tau": tau, "max_steps": 500, "epochs": 1},
    ]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name, array in [("sample", x), ("safe", y), ("harm", z)]:
            (folder / f"{name}.f32").write_bytes(np.ascontiguousarray(array, dtype="<f4").tobytes())
        (folder / "problem.json").write_text(json.dumps({"dims": args.dims, "tasks": [t | {"epsilon": eps, "threshold": 1e-3} for t in tasks]}))
        command = [args.pushpull] if args.pushpull else ["cargo", "bench", "--bench", "solvers", "--"]
        subprocess.run([*command, str(folder)], check=True, cwd=pathlib.Path(__file__).parent.parent)
        out = json.loads((folder / "result.json").read_text())
    ours = {r["task"]: r for r in out["results"]}

    print(f"{n:,} rows, {args.dims} dimensions, {m:,} references a side, epsilon {eps}, temperature {tau}, seed {args.seed}")
    print(f"pushpull {out['version']}, POT {ot.__version__}, OTT {ott.__version__} (jax {jax.__version__}), numpy {np.__version__}")
    print("| problem | solver | samples | error on the sample | on fresh rows | off by | seconds |")
    print("|---|---|---|---|---|---|---|")
    table = Table()

    # even: the reference is POT's Sinkhorn in float64, solved far below every error here.
    exact_plan, log = ot.sinkhorn(even / n, np.full(m, 1 / m), c, eps, method="sinkhorn_log", numItermax=5000, stopThr=1e-9, log=True)
    exact = centred(eps * log["log_v"])
    del exact_plan
    noise = marginal_error(transform(c_fresh, exact, eps)[1], even)
    print(f"(the exact potential has an error of {noise:.3f} on fresh rows)")

    def even_row(solver, samples, g, seconds):
        g = centred(g)
        table.add("even", solver, samples, f"{marginal_error(transform(c, g, eps)[1], even):.2e}",
                  f"{marginal_error(transform(c_fresh, g, eps)[1], even):.3f}", f"{np.abs(g - exact).max() / eps:.1e} ε", seconds)

    rates = [f * eps * m for f in (0.1, 0.3, 1.0, 3.0)]
    for name in ["even, one epoch", "even"]:
        mine = ours[name]
        budget = n if name == "even, one epoch" else mine["samples"]
        even_row("pushpull" + (", online phase alone" if budget == n else ""), budget, mine["safe_potential"], mine["seconds_to_potentials"])
        g, seconds = pot_semidiscrete(x, y, eps, budget, args.seed)
        even_row("POT semidiscrete, its defaults", budget, g, seconds)
        runs = [(*pot_semidiscrete(x, y, eps, budget, args.seed, lr0=rate, decreasing_reg=False, polyak_average=average, lr_exponent=power), rate)
                for rate in rates for average, power in [(True, 0.0), (True, 0.5), (False, 0.5)]]
        score = lambda run: marginal_error(transform(c, centred(run[0]), eps)[1], even)
        g, seconds, rate = min(runs, key=score)
        even_row(f"POT semidiscrete, best of {len(runs)} settings", budget, g, seconds)
        steps = max(1, budget // BATCH)
        runs = [(*ott_semidiscrete(x, y, eps, budget, args.seed, optimizer, ema), rate) for rate in rates
                for optimizer, ema in [(optax.sgd(2 * rate), 0.1), (optax.sgd(optax.cosine_decay_schedule(2 * rate, steps)), 0.99)]]
        g, seconds, rate = min(runs, key=score)
        even_row(f"OTT SemidiscreteSolver, best of {len(runs)} settings", budget, g, seconds)
    # Iterations until the L2 error, which it looks at every ten, makes the L1 error 1e-3 at most.
    (_, log), seconds = timed(lambda: ot.sinkhorn(
        even / n, np.full(m, 1 / m), c, eps, method="sinkhorn_log", numItermax=5000, stopThr=1e-3 / np.sqrt(m), log=True))
    even_row("POT sinkhorn_log (float64, costs given)", n * log["niter"], eps * log["log_v"], seconds)

    # pull: a row's weight is the plan's row sum.
    mine = ours["pull"]
    plan, seconds = timed(lambda: ot.unbalanced.sinkhorn_unbalanced(
        even / n, np.full(m, 1 / m), c, reg=eps, reg_m=(tau - eps, float("inf")), numItermax=5000, stopThr=1e-7))
    pot_weights = plan.sum(1) * n
    pot_g = centred(eps * np.log(np.maximum(plan[0], 1e-300)) + c[0])

    def pull_row(solver, samples, g, w, seconds):
        f, pi = transform(c, g, eps)
        f_fresh, pi_fresh = transform(c_fresh, g, eps)
        table.add("pull", solver, samples, f"{marginal_error(pi, w):.2e}", f"{marginal_error(pi_fresh, np.exp(-(f_fresh - f.min()) / tau)):.3f}",
                  f"weights {np.abs(w / pot_weights - 1).max():.1e}", seconds)

    pull_row("pushpull", mine["samples"], centred(mine["safe_potential"]), np.array(mine["weights"], dtype=np.float64), mine["seconds_to_potentials"])
    pull_row("POT sinkhorn_unbalanced (float64, costs given)", 0, pot_g, pot_weights, seconds)

    # push-pull: POT's potentials for our weights; both must be ours, and our weights their closed form.
    mine = ours["push-pull"]
    w = np.array(mine["weights"], dtype=np.float64)
    ours_g, ours_h = centred(mine["safe_potential"]), centred(mine["harm_potential"])
    sides, seconds = [], 0.0
    for y_side in (y, z):
        (_, log), took = timed(lambda: ot.sinkhorn(
            w / w.sum(), np.full(m, 1 / m), cost(x, y_side), eps, method="sinkhorn_log", numItermax=5000, stopThr=1e-5, log=True))
        sides.append(centred(eps * log["log_v"]))
        seconds += took
    c_harm = cost(x, z)
    law = -(transform(c, sides[0], eps)[0] - transform(c_harm, sides[1], eps)[0]) / tau
    law = np.exp(law - law.max())
    law /= law.mean()

    def push_row(solver, samples, g, h, off, seconds):
        pis = [transform(c, g, eps)[1], transform(c_harm, h, eps)[1]]
        score = transform(c_fresh, g, eps)[0] - transform(cost(fresh, z), h, eps)[0]
        w_fresh = np.exp(-(score - score.min()) / tau)
        fresh_pis = [transform(c_fresh, g, eps)[1], transform(cost(fresh, z), h, eps)[1]]
        show = lambda weights, pis, digits: " / ".join(f"{marginal_error(pi, weights):{digits}}" for pi in pis)
        table.add("push-pull", solver, samples, show(w, pis, ".1e"), show(w_fresh, fresh_pis, ".3f"), off, seconds)

    gap = max(np.abs(ours_g - sides[0]).max(), np.abs(ours_h - sides[1]).max()) / eps
    push_row("pushpull, both sides and the weights", mine["samples"], ours_g, ours_h,
             f"potentials {gap:.1e} ε, weights {np.abs(w / law - 1).max():.1e}", mine["seconds_to_potentials"])
    push_row("POT sinkhorn_log, either side for those weights (float64)", 0, sides[0], sides[1], "", seconds)
    print("certificate of the last fit:", json.dumps(mine["report"]["certificate"]))


if __name__ == "__main__":
    main()
