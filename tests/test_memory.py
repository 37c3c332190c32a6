"""Memory of the CPU backend: recycling, borrowed memory and its end, threads, running out."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
from array import array

import pytest
from observing import live_bytes

import minigrad as mg
from minigrad.errors import DeviceError

pytest.importorskip("numba")

from minigrad.backend.cpu.runtime import memory

pytestmark = pytest.mark.usefixtures("on_cpu")


class TestBuffers:
    def test_aligned_with_slack(self):
        for nbytes in (0, 1, 63, 1000, 5000, 1 << 17):
            buffer = memory.DeviceBuffer(nbytes)
            assert buffer.address % memory.ALIGNMENT == 0
            assert buffer._block.size >= nbytes + memory.SLACK
            memory.view(buffer)[:] = b"\1" * nbytes

    def test_at_most_an_eighth_is_wasted(self):
        for nbytes in range(1, 1 << 16, 777):
            size = memory._rounded(nbytes)
            assert size >= nbytes + memory.SLACK
            assert size <= max(2048, (nbytes + memory.SLACK) * 9 / 8 + 64)

    def test_recycled(self):
        first = memory.DeviceBuffer(100_000)
        address = first.address
        del first
        assert memory.DeviceBuffer(100_001).address == address

    def test_counted(self):
        base = live_bytes()
        buffers = [memory.DeviceBuffer(n) for n in (10, 10_000, 1_000_000)]
        assert memory.live_bytes == base + sum(b._block.size for b in buffers)
        del buffers
        assert memory.live_bytes == base

    def test_views_keep_it_alive(self):
        buffer = memory.DeviceBuffer(8)
        view = memory.view(buffer)
        view[:] = b"12345678"
        del buffer
        gc.collect()
        others = [memory.DeviceBuffer(8) for _ in range(10)]
        for other in others:
            memory.view(other)[:] = b"\0" * 8
        assert bytes(view) == b"12345678"

    def test_the_pool_is_bounded_and_can_be_emptied(self, monkeypatch):
        memory.release_free_blocks()
        assert memory._free_bytes == 0
        monkeypatch.setattr(memory, "_POOL_LIMIT", 300_000)
        buffers = [memory.DeviceBuffer(100_000) for _ in range(5)]
        del buffers
        assert 0 < memory._free_bytes <= 300_000
        memory.release_free_blocks()
        assert memory._free_bytes == 0

    def test_running_out(self):
        base = live_bytes()
        with pytest.raises(DeviceError, match=r"cpu: out of memory: asked for \d+ bytes while \d+"):
            memory.DeviceBuffer(1 << 60)
        with pytest.raises(DeviceError, match=r"asked for \d+ bytes for the result of x"):
            memory.DeviceBuffer(1 << 60, "the result of x")
        assert memory.live_bytes == base

    def test_the_pool_is_given_up_before_running_out(self, monkeypatch):
        kept = memory.DeviceBuffer(200_000)
        del kept
        refused = []
        block = memory.Block

        def failing_once(size):
            if not refused:
                refused.append(size)
                raise OSError(12, "Cannot allocate memory")
            return block(size)

        monkeypatch.setattr(memory, "Block", failing_once)
        buffer = memory.DeviceBuffer(300_007)
        assert refused == [buffer._block.size]
        assert memory._free_bytes == 0


class TestThreads:
    def test_allocation_from_several(self):
        base, free = live_bytes(), None
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        failures: list[BaseException] = []

        def work(seed: int) -> None:
            try:
                held = []
                for k in range(3000):
                    held.append(memory.DeviceBuffer((k * 7919 * seed) % 50_000))
                    if len(held) > 20:
                        del held[: 10 + k % 10]
            except BaseException as error:
                failures.append(error)

        try:
            threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        finally:
            sys.setswitchinterval(interval)
        assert not failures
        assert not any(thread.is_alive() for thread in threads)
        assert live_bytes() == base
        free = sum(size * len(blocks) for size, blocks in memory._free.items())
        assert memory._free_bytes == free

    def test_the_collector_frees_in_the_middle_of_an_allocation(self):
        """Buffers in reference cycles are freed by whichever allocation the collector runs in."""
        base = live_bytes()
        threshold = gc.get_threshold()
        gc.set_threshold(5)
        try:
            for _ in range(2000):
                cycle: list[object] = [memory.DeviceBuffer(3000)]
                cycle.append(cycle)
        finally:
            gc.set_threshold(*threshold)
        del cycle
        assert live_bytes() == base

    def test_values_are_computed_in_several_threads(self):
        results: dict[int, float] = {}

        def work(k: int) -> None:
            x = mg.tensor([float(k)] * 10)
            for _ in range(20):
                x = x * 1.0 + 1.0
                x.tolist()
            results[k] = x.sum().item()

        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert results == {k: 10.0 * (k + 20) for k in range(4)}


class TestBorrowed:
    def test_what_is_behind_the_end(self):
        page = memory.mmap.PAGESIZE
        near = memory.BorrowedBuffer(page - 100, 100, None)
        far = memory.BorrowedBuffer(page, 100, None)
        assert not near.has_slack
        assert far.has_slack

    def test_our_own_memory_has_slack_wherever_it_ends(self):
        for nbytes in range(3000, 5000, 16):
            view = memory.view(memory.DeviceBuffer(nbytes))[: nbytes - 8].cast("f")
            borrowed = mg.asarray(view).node.storage
            assert isinstance(borrowed, memory.BorrowedBuffer)
            assert borrowed.has_slack

    def test_it_is_shared_and_kept_alive(self):
        data = array("f", [1.0, 2.0])
        x = mg.asarray(data)
        assert x.node.storage.address == data.buffer_info()[0]
        with pytest.raises(BufferError):
            data.append(3.0)  # exported
        assert (x * 2).tolist() == [2, 4]

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses mprotect")
    def test_nothing_is_read_from_the_next_page(self, tmp_path):
        """Vector kernels read past the end of their inputs: a copy is made where that faults."""
        program = """
            import ctypes, mmap
            import minigrad as mg
            page = mmap.PAGESIZE
            memory = mmap.mmap(-1, 4 * page)
            start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.mprotect(ctypes.c_void_p(start + 2 * page), page, 0) == 0
            n = 3 * 8 * 7 * 7
            view = memoryview(memory)[2 * page - 4 * n : 2 * page].cast("f", (3, 8, 7, 7))
            ctypes.memset(start + 2 * page - 4 * n, 0, 4 * n)
            x = mg.asarray(view)
            assert x.node.storage.address == start + 2 * page - 4 * n
            assert not x.node.storage.has_slack
            w = mg.ones((5, 8, 3, 3))
            results = [
                x + 1, x.sum(axis=(0, 2, 3)), mg.nn.conv2d(x, w, padding=1),
                mg.nn.max_pool2d(x, 2), x.reshape((21, 56)) @ mg.ones((56, 5)),
                mg.ones((5, 24)) @ x.reshape((24, 49)), x.argmax(axis=3),
                mg.take(x, mg.tensor([0, 2]) + 0, axis=0),
            ]
            mg.evaluate(*results)
            print(sum(r.astype(mg.float64).sum().item() for r in results))
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            env=dict(os.environ, MINIGRAD_DEVICE="cpu"),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (done.returncode, done.stderr)
        assert float(done.stdout) == 3 * 8 * 7 * 7


