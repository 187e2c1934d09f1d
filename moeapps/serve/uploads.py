"""Image files as clients send them: forms of files, or one file as the body, become the JSON that ``/predict`` takes.

So there is one check of a request, and one set of errors, however the files came.
"""

import base64
import json

from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from moeapps.serve.files import MAX_IMAGES
from moeapps.serve.guard import replay, respond
from moeapps.serve.refusal import Refusal

__all__ = ["UPLOADS", "Uploads"]

_FILE = {"type": "string", "format": "binary"}
UPLOADS = {
    "requestBody": {
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"images": {"type": "array", "items": _FILE}}}
            },
            "image/*": {"schema": _FILE},
        }
    }
}
"""What OpenAPI has to know of the further forms of a body."""


class Uploads:
    """A layer in front of the application.

    Bodies of ``POST /predict`` that are ``multipart/form-data`` with files, or an image file, become JSON.

    Parameters
    ----------
    app : ASGI application
        What gets the JSON.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Rewrite the request, or hand it on as it is."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] != "/predict":
            await self.app(scope, receive, send)
            return
        kind = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
        request = Request(scope, receive)
        try:
            if kind == "multipart/form-data":
                files = await _files_of_form(request)
            elif kind.startswith("image/"):
                files = [await request.body()]
            else:
                await self.app(scope, receive, send)
                return
        except Refusal as refusal:
            await respond(refusal)(scope, receive, send)
            return
        body = json.dumps({"images": [base64.b64encode(file).decode() for file in files]}).encode()
        headers = [
            (name, value) for name, value in scope["headers"] if name not in (b"content-type", b"content-length")
        ]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self.app({**scope, "headers": headers}, replay(body, receive), send)


async def _files_of_form(request: Request) -> list[bytes]:
    files: list[bytes] = []
    try:
        async with request.form(max_files=MAX_IMAGES, max_fields=MAX_IMAGES) as form:
            for name, part in form.multi_items():
                if not isinstance(part, UploadFile):
                    fault = f"the field {name!r} holds text: send files, as curl -F image=@cat.png does"
                    raise Refusal(422, "invalid_request", fault)
                files.append(await part.read())
    except (MultiPartException, HTTPException, UnicodeDecodeError) as error:
        why = getattr(error, "detail", None) or getattr(error, "message", None) or str(error)
        raise Refusal(400, "invalid_request", f"the form cannot be read: {why}") from None
    if not files:
        raise Refusal(422, "invalid_request", "the form has no file: send one, as curl -F image=@cat.png does")
    return files
