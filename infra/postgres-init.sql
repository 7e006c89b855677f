-- The database of MLflow's users, beside the one of its runs.
CREATE DATABASE mlflow_auth OWNER mlflow;
