"""Prints the Debian packages that PyInstaller needs with this interpreter and that are not here; nothing if none."""

import ctypes
import shutil
import sys
import sysconfig


def main() -> None:
    """Print their names, with blanks between them."""
    lacks = [] if shutil.which("objdump") else ["binutils"]
    if sys.base_prefix == "/usr":  # Debian's own keeps its shared library in a package of its own
        try:
            ctypes.CDLL(sysconfig.get_config_var("INSTSONAME"))
        except OSError:
            lacks.append(f"libpython{sys.version_info[0]}.{sys.version_info[1]}")
    print(*lacks)


if __name__ == "__main__":
    main()
