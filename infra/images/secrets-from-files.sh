#!/bin/sh
# secrets-from-files COMMAND…: runs COMMAND with each variable NAME below set to the content of the file that
# NAME_FILE names, if it is set. Secrets are mounted as files, so that no command line or manifest holds them.
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
