#!/usr/bin/env python3
"""Measures parts of the project, each against something plain in the same run: scripts/bench.py SUBJECT [options]."""

import argparse
import importlib

SUBJECTS = {
    "order": "bench_order",
    "latents": "bench_latents",
    "loader": "bench_loader",
    "build": "bench_build",
    "step": "bench_step",
    "saving": "bench_saving",
    "import": "bench_import",
    "peers": "bench_peers",
}


def main() -> None:
    """Each subject's module has a docstring, `add_options(parser)` and `run(options)`, which prints figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    subjects = parser.add_subparsers(dest="subject", required=True)
    for name, module_name in SUBJECTS.items():
        module = importlib.import_module(module_name)
        summary = module.__doc__.splitlines()[0]
        module.add_options(subjects.add_parser(name, help=summary, description=module.__doc__))
    options = parser.parse_args()
    importlib.import_module(SUBJECTS[options.subject]).run(options)


if __name__ == "__main__":
    main()
