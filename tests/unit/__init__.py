"""One file for each module of wfl/, and one for the repository as a whole."""
