"""Processes of a sandbox, and where one can run."""

import pytest

from hpenv.posttraining.sandbox import kernel, syscalls

MISSING = kernel.missing_support(syscalls.NUMBERS)
executes = pytest.mark.skipif(bool(MISSING), reason=f"programs cannot be executed here: {MISSING}")