@pytest.mark.usefixtures("fresh_plans")
class TestTensors:
    def test_a_deleted_loss_frees_the_graph(self):
        w = mg.tensor([[1.0] * 50] * 50, requires_grad=True)
        x = mg.ones((200, 50)) * 1.0
        mg.evaluate(w, x)

        def loss() -> mg.Tensor:
            return mg.tanh(mg.tanh(x @ w) @ w).sum()

        first = loss()  # the plans keep their arenas
        first.item()
        first.backward()
        mg.evaluate(w.grad)
        del first
        w.grad = None
        base = live_bytes()
        value = loss()
        value.item()
        assert memory.live_bytes > base  # kept for the gradient
        value.backward()
        mg.evaluate(w.grad)
        del value
        w.grad = None
        assert live_bytes() == base

    def test_inputs_are_freed_once_nobody_needs_them(self):
        def chain() -> tuple[mg.Tensor, mg.Tensor]:
            x = mg.ones((1000,)) * 2.0
            return x, x + 1

        for _ in range(2):  # neither the first time, when the plans are made, nor later
            x, y = chain()
            mg.evaluate(x)
            base = live_bytes()
            mg.evaluate(y)
            del x
            assert live_bytes() == base
            del y

    def test_views_share(self):
        x = mg.ones((1000, 10)) * 2.0
        mg.evaluate(x)
        base = live_bytes()
        y = x.reshape((10_000,))
        mg.evaluate(y)
        assert y.node.storage is x.node.storage
        assert live_bytes() == base
