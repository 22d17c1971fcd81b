"""Jobs on clusters, through the command lines of their schedulers: one small file per scheduler, one engine for all."""

from wfl.contexts.batch.context import BatchContext, ClusterContext, clean

__all__ = ["BatchContext", "ClusterContext", "clean"]
