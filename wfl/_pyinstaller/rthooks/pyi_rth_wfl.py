"""Runs in a bundle before the program: where the program started itself as a helper, it becomes that and no more."""
# ruff: noqa: INP001 - PyInstaller runs it as a script

import os
import sys

if "WFL_HELPER" in os.environ:  # as wfl.contexts.helper has it
    name, *arguments = os.environ.pop("WFL_HELPER").split("\n")
    sys.path.insert(0, os.path.join(sys._MEIPASS, "wfl", "_helpers"))  # type: ignore[attr-defined]
    helper = __import__(name)  # its script, without wfl
    sys.path.pop(0)
    helper.main(arguments)
    sys.exit()
