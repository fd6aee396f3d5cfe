"""Several asynchronous streams as one, each item with the number of its stream, in the order they come.

The first error of any stream ends all of them. Closing the merged stream closes every one of them before it returns.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

Item = TypeVar("Item")


async def merged(streams: Sequence[AsyncGenerator[Item, None]]) -> AsyncGenerator[tuple[int, Item], None]:
    """A single stream, by far the commonest case, is read where it is; several are read by a task each."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as items:
            async for item in items:
                yield 0, item
        return
    queue: asyncio.Queue[tuple[int, Item] | asyncio.Task[None]] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(index, stream, queue)) for index, stream in enumerate(streams)]
    for task in tasks:
        task.add_done_callback(queue.put_nowait)
    num_open = len(tasks)
    try:
        while num_open:
            arrived = await queue.get()
            if isinstance(arrived, asyncio.Task):
                arrived.result()  # raises what the stream raised
                num_open -= 1
            else:
                yield arrived
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    index: int, stream: AsyncGenerator[Item, None], queue: "asyncio.Queue[tuple[int, Item] | asyncio.Task[None]]"
) -> None:
    async with aclosing(stream) as items:
        async for item in items:
            queue.put_nowait((index, item))
