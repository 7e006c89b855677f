# The team's MLflow server, and what its runbook runs: psql and pg_dump of PostgreSQL 15, the scripts of mlflow/.
# Built from the repository's root: docker build --file infra/mlflow.Dockerfile --tag sana-sprint-mlflow:0.1.0 .
FROM python:3.11.14-slim-bookworm

RUN apt-get update && apt-get install --yes --no-install-recommends postgresql-client-15 && rm -rf /var/lib/apt/lists/*
COPY requirements.lock /tmp/requirements.lock
RUN pip install --no-cache-dir --constraint /tmp/requirements.lock \
    mlflow Flask-WTF "psycopg[binary]" boto3 s3fs && rm /tmp/requirements.lock
COPY mlflow /srv/mlflow

USER 10001:10001
WORKDIR /srv
ENV HOME=/tmp
CMD ["bash", "mlflow/serve.sh"]
