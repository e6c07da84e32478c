"""Makes the machine code of the CPU kernels. ``python -m kvquant.kernels [format ...]``; at low priority if formats are named."""

import os
import sys

from kvquant.kernels import warming

if len(sys.argv) > 1:
    os.nice(19)
for format in sys.argv[1:] or ("half", "fixed"):
    print(f"  {warming.make(format)[1]}")
