"""Functions run in several processes of one group."""

import traceback

import torch
from torch import multiprocessing

from tests.conftest import free_ports


def in_processes(count, function, *arguments):
    """Run ``function(rank, port, *arguments)`` in processes of one gloo group; a failure there is one here."""
    multiprocessing.spawn(_member, args=(count, free_ports(1)[0], function, arguments), nprocs=count)


def _member(rank, count, port, function, arguments):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    try:
        function(rank, *arguments)
        torch.distributed.barrier()  # Nobody leaves while another still talks to it.
    except Exception:
        traceback.print_exc()
        raise
    finally:
        torch.distributed.destroy_process_group()
