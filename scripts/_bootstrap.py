"""First import of each script: Ctrl-C, standard streams and sys.path.

A script is started by its path, so that sys.path[0] is this folder, and `import
_bootstrap` needs nothing of the project. Afterwards sys.path[0] is the root of the
project. The imports of a script can take a second; Ctrl-C must not print a traceback
during that time. See lib/output.py.
"""

import _signal  # signal itself would import enum

if callable(_signal.getsignal(_signal.SIGINT)):
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
from lib.output import begin

begin()
