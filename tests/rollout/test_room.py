"""How many groups an actor lets in at once."""

import asyncio

from museg_ray.rollout.actor import _Room


def test_groups_are_let_in_while_the_engine_has_free_places() -> None:
    async def run() -> None:
        room, inside = _Room(max_num_seqs=16), []
        leave = asyncio.Event()

        async def group(name: str, num_seqs: int) -> None:
            async with room.take(num_seqs):
                inside.append(name)
                await leave.wait()

        tasks = [asyncio.create_task(group(name, 8)) for name in "abcd"]
        await asyncio.sleep(0.01)
        assert inside == ["a", "b"]
        leave.set()
        await asyncio.gather(*tasks)
        assert inside == ["a", "b", "c", "d"]
        async with room.take(1000):  # a group larger than the engine still gets its turn
            pass

    asyncio.run(run())
