#!/usr/bin/env bash
# Run a command without a network, where the system can do that.
if unshare -rn true 2>/dev/null; then
    exec unshare -rn bash -c 'ip link set lo up && exec "$@"' offline "$@"
fi
echo "no network namespaces here, so this runs with the network up: $*" >&2
exec "$@"
