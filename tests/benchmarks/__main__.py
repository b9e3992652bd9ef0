"""`python -m tests.benchmarks [NAME…]`: ratios against what a user would use instead, measured in turns in one run.

Never part of a test run. Close what else is running first: the figures of a busy machine are rough.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

from tests.benchmarks import (
    build_again,
    command_help,
    download,
    generate_text,
    merge_stack,
    report,
    train_adapter,
    validate_package,
)
from tests.benchmarks.bench import Bench, make_bench
from tests.benchmarks.harness import CommandError, Result, note
from tests.benchmarks.machine import describe_machine, machine_line
from tests.benchmarks.packages import Crowd, Install, Verify

BENCHMARKS = {
    benchmark.NAME: benchmark
    for benchmark in (
        command_help,
        build_again,
        validate_package,
        Install,
        Verify,
        download,
        Crowd,
        merge_stack,
        merge_stack.Large,
        train_adapter,
        generate_text,
    )
}
QUIET_LOAD = 0.5


def main() -> int:
    """Run the benchmarks that are named, all by default; return the exit code."""
    options = _options()
    # So that a `kill` takes the scratch folder and the measured process with it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    machine = describe_machine()
    note(f"machine: {machine_line(machine)}")
    if os.getloadavg()[0] > QUIET_LOAD:
        note("warning: this machine is busy, so the figures will be rough")
    with tempfile.TemporaryDirectory(prefix="adapt-bench-") as scratch:
        bench = make_bench(options.folder.resolve() if options.folder else Path(scratch), quick=options.quick)
        results, failures = _run(bench, options)
    data = {
        "machine": machine,
        "quick": options.quick,
        "benchmarks": [result.to_data() for result in results],
        "failures": failures,
    }
    if options.json:
        options.json.write_text(json.dumps(data, indent=2) + "\n", "utf-8")
    table = report.as_markdown(results, machine_line(machine))
    if options.markdown:
        print(table)
    if options.write_docs and not failures:
        report.write_docs(table)
        note(f"wrote the figures into {report.PAGE}")
    for name, why in failures.items():
        note(f"{name} could not be measured: {why}")
    return 1 if failures else 0


def _run(bench: Bench, options: argparse.Namespace) -> tuple[list[Result], dict[str, str]]:
    """Run what was asked for; one that cannot be measured does not stop the others."""
    results, failures = [], {}
    for name in options.names or BENCHMARKS:
        note(f"{name} (load {os.getloadavg()[0]:.1f})")
        try:
            results.append(BENCHMARKS[name].run(bench))
        except CommandError as error:
            failures[name] = str(error)
            continue
        if not options.markdown:
            print(report.as_text(results[-1]), end="\n\n", flush=True)
    return results, failures


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="one short round each, to see that everything runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value of every round")
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/performance.md")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/performance.md")
    parser.add_argument("--folder", type=Path, help="work in this folder and keep it; what it holds is used again")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in BENCHMARKS]:
        parser.error(f"no benchmark is named {unknown[0]!r}: {', '.join(BENCHMARKS)}")
    if options.write_docs and (options.quick or options.names):
        parser.error("--write-docs is for whole runs: without names, without --quick")
    return options


if __name__ == "__main__":
    sys.exit(main())
