"""Where a cluster is and who we are there, as kubectl finds it; the official client's loaders read the files.

The program's own default configuration of that client is neither read nor changed, and no secret stays in a file.
"""

from __future__ import annotations

import base64
import os
import socket
import ssl
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import urllib3
import yaml
from kubernetes.client.configuration import Configuration
from kubernetes.client.rest import RESTClientObject
from kubernetes.config import ConfigException, incluster_config, kube_config
from kubernetes.config.dateutil import parse_rfc3339
from kubernetes.config.exec_provider import ExecProvider

from wfl.contexts.kubernetes.answers import words
from wfl.contexts.kubernetes.settings import Place
from wfl.errors import InvalidArgumentError, SessionManagementError, WflError, nearest

_POOL = 256
"""Connections that are kept: more than the requests and followers there are at once."""
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_in_pod_loaders: Any = incluster_config  # these have no types
_file_loaders: Any = kube_config
_plugins: Any = ExecProvider
_time_of: Any = parse_rfc3339

_PATIENCE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
"""After two minutes in which the other end did not even acknowledge, a stream without an end is over."""
KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    *((socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in _PATIENCE.items() if hasattr(socket, name)),
]


class Link(NamedTuple):
    """How the cluster is reached, as it was loaded at one time; the place says the same for another time."""

    configuration: Any
    tls: ssl.SSLContext
    pool: urllib3.PoolManager
    place: Place


def load(place: Place) -> Link:
    """By the argument, by KUBECONFIG, by the pod that this is, or by the file that kubectl reads."""
    configuration = Configuration()
    named = place.kubeconfig or os.environ.get("KUBECONFIG")
    if not named and place.context is None and _in_pod():
        context, found = _load_pod(configuration, place)
    else:
        context, found = _load_files(configuration, place, _files(place, named))
    configuration.ssl_ca_cert = configuration.cert_file = configuration.key_file = None  # the TLS context has them
    configuration.proxy_ssl_context = context
    configuration.connection_pool_maxsize = _POOL
    configuration.socket_options = [*KEEPALIVE]
    try:
        pool = RESTClientObject(configuration).pool_manager
    except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
        raise InvalidArgumentError(f"{configuration.host}: {words(error)}") from error
    pool.connection_pool_kw["ssl_context"] = context
    return Link(configuration, context, pool, found)


def _tls(configuration: Any) -> ssl.SSLContext:
    """All that TLS needs, out of the files, for every connection to come."""
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # as kubectl: Python 3.13 would miss extensions
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file, "")  # nobody is asked for a password
    return context


def _in_pod() -> bool:
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST")) and os.path.exists(f"{SERVICE_ACCOUNT}/token")


def _load_pod(configuration: Any, place: Place) -> tuple[ssl.SSLContext, Place]:
    try:
        loader = _in_pod_loaders.InClusterConfigLoader(f"{SERVICE_ACCOUNT}/token", f"{SERVICE_ACCOUNT}/ca.crt")
        loader.load_and_set(configuration)
        context = _tls(configuration)
        with suppress(FileNotFoundError), open(f"{SERVICE_ACCOUNT}/namespace", encoding="utf-8") as file:
            place = replace(place, namespace=place.namespace or file.read().strip() or None)
    except (ConfigException, OSError, ValueError) as error:
        trouble = f"the pod's service account in {SERVICE_ACCOUNT} is of no use: {words(error)}"
        raise SessionManagementError(trouble) from error
    return context, place


def _files(place: Place, named: str | None) -> str:
    """The files that are there, as absolute paths with colons between: a helper may work elsewhere."""
    paths = [os.path.abspath(os.path.expanduser(path)) for path in (named or "~/.kube/config").split(":") if path]
    there = [path for path in paths if os.path.exists(path)]
    if there:
        return ":".join(there)
    cure = "give kubeconfig='/path/of/file', or set KUBECONFIG; `kubectl config view` shows what kubectl uses"
    if place.kubeconfig:
        raise InvalidArgumentError(f"kubeconfig {place.kubeconfig!r}: there is no such file")
    if named:
        raise SessionManagementError(f"KUBECONFIG is {named!r}: there is no such file; {cure}")
    if place.context:
        tried = "KUBECONFIG is not set"
    elif os.environ.get("KUBERNETES_SERVICE_HOST"):
        tried = f"KUBECONFIG is not set, this pod has no service account in {SERVICE_ACCOUNT}"
    else:
        tried = "KUBECONFIG is not set, this is no pod of a cluster"
    raise SessionManagementError(f"no cluster is known: {tried}, and there is no {paths[0]}; {cure}")


