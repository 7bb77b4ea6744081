"""Routes: the page that a person uses, the API's reference, and the request's schema for both.

The page is plain files without a build step. It fetches nothing from another host and runs only its
own scripts; its headers make the browser enforce that.
Not covered: what the page does (web/).
"""

from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse

from wan_worker.server.error_answers import not_found
from wan_worker.server.shared import Parts
from wan_worker.settings import Settings

FOLDER: Final = Path(__file__).parent / "web"

TYPES: Final = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
"""Content types of the page's files, by suffix."""


def router(parts: Parts) -> APIRouter:
    routes = APIRouter()
    held = headers(parts.settings)

    @routes.get("/", include_in_schema=False)
    @routes.get("/api/v1/dashboard/html", tags=["dashboard"], response_class=HTMLResponse)
    async def page() -> FileResponse:
        """The page."""
        return FileResponse(FOLDER / "index.html", media_type="text/html", headers=held)

    @routes.get("/docs", include_in_schema=False)
    async def reference() -> FileResponse:
        return FileResponse(FOLDER / "docs.html", media_type="text/html", headers=held)

    @routes.get("/page/{name}", include_in_schema=False)
    async def part(name: str) -> FileResponse:
        path = FOLDER / name
        if path.suffix not in TYPES or path.parent != FOLDER or not path.is_file():
            raise not_found("The page has no such part")
        return FileResponse(path, media_type=TYPES[path.suffix], headers=held)

    @routes.get("/api/v1/schema", tags=["generation"])
    async def schema() -> dict[str, Any]:
        """Every field of a request: type, limits, default and meaning; and the presets' values."""
        return {"request": parts.contract.validator.schema, "presets": parts.contract.presets}

    return routes


def headers(settings: Settings) -> dict[str, str]:
    """The rules for the browser. From other hosts, only files in the configured bucket may come."""
    media = "'self' blob: data:"
    if settings.bucket is not None:
        for url in (settings.bucket.endpoint_url, settings.bucket.public_url):
            parts = urlsplit(url or "")
            # A bucket's name is in the path or, as with S3's own, before the host's name.
            if parts.netloc:
                media += f" {parts.scheme}://{parts.netloc} {parts.scheme}://*.{parts.netloc}"
    policy = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": media,
        "media-src": media,
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{what} {where}" for what, where in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-cache",
    }
