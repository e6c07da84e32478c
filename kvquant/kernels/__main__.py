"""Makes the machine code of the CPU kernels. ``python -m kvquant.kernels [format ...]``; at low priority if formats are named."""

import os
import sys

from kvquant.kernels import warming

if len(sys.argv) > 1:
    os.nice(19)
results = [warming.make(format) for format in sys.argv[1:] or ("fixed", "half")]
print(" ", results[-1][1])
sys.exit(not all(usable for usable, _ in results))
