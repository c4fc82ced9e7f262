#!/usr/bin/env python3
"""The same as the command biggan-sample."""

from biggan.cli.sample import main

if __name__ == "__main__":
    main()
