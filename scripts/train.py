#!/usr/bin/env python3
"""The same as the command biggan-train."""

from biggan.cli.train import main

if __name__ == "__main__":
    main()
