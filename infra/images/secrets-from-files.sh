#!/bin/sh
# secrets-from-files COMMAND…: runs COMMAND with each of these variables NAME set to what the file of NAME_FILE
# holds, where there is one. Secrets are mounted as files; they stand in no command line and no manifest.
set -eu
for name in AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY \
    PGPASSWORD; do
    eval "file=\${${name}_FILE:-}"
    if [ -n "$file" ]; then
        value=$(cat "$file")
        export "$name=$value"
    fi
done
exec "$@"
