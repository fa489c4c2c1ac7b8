#!/bin/sh
# etcd and wrk as Debian has them, where they are missing and this user may install them.
missing=""
command -v etcd >/dev/null || missing="etcd-server"
command -v wrk >/dev/null || missing="$missing wrk"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "not installed, and so not compared with: $missing" >&2
    exit 0
fi
apt-get update >/dev/null && DEBIAN_FRONTEND=noninteractive \
    apt-get install --yes --no-install-recommends $missing >/dev/null \
    || echo "could not be installed, and so not compared with: $missing" >&2
