"""One room per execution system; each is imported by name, and only when a script asks for it."""
