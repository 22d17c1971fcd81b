"""The bench: every line of the table of measures, beside its reference, in one run. See README.md."""
