"""The tests: unit/ mirrors wfl/, and one suite in conformance/ is run against every context.

services/ starts the real systems, docs/ runs the pages, bench/ measures.
"""
