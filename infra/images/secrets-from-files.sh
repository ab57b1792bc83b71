#!/bin/sh
# secrets-from-files COMMAND…: runs COMMAND with NAME set to what the file of NAME_FILE holds, for every
# variable NAME_FILE. Secrets are mounted as files; they never stand in a command line or a manifest.
set -eu
for name in $(env | sed -n 's/^\([A-Z][A-Z0-9_]*\)_FILE=.*/\1/p'); do
    eval "file=\${${name}_FILE}"
    value=$(cat "$file")
    export "$name=$value"
done
exec "$@"
