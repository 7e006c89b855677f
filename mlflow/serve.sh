#!/usr/bin/env bash
# Starts the team's MLflow server: PostgreSQL, S3, a user for every request. Its settings are the variables of
# server.env.example and secrets.env.example; RUNBOOK.md says how to run it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

refuse() {
    echo "error: mlflow/serve.sh: $*" >&2
    exit 2
}

for file in server.env.example secrets.env.example; do
    for name in $(sed -n 's/^\([A-Z][A-Z0-9_]*\)=.*/\1/p' "$here/$file"); do
        [[ -n "${!name:-}" ]] || refuse "$name is not set; mlflow/$file says what it is"
    done
done
for name in PGPASSWORD MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY AWS_SECRET_ACCESS_KEY; do
    secret=${!name}
    case "${secret,,}" in
        password* | admin* | mlflow* | change* | secret* | postgres* | minio*)
            refuse "$name is a password that everybody knows; choose another" ;;
    esac
    ((${#secret} >= 12)) || refuse "$name is shorter than 12 characters; choose a longer one"
done
for name in MLFLOW_BACKEND_STORE_URI MLFLOW_AUTH_DATABASE_URI; do
    [[ "${!name}" == postgresql://* ]] || refuse "$name is not a postgresql:// address"
    [[ "${!name}" =~ ://[^@/]*:[^@/]*@ ]] && refuse "$name holds a password; give it as PGPASSWORD"
done
[[ "$MLFLOW_DEFAULT_ARTIFACT_ROOT" == s3://* ]] || refuse "MLFLOW_DEFAULT_ARTIFACT_ROOT is not an s3:// address"
for name in MLFLOW_SERVER_ALLOWED_HOSTS MLFLOW_SERVER_CORS_ALLOWED_ORIGINS; do
    [[ ",${!name// /}," != *",*,"* ]] || refuse "$name allows everybody; name the hosts"
done

# MLflow reads these from a file alone; it holds no secret.
MLFLOW_AUTH_CONFIG_PATH=$(mktemp --suffix=.ini)
cat > "$MLFLOW_AUTH_CONFIG_PATH" <<END
[mlflow]
default_permission = $MLFLOW_AUTH_DEFAULT_PERMISSION
database_uri = $MLFLOW_AUTH_DATABASE_URI
auth_cache_ttl_seconds = $MLFLOW_AUTH_CACHE_SECONDS
END
export MLFLOW_AUTH_CONFIG_PATH
# The job runner is for GenAI traces and takes 2 GB.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true

# Artefacts go from the client to the store: through the server, uploads from about 0.8 GB time out.
exec mlflow server --app-name basic-auth --host "$MLFLOW_HOST" --port "$MLFLOW_PORT" --workers "$MLFLOW_WORKERS" \
    --no-serve-artifacts --default-artifact-root "$MLFLOW_DEFAULT_ARTIFACT_ROOT" \
    --allowed-hosts "$MLFLOW_SERVER_ALLOWED_HOSTS" --cors-allowed-origins "$MLFLOW_SERVER_CORS_ALLOWED_ORIGINS" \
    --x-frame-options DENY
