"""Every code block of the README and of the documentation is run."""
