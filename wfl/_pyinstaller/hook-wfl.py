"""What a program that imports wfl needs in its bundle, and no import statement tells."""  # noqa: N999 - PyInstaller's

from PyInstaller.utils.hooks import (  # type: ignore[import-untyped,import-not-found,unused-ignore] # it runs us
    collect_entry_point,
    collect_submodules,
    get_module_file_attribute,
)

# Contexts are found by name: wfl's own, and those that other packages announce, with their entry points.
datas, hiddenimports = collect_entry_point("wfl.contexts")
hiddenimports += collect_submodules("wfl.contexts")

# The keeper must not import wfl, so it is there as a file of its own, too; see rthooks/pyi_rth_wfl.py.
datas += [(get_module_file_attribute("wfl.contexts.process.keeper"), "wfl/_keeper")]

# tqdm, which draws progress, is left out: it draws in matplotlib, tkinter and notebooks, too, and PyInstaller would
# take all of them in. A program that wants the live line says so: --hidden-import tqdm.
