"""Running a server of a worker that is made up, for as long as a scenario takes."""

import asyncio

from moeapps.serve.batching import ModelServer


def run_scenario(scenario, make_worker, **options) -> None:
    """Start a server, let ``scenario(server)`` use it for at most 20 s, and close it."""

    async def whole():
        server = ModelServer("model", make_worker=make_worker, **options)
        server.start()
        await server.run()
        try:
            await asyncio.wait_for(scenario(server), 20)
        finally:
            await server.close()

    asyncio.run(whole())
