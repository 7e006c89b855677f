#!/usr/bin/env bash
# Backs up the team's store to a new folder: bash mlflow/backup.sh FOLDER. The server may go on: the databases are
# dumped first and MLflow changes no artefact that it has written, so that all the dumps name is in the copy.
# With SANA_SPRINT_DVC_REMOTE (s3://sana-sprint/dvc) what `dvc push` has put there goes along.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=${1:?usage: backup.sh FOLDER}
[[ ! -e "$folder" ]] || { echo "error: mlflow/backup.sh: $folder is there already" >&2; exit 2; }

unfinished=$folder.unfinished
rm -rf "$unfinished"
mkdir -p "$unfinished"
pg_dump --format=custom --file="$unfinished/runs.dump" "$MLFLOW_BACKEND_STORE_URI"
pg_dump --format=custom --file="$unfinished/users.dump" "$MLFLOW_AUTH_DATABASE_URI"
python "$here/copy_artifacts.py" "$MLFLOW_DEFAULT_ARTIFACT_ROOT" "$unfinished/artifacts"
echo "$MLFLOW_DEFAULT_ARTIFACT_ROOT" > "$unfinished/artifact-root"
if [[ -n "${SANA_SPRINT_DVC_REMOTE:-}" ]]; then
    python "$here/copy_artifacts.py" "$SANA_SPRINT_DVC_REMOTE" "$unfinished/dvc"
    echo "$SANA_SPRINT_DVC_REMOTE" > "$unfinished/dvc-remote"
fi
(cd "$unfinished" && find . -type f ! -name SHA256SUMS -print0 | sort -z | xargs -0 sha256sum > SHA256SUMS)
sync -f "$unfinished"
mv "$unfinished" "$folder"
echo "backed up to $folder: $(du -sh "$folder" | cut -f1)"
