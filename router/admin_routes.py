"""Routes for whoever runs the server, below /admin: they need an admin key."""

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.responses import JSONResponse, Response

from .access import ADMIN_FOLDER, Access
from .answer_schema import answers
from .errors import ApiError
from .job import Core
from .service_schemas import Draining, KeysReloaded

WorkerName = Annotated[str, Path(description="The worker's, as /v1/topology shows it.")]


def admin_routes(core: Core, access: Access) -> APIRouter:
    routes = APIRouter(prefix=ADMIN_FOLDER.rstrip("/"), tags=["admin"])

    @routes.post("/keys/reload", responses=answers(KeysReloaded, 400))
    async def reload_keys() -> Response:
        """Reads the file of API keys at once, not at the next request a second later; tells how many keys there are."""
        try:
            return JSONResponse({"num_keys": access.reload()})
        except (OSError, ValueError) as error:
            raise ApiError(400, f"the keys stay as they were: {error}") from error

    @routes.post("/workers/{name}/drain", responses=answers(Draining, 404, status=202), status_code=202)
    async def drain_worker(name: WorkerName) -> Response:
        """Has a worker finish what it does and leave. 404 if there is none of this name."""
        if not core.drain_worker(name):
            raise ApiError(404, f"there is no worker {name!r}", param="name")
        return JSONResponse({"worker": name, "state": "draining"}, 202)

    return routes
