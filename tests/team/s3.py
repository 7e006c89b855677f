"""An S3 server on a folder that outlives a kill: localbucket, which lacks the bulk deletion that `dvc gc` asks for and
takes any access key. Run as `python s3.py FOLDER PORT`. AWS_ACCESS_KEY_ID may do everything, READER_ACCESS_KEY_ID
what READER_ACTIONS names, as policies name it ("s3:GetObject,..."); nobody else does anything."""

import os
import re
import sys
import xml.etree.ElementTree as ET
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import localbucket

KEY = re.compile(r"Credential=([^/]+)/")


class Handler(localbucket.S3Handler):
    protocol_version = "HTTP/1.1"

    def _dispatch(self, action):
        found = KEY.search(self.headers.get("Authorization", ""))
        key = found[1] if found else None
        if key == os.environ["AWS_ACCESS_KEY_ID"]:
            super()._dispatch(action)
        elif key is None or key != os.environ.get("READER_ACCESS_KEY_ID"):
            self._refuse("InvalidAccessKeyId", "No such access key.")
        elif self._needs() in os.environ["READER_ACTIONS"].split(","):
            super()._dispatch(action)
        else:
            self._refuse("AccessDenied", f"This key may not {self._needs()}.")

    def _refuse(self, code, told):
        self._send_error(localbucket.S3Error(HTTPStatus.FORBIDDEN, code, told))

    def _needs(self):
        """The action that a request is, as Amazon's list of S3's actions has it."""
        url = urlsplit(self.path)
        of_object = url.path.strip("/").count("/") > 0
        if self.command in ("GET", "HEAD"):
            return "s3:GetObject" if of_object else "s3:ListBucket"
        deletes = self.command == "DELETE" or (self.command == "POST" and url.query.startswith("delete"))
        return "s3:DeleteObject" if deletes else "s3:PutObject"

    def _post_request(self, bucket, key):
        if not bucket or key or "delete" not in self.query:
            super()._post_request(bucket, key)
            return
        answer = ET.Element("DeleteResult", xmlns=localbucket.S3_NAMESPACE)
        for one in ET.fromstring(self._read_body()).iterfind("{*}Object/{*}Key"):
            self._object_path(bucket, one.text).unlink(missing_ok=True)
            localbucket.sub_element(ET.SubElement(answer, "Deleted"), "Key", one.text)
        self._send_xml(answer)

    def _copy_object(self, bucket, key):
        super()._copy_object(bucket, key)
        sys.stderr.write(f"copied here: {key}\n")

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    Handler.data_root = Path(sys.argv[1]).resolve()
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
