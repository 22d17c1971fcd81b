"""Runs in a bundle before the program: where the program started itself as its keeper, it becomes that and no more."""
# ruff: noqa: INP001 - PyInstaller runs it as a script

import os
import sys

if "WFL_KEEPER" in os.environ:
    arguments = os.environ.pop("WFL_KEEPER").split("\n")
    sys.path.insert(0, os.path.join(sys._MEIPASS, "wfl", "_keeper"))  # type: ignore[attr-defined]
    import keeper  # type: ignore[import-not-found] # wfl.contexts.process.keeper, without wfl

    keeper.main(arguments)
    sys.exit()
