"""Jobs as operating-system processes of this machine."""

from wfl.contexts.process.context import ProcessContext

__all__ = ["ProcessContext"]
