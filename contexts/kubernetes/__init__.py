"""KubernetesContext: jobs run as Jobs (batch/v1) of a cluster."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING, Any

from wfl.context import Context
from wfl.contexts.kubernetes.settings import Place, check_settings
from wfl.extras import needed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wfl.backend import Backend, Monitor
    from wfl.contexts.kubernetes.template import Defaults
    from wfl.drmaa2 import JobTemplate

__all__ = ["KubernetesContext", "clean"]

_WHY = "jobs on Kubernetes need its client"


class KubernetesContext(Context):
    """Run each job as a Job of a Kubernetes cluster, an array as one Indexed Job (extra: `wfl-sdk[kubernetes]`).

    Besides the settings of every Context:
    image: the image of jobs that name none (job_category).
    kubeconfig: the file that says where the cluster is and who asks; None: KUBECONFIG, else the service account of the
    pod that the program is in, else ~/.kube/config.
    context: which of the file's contexts; None: the one in use.
    namespace: where Jobs are made; None: the one of the file's context or of the pod that the program is in.
    impersonate, impersonate_groups: the user, and groups, in whose name all is asked for.
    timeout: seconds that the API server may take to answer one request.
    pull: when images are fetched: "missing", "always" or "never"; None: as the cluster does it.
    shell: the path of a shell in the images, needed for input_path, error_path, join_files, output in files, files that
    are copied without a helper_image, arrays (unless they count 0, 1, 2, … with no index in their words), and SIGKILL
    after a grace. None: there is none; arrays are submitted element by element, join_files does not keep the order, and
    SIGKILL needs a program `kill`; the rest is refused.
    helper_image: an image with sh and tar, for copying files in and out; None: the job's own.
    patience: seconds after which a job has FAILED that waits for what never comes by itself, such as an image that is
    not there. What no machine has room for may wait for ever.
    suspend_restarts: True lets `suspend()` act on what runs: its pod is ended, and it begins anew with `resume()`.

    What cannot be reached is said when the context is first used, as a DrmCommunicationError in one line.
    """

    name = "kubernetes"

    def __init__(
        self,
        *,
        image: str | None = None,
        kubeconfig: str | os.PathLike[str] | None = None,
        context: str | None = None,
        namespace: str | None = None,
        impersonate: str | None = None,
        impersonate_groups: Sequence[str] = (),
        timeout: float = 60.0,
        pull: str | None = None,
        shell: str | None = "/bin/sh",
        helper_image: str | None = None,
        patience: float = 300.0,
        suspend_restarts: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        check_settings(
            image=image,
            kubeconfig=kubeconfig,
            context=context,
            namespace=namespace,
            impersonate=impersonate,
            impersonate_groups=impersonate_groups,
            timeout=timeout,
            pull=pull,
            shell=shell,
            helper_image=helper_image,
            patience=patience,
            suspend_restarts=suspend_restarts,
        )
        self.image, self.pull, self.shell, self.helper_image = image, pull, shell, helper_image
        self.patience, self.suspend_restarts = float(patience), suspend_restarts
        self.place = Place(
            kubeconfig=None if kubeconfig is None else os.path.abspath(os.path.expanduser(kubeconfig)),
            context=context,
            namespace=namespace,
            impersonate=impersonate,
            impersonate_groups=tuple(impersonate_groups),
            timeout=float(timeout),
        )

    def _defaults(self) -> Defaults:
        from wfl.contexts.kubernetes.template import Defaults

        return Defaults(image=self.image, pull=self.pull, shell=self.shell, helper_image=self.helper_image)

    def backend(self) -> Backend:
        """A new backend; it contacts the API server when it is opened."""
        with needed("kubernetes", _WHY):
            from wfl.contexts.kubernetes.backend import KubernetesBackend
        return KubernetesBackend(
            self.place,
            self.session_name,
            defaults=self._defaults(),
            detach=self.detach,
            patience=self.patience,
            suspend_restarts=self.suspend_restarts,
        )

    def monitor(self) -> Monitor:
        """The cluster's nodes, its Jobs, and its priority classes as queues."""
        with needed("kubernetes", _WHY):
            from wfl.contexts.kubernetes.monitor import KubernetesMonitor
        return KubernetesMonitor(self.place)

    def preview(
        self, template: JobTemplate, indexes: range | int | None = None, max_parallel: int | None = None
    ) -> list[str]:
        """What would be created for a template, or for an array of it: YAML that `kubectl apply` takes.

        Several texts where the elements of an array are submitted one by one. KEY and ID stand for what the jobs would
        have. Nothing is asked of the cluster, so a `priority` is left out, as its class is the cluster's.
        """
        from wfl.contexts.kubernetes import template as mapping

        numbers = range(1, indexes + 1) if isinstance(indexes, int) else indexes
        texts = []
        for given, which in self.submissions(self.backend(), template, numbers):
            array = which if isinstance(which, range) else None
            mapping.check(given, self._defaults(), array)
            key = f"key-{which}" if isinstance(which, int) else "key"
            identity = mapping.Identity(
                key=key,
                session=self.session_name,
                program="program",
                job_id="key",
                index=which if isinstance(which, int) else None,
                detach=self.detach,
                patience=self.patience,
            )
            made = mapping.manifests(
                given,
                identity,
                self._defaults(),
                indexes=array,
                max_parallel=max_parallel,
            )
            texts.append(mapping.preview_documents(made))
        return texts

    def takes_whole(self, backend: Backend, template: JobTemplate) -> bool:
        """Whether an array of this template is one Job: without a shell no element could know its index."""
        from wfl.contexts.kubernetes.template import native

        return super().takes_whole(backend, template) and native(template, range(1, 2), self._defaults())


def clean(session_name: str, context: KubernetesContext | None = None) -> int:
    """Remove all Jobs that programs have left behind in a session, with their pods; how many there were.

    Those that run go too, and so do those of a program that is still at work in this session.
    """
    from wfl.context import check_session_name

    check_session_name(session_name)
    chosen = context or KubernetesContext()
    with needed("kubernetes", _WHY):
        from wfl.contexts.kubernetes.client import Client
        from wfl.contexts.kubernetes.ending import remove_all
        from wfl.contexts.kubernetes.template import label_value
    selector = f"wfl/session={label_value(session_name)}"
    with closing(Client(chosen.place)) as client:
        found, _ = client.list("jobs", selector)
        if found:
            remove_all(client, selector)
    return len(found)
