"""`make bench`: print each figure beside its budget; `python -m benchmarks ingress` for one group."""

from __future__ import annotations

import os
import sys

from benchmarks import api, dns, ingress, namespaces, network, pods, scheduler, services


def main() -> int:
    groups = {
        "api": api.measure,
        "scheduler": scheduler.measure,
        "namespaces": namespaces.measure,
        "pods": pods.measure,
        "network": network.measure,
        "dns": dns.measure,
        "ingress": ingress.measure,
    }
    alone = {"services": services.measure, "ipvs": services.measure_ipvs}  # parts of a group
    without_root = ("api", "scheduler", "dns")
    chosen = sys.argv[1:] or list(groups)
    missed = 0
    for name in chosen:
        if name not in without_root and os.geteuid() != 0:
            print(f"{name}: needs root{' and Docker' if name == 'pods' else ''}, left out")
            continue
        for figure in {**groups, **alone}[name]():
            print(figure.line(), flush=True)
            missed += figure.holds is False
    print(f"{missed} of the budgets missed" if missed else "all budgets hold")
    return 0


if __name__ == "__main__":
    sys.exit(main())
