"""``python -m lm_eval_cna ARGS`` is ``lm-eval-cna ARGS``."""

from __future__ import annotations

import sys

from lm_eval_cna.cli import main

if __name__ == "__main__":
    sys.exit(main())
