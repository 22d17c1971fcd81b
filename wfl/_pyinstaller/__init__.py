"""What PyInstaller has to know of wfl; it asks here by itself (entry point `pyinstaller40`), nothing to set up.

hook-wfl.py tells what belongs into a bundle; rthooks.dat names what runs in it before the program does.
"""

from pathlib import Path


def hook_dirs() -> list[str]:
    """Where PyInstaller finds the hooks."""
    return [str(Path(__file__).parent)]
