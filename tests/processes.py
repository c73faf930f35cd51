"""Functions run in several processes of one group."""

import multiprocessing
import traceback

import torch
from torch.multiprocessing import start_processes

from tests.conftest import free_ports

# Importing torch and timm costs a process 6 to 12 seconds: one server does it, and the processes of all groups are its forks.
_IMPORTED = ("torch.distributed.fsdp", "torch.distributed.checkpoint.state_dict", "timm", "srft.training.step", "tests.small_net")


def in_processes(count, function, *arguments):
    """Run ``function(rank, *arguments)`` in processes of one gloo group; a failure there is one here."""
    multiprocessing.set_forkserver_preload(list(_IMPORTED))
    start_processes(_member, args=(count, free_ports(1)[0], function, arguments), nprocs=count, start_method="forkserver")


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
