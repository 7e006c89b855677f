"""An S3 server on a folder that outlives a kill: localbucket, which lacks the bulk deletion that `dvc gc` asks for and
takes any access key. Run as `python s3.py FOLDER PORT`; the access key to ask for is AWS_ACCESS_KEY_ID."""

import os
import re
import sys
import xml.etree.ElementTree as ET
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from pathlib import Path

import localbucket


class Handler(localbucket.S3Handler):
    protocol_version = "HTTP/1.1"

    def _dispatch(self, action):
        key = re.search(r"Credential=([^/]+)/", self.headers.get("Authorization", ""))
        if key is None or key[1] != os.environ["AWS_ACCESS_KEY_ID"]:
            self._send_error(localbucket.S3Error(HTTPStatus.FORBIDDEN, "InvalidAccessKeyId", "No such access key."))
            return
        super()._dispatch(action)

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