def _load_files(configuration: Any, place: Place, files: str) -> tuple[ssl.SSLContext, Place]:
    try:
        with tempfile.TemporaryDirectory(prefix="wfl-") as directory:  # TLS takes a client's key from a file only
            merged = _file_loaders.KubeConfigMerger(files)
            said = list(merged.config_files.values())
            chosen = _context(place, files, said)
            loader = _Loader(merged.config, chosen, config_base_path=None, temp_file_path=directory)
            told = loader.current_context["context"]
            user = _named(said, "users", told.get("user")).get("user") or {}
            cluster = _named(said, "clusters", told.get("cluster")).get("cluster") or {}
            for entry in (cluster, user, (user.get("auth-provider") or {}).get("config") or {}):
                _as_files(entry, directory)
            loader.load_and_set(configuration)
            context = _tls(configuration)
    except (ConfigException, yaml.YAMLError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, WflError):
            raise
        raise InvalidArgumentError(f"kubeconfig {files} cannot be used: {words(error)}") from error
    found = replace(place, kubeconfig=files, context=chosen, namespace=place.namespace or told.get("namespace"))
    if place.impersonate is None and user.get("as"):  # the official client does not look at these
        found = replace(found, impersonate=user["as"], impersonate_groups=tuple(user.get("as-groups") or ()))
    return context, found


class _Loader(_file_loaders.KubeConfigLoader):  # type: ignore[misc] # it has no types
    """The official one leaves a plugin's certificate and key in files, and hides why there is none."""

    def _load_from_exec_plugin(self) -> bool:
        """Run it: when loading, and again a while before the end of its token."""
        if "exec" not in self._user:
            return False
        plugin, said = self._user["exec"], {}
        try:
            said = _plugins(plugin, self._get_base_path(self._cluster.path), self._cluster).run()
            whole = said.get("token") or (said.get("clientCertificateData") and said.get("clientKeyData"))
            trouble = None if whole else "neither a token, nor a certificate with its key"
        except (ConfigException, OSError, ValueError, AttributeError) as error:
            trouble = words(error)
        if trouble and not hasattr(self, "token"):  # or else there is one that has not ended yet
            cure = f"`kubectl --context {self.current_context['name']} version` shows why"
            raise SessionManagementError(f"the command {plugin['command']!r} gave no credentials ({trouble}); {cure}")
        if not trouble:
            self._take(said)
        return True

    def _take(self, said: Mapping[str, str]) -> None:
        loading, pair = not hasattr(self, "token"), (said.get("clientCertificateData"), said.get("clientKeyData"))
        if said.get("token"):
            self.token = f"Bearer {said['token']}"
        if said.get("expirationTimestamp"):
            self.expiry = _time_of(said["expirationTimestamp"])
        if loading and pair[0] and pair[1]:  # later the directory is gone, and connections have what they need
            self.cert_file = _file(self._temp_file_path, "certificate", pair[0].encode())
            self.key_file = _file(self._temp_file_path, "key", pair[1].encode())


def _as_files(entry: dict[str, Any], directory: str) -> None:
    """Its certificates and keys. The loader's own files would stay, also remembered for others that load the same."""
    for name in [name for name in entry if name.endswith("-data")]:
        data = entry.pop(name)
        if data:
            entry[name.removesuffix("-data")] = _file(directory, name, base64.b64decode(data))


def _file(directory: str, name: str, content: bytes) -> str:
    path = os.path.join(directory, name)
    with open(path, "wb") as file:
        file.write(content)
    return path


def _context(place: Place, files: str, said: Sequence[Mapping[str, Any]]) -> str:
    """The one that was asked for, or else the first that a file names, as for kubectl."""
    chosen = place.context or next((file["current-context"] for file in said if file.get("current-context")), None)
    names = [context["name"] for file in said for context in file.get("contexts") or ()]
    if chosen is None:
        raise InvalidArgumentError(f"kubeconfig {files} has no current-context: give context,{nearest('', names)}")
    if chosen not in names:
        raise InvalidArgumentError(f"kubeconfig {files} has no context {chosen!r}:{nearest(chosen, names)}")
    return str(chosen)


def _named(files: Iterable[Mapping[str, Any]], kind: str, name: str | None) -> Mapping[str, Any]:
    """The first entry of this name."""
    entries = (entry for file in files for entry in file.get(kind) or ())
    return next((entry for entry in entries if entry["name"] == name), {})
