#!/usr/bin/env python3
"""The same as the command biggan-weights."""

from biggan.cli.weights import main

if __name__ == "__main__":
    main()
