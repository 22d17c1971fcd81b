"""A service with asyncio: requests are answered by jobs, and waiting for one leaves the event loop free for others."""

import asyncio

from wfl import Workflow


async def answer(flow: Workflow, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read two numbers, have a job multiply them, write what it printed."""
    one, two = (await reader.readline()).decode().split()
    job = await flow.run("/bin/sh", "-c", f"sleep 0.5; echo $(({int(one)} * {int(two)}))")
    writer.write(f"{one} × {two} = {job.output()}\n".encode())
    await writer.drain()
    writer.close()


async def ask(port: int, question: str) -> str:
    """One client."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{question}\n".encode())
    reply = await reader.readline()
    writer.close()
    return reply.decode().strip()


async def main() -> None:
    """Start the service, and three clients at once."""
    with Workflow() as flow:
        service = await asyncio.start_server(lambda reader, writer: answer(flow, reader, writer), "127.0.0.1")
        async with service:
            port = service.sockets[0].getsockname()[1]
            begin = asyncio.get_running_loop().time()
            for reply in await asyncio.gather(ask(port, "6 7"), ask(port, "8 9"), ask(port, "10 11")):
                print(reply)
            seconds = asyncio.get_running_loop().time() - begin
            print(f"three jobs of half a second each, side by side: {seconds:.1f} s")


asyncio.run(main())
