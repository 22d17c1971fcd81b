#!/usr/bin/env bash
# images/archive.sh NAME:TAG COMMAND... : makes the root file system on its standard input an image, printed as an
# archive that `ctr images import` and `docker load` read.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/layer.tar"
quoted=$(printf ', "%s"' "${@:2}")
case "$(uname -m)" in x86_64) machine=amd64 ;; aarch64) machine=arm64 ;; *) machine=$(uname -m) ;; esac
cat >"$work/config.json" <<END
{"architecture": "$machine", "os": "linux",
 "config": {"Cmd": [${quoted#, }], "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"]},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$(sha256sum <"$work/layer.tar" | cut -d ' ' -f 1)"]}}
END
cat >"$work/manifest.json" <<END
[{"Config": "config.json", "RepoTags": ["$1"], "Layers": ["layer.tar"]}]
END
tar -C "$work" -c manifest.json config.json layer.tar
