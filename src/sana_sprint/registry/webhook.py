"""Signed messages by the Standard Webhooks convention (standardwebhooks.com), which MLflow's own webhooks follow too:
`webhook-id` is the same for every try of a message, `webhook-timestamp` the seconds since 1970 when it was signed, and
`webhook-signature` is "v1," with base64 of HMAC-SHA256(secret, "id.timestamp.body").
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

SECRET = "SANA_SPRINT_WEBHOOK_SECRET"
PREFIX = "whsec_"
TOLERANCE_S = 300
HEADERS = (
    ("webhook-id", "x-mlflow-delivery-id"),
    ("webhook-timestamp", "x-mlflow-timestamp"),
    ("webhook-signature", "x-mlflow-signature"),
)
TIMEOUT_S = 15.0


def secret() -> str:
    """Returns the secret of the environment. Raises ValueError when there is none."""
    found = os.environ.get(SECRET, "").strip()
    if not found:
        raise ValueError(f"{SECRET} is not set: the receiver tells our messages from others' by a secret of both")
    key(found)
    return found


def key(shared: str) -> bytes:
    """Returns the key of a secret: base64 after `whsec_`, else its characters. Raises ValueError where it is none."""
    if not shared.startswith(PREFIX):
        return shared.encode()
    try:
        return base64.b64decode(shared.removeprefix(PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError(f"{SECRET}: what follows {PREFIX} must be base64 ({error})") from None


def signature(shared: str, message_id: str, timestamp: str, body: bytes) -> str:
    """Returns the signature of a message."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key(shared), signed, hashlib.sha256).digest()).decode()


def headers(shared: str, message_id: str, body: bytes) -> dict[str, str]:
    """Returns the headers of a message that is signed now."""
    timestamp = str(int(time.time()))
    values = (message_id, timestamp, signature(shared, message_id, timestamp, body))
    signed = {ours: value for (ours, _), value in zip(HEADERS, values, strict=True)}
    return {"content-type": "application/json"} | signed


def verified(shared: str, told: Mapping[str, str], body: bytes) -> bool:
    """Tells whether a message, with its headers in lower case, is signed with the secret and no older than five
    minutes, one of ours or of an MLflow server's own webhooks; what a receiver in Python asks."""
    message_id, stamp, given = (told.get(ours) or told.get(mlflows, "") for ours, mlflows in HEADERS)
    if not stamp.isdigit() or abs(time.time() - int(stamp)) > TOLERANCE_S:
        return False
    wanted = signature(shared, message_id, stamp, body)
    return any(hmac.compare_digest(one.encode(), wanted.encode()) for one in given.split(" "))


def post(url: str, shared: str, message_id: str, body: bytes) -> str | None:
    """Sends a message once. Returns why it did not arrive, or None when the receiver answered 2xx."""
    import requests

    try:
        sent = headers(shared, message_id, body)
        answer = requests.post(url, data=body, headers=sent, timeout=TIMEOUT_S, allow_redirects=False)
    except requests.RequestException as error:
        return " ".join(str(error).split())[:300]
    return None if answer.ok and answer.status_code < 300 else f"the receiver answered {answer.status_code}"
