"""Entry point of ``python -m streamloader``."""

from __future__ import annotations

import sys

from streamloader.cli.main import main

sys.exit(main())
