"""`python -m diffv2ir`: see `diffv2ir.cli`."""

import sys

from diffv2ir.cli import main

sys.exit(main())
