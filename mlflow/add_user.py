"""Adds a member of the team to the MLflow server at MLFLOW_TRACKING_URI, or gives one that is there another role.

    python mlflow/add_user.py NAME writer    # logs runs, registers, promotes
    python mlflow/add_user.py NAME reader    # sees what others made; what it makes is its own

Run it as an administrator (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD). A new member's first password is
NEW_PASSWORD, or is asked for. Everybody may change their own: `python mlflow/add_user.py --password`.
"""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.server.auth.client import AuthServiceClient
    from mlflow.server.auth.entities import Role

WRITER = "writer"
GRANTS = [(kind, "*", "EDIT") for kind in ("experiment", "registered_model")]
WORKSPACE = "default"  # the only one where workspaces are off


def writer_role(server: AuthServiceClient) -> Role:
    """Returns the role that may write to every experiment and model, made if it is absent."""
    found = [role for role in server.list_roles(WORKSPACE) if role.name == WRITER]
    role = found[0] if found else server.create_role(WORKSPACE, WRITER, "logs runs, registers, promotes")
    given = {(one.resource_type, one.resource_pattern, one.permission) for one in server.list_role_permissions(role.id)}
    for grant in GRANTS:
        if grant not in given:
            server.add_role_permission(role.id, *grant)
    return role


def setting(name: str) -> str:
    """Returns a variable of the environment. Raises ValueError where it is not set."""
    if not (text := os.environ.get(name, "").strip()):
        raise ValueError(f"{name} is not set")
    return text


def new_password() -> str:
    """Returns NEW_PASSWORD or what is typed."""
    return os.environ.get("NEW_PASSWORD") or getpass.getpass("new password: ")


def set_role(server: AuthServiceClient, name: str, role: str) -> str:
    """Returns what was done to make `name` a member of this role."""
    from mlflow.exceptions import MlflowException

    done = "changed"
    try:
        server.get_user(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        server.create_user(name, new_password())
        done = "added"
    writer, has = writer_role(server), {one.name for one in server.list_user_roles(name)}
    if role == WRITER and WRITER not in has:
        server.assign_role(name, writer.id)
    if role != WRITER and WRITER in has:
        server.unassign_role(name, writer.id)
    return f"{done} {name}, {role}"


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?")
    parser.add_argument("role", nargs="?", choices=["reader", WRITER])
    parser.add_argument("--password", action="store_true", help="change the password of MLFLOW_TRACKING_USERNAME")
    chosen = parser.parse_args()
    if not chosen.password and not (chosen.name and chosen.role):
        parser.error("give a name and a role, or --password")

    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    from mlflow.exceptions import MlflowException
    from mlflow.server.auth.client import AuthServiceClient

    try:
        server = AuthServiceClient(setting("MLFLOW_TRACKING_URI"))
        if chosen.password:
            name, old = setting("MLFLOW_TRACKING_USERNAME"), setting("MLFLOW_TRACKING_PASSWORD")
            server.update_user_password(name, new_password(), current_password=old)
            told = f"changed the password of {name}"
        else:
            told = set_role(server, chosen.name, chosen.role)
    except (MlflowException, ValueError) as error:
        parser.exit(1, f"error: {' '.join(str(error).split()):.300}\n")
    sys.stdout.write(told + "\n")


if __name__ == "__main__":
    main()
