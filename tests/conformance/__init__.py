"""One suite for every context; it ships as wfl.testing.conformance, for backends made elsewhere too."""
