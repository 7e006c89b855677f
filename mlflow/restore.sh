#!/usr/bin/env bash
# Puts a backup back into empty databases: bash mlflow/restore.sh FOLDER, with the server stopped. The artefacts go to
# the address that they were taken from, which the runs name.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=${1:?usage: restore.sh FOLDER}

refuse() {
    echo "error: mlflow/restore.sh: $*" >&2
    exit 2
}

[[ -f "$folder/SHA256SUMS" ]] || refuse "$folder is no whole backup"
(cd "$folder" && sha256sum --check --quiet SHA256SUMS) || refuse "$folder is damaged"
[[ "$(cat "$folder/artifact-root")" == "$MLFLOW_DEFAULT_ARTIFACT_ROOT" ]] ||
    refuse "the backup's artefacts belong at $(cat "$folder/artifact-root"), not at $MLFLOW_DEFAULT_ARTIFACT_ROOT"
for database in "$MLFLOW_BACKEND_STORE_URI" "$MLFLOW_AUTH_DATABASE_URI"; do
    tables=$(psql --no-psqlrc --tuples-only --no-align --dbname="$database" \
        --command="select count(*) from pg_tables where schemaname = 'public'")
    ((tables == 0)) || refuse "$database is not empty; make a new database for it"
done

python "$here/copy_artifacts.py" "$folder/artifacts" "$MLFLOW_DEFAULT_ARTIFACT_ROOT"
if [[ -f "$folder/dvc-remote" ]]; then
    python "$here/copy_artifacts.py" "$folder/dvc" "$(cat "$folder/dvc-remote")"
fi
for pair in "users.dump $MLFLOW_AUTH_DATABASE_URI" "runs.dump $MLFLOW_BACKEND_STORE_URI"; do
    pg_restore --no-owner --exit-on-error --single-transaction --dbname="${pair#* }" "$folder/${pair%% *}"
done
echo "restored from $folder"
