"""A program that uses wfl, built as one file."""
