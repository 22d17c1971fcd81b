"""What holds for every suite."""

from hypothesis import settings

from wfl.testing.conformance.programs import hear_signals

settings.register_profile("wfl", deadline=None)  # a busy machine is slow, and that is no failure of the code
settings.load_profile("wfl")

hear_signals()
