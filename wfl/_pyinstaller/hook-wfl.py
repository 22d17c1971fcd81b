"""What a program that imports wfl needs in its bundle, and no import statement tells."""  # noqa: N999 - PyInstaller's

from importlib.util import find_spec

from PyInstaller.utils.hooks import (  # type: ignore[import-untyped,import-not-found,unused-ignore] # it runs us
    collect_data_files,
    collect_entry_point,
    collect_submodules,
    get_module_file_attribute,
)

# Contexts are found by name: wfl's own, and those that other packages announce, with their entry points.
datas, hiddenimports = collect_entry_point("wfl.contexts")
datas += collect_data_files("wfl.contexts", includes=["**/*.sh"])
hiddenimports += collect_submodules("wfl.contexts")
# What loads a scheduler's libdrmaa is itself only loaded when that is there, so no import statement has it.
if find_spec("drmaa"):
    hiddenimports += ["drmaa", "drmaa.helpers", "drmaa.wrappers"]

# Helper processes must not import wfl, so their scripts are files of their own, too; see rthooks/pyi_rth_wfl.py.
HELPERS = ("wfl.contexts.process.keeper", "wfl.contexts.vigil")
datas += [(get_module_file_attribute(helper), "wfl/_helpers") for helper in HELPERS]

# tqdm, which draws progress, is left out: it draws in matplotlib, tkinter and notebooks, too, and PyInstaller would
# take all of them in. A program that wants the live line says so: --hidden-import tqdm.
