"""Traces of controllers: recorded, replayed and exported. Importing this imports torch."""

from hpenv.traces.recording import Recording, trace_of
from hpenv.traces.trace import StepMultiplier, Trace

__all__ = ["Recording", "StepMultiplier", "Trace", "trace_of"]
